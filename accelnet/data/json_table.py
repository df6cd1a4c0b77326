"""Tables in JSON files: a row a line, or one array of rows, or one object of columns."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelnet.data.files import open_stream
from accelnet.errors import UserError
from accelnet.wording import shown

_BLOCK_BYTES = 1 << 24  # a row must fit into one


def read_json(path: Path) -> tuple[Any, bool]:
    r"""Read a table, whose values get the types that Arrow sees in them.

    Args:
        path: File, compressed or not: JSON lines; an array of objects, each a row; or an object of columns, each an
            array, or an object of values by the number of the row, as pandas writes them.

    Returns:
        An Arrow table, and whether each row is a line of the file.

    Raises:
        UserError: if it is JSON of another form.
        ArrowException: if it is damaged.
        ValueError: likewise.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.json"
        ...     _ = path.write_text('[{"size": 1},\n {"size": 2, "hue": "red"}]')
        ...     read_json(path)[0].to_pydict()
        {'size': [1, 2], 'hue': [None, 'red']}
    """
    from pyarrow import json as arrow_json

    options = arrow_json.ReadOptions(block_size=_BLOCK_BYTES)
    with _text(path) as file:
        by_line = _is_by_line(file)
    if by_line:
        with open_stream(path) as stream:
            return arrow_json.read_json(stream, options), True
    with _text(path) as file:
        content = json.load(file, parse_constant=lambda name: None if name == "NaN" else name)
    lines = "\n".join(json.dumps(row) for row in _rows(content, path))
    if not lines:
        raise UserError(f"{path} is empty, expected rows")
    return arrow_json.read_json(io.BytesIO(lines.encode()), options), False


@contextlib.contextmanager
def _text(path: Path) -> Iterator[io.TextIOWrapper]:
    with open_stream(path) as stream, io.TextIOWrapper(stream, "utf-8-sig") as file:
        yield file


def _is_by_line(file: Iterable[str]) -> bool:
    """Return whether the first line that is not blank is a whole row."""
    first = next((line for line in file if line.strip()), "").strip()
    if not first.startswith(("[", "{")):
        return True  # Arrow says what is wrong
    try:
        content = json.loads(first)
    except ValueError:
        return False
    return isinstance(content, dict) and not _has_columns(content)


def _has_columns(content: Any) -> bool:
    values = list(content.values()) if isinstance(content, dict) else []
    return bool(values) and (
        all(isinstance(one, list) for one in values) or all(isinstance(one, dict) for one in values)
    )


def _rows(content: Any, path: Path) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, list):
        for index, row in enumerate(content):
            if not isinstance(row, dict):
                raise UserError(f"{path}, row {index}: {shown(row)}, expected an object with a value for each column")
            yield row
    elif _has_columns(content):
        columns = {name: one if isinstance(one, list) else list(one.values()) for name, one in content.items()}
        numbered = [list(one) for one in content.values() if isinstance(one, dict)]
        if len({len(one) for one in columns.values()}) > 1 or any(one != numbered[0] for one in numbered):
            raise UserError(f"{path} has columns of different rows, expected a value of each row in every column")
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))
    else:
        raise UserError(
            f"{path} is {shown(content)}, expected a row a line, an array of objects, each a row, or an object of "
            f"columns, each an array"
        )
