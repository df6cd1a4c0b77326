"""Where tables come from: files of several formats, frames in memory, columns and rows of Python's."""

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accelnet import arguments
from accelnet.data.arrow import of_arrow, of_values
from accelnet.data.cells import Cells, Mixture, as_names, not_a_number, stacked
from accelnet.data.csv_file import NO_NAME, open_csv
from accelnet.data.files import COMPRESSED_SUFFIXES, first_bytes, reading
from accelnet.data.json_table import read_json
from accelnet.data.tables import ReadableTable, Table
from accelnet.errors import UserError
from accelnet.wording import listed, shown

_PARQUET, _ARROW, _JSON = (".parquet", ".pq"), (".arrow", ".feather", ".ipc", ".arrows"), (".jsonl", ".ndjson", ".json")
_PART_ROWS = 1 << 18  # of a Parquet file
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"FEA1": "arrow", b"\xff\xff\xff\xff": "stream"}


def open_source(source: Any, role: str) -> ReadableTable:
    """Look at what columns a table has.

    Args:
        source: Path of a file (CSV with any of its separators, Parquet, Arrow or Feather, JSON; compressed or not); a
            frame of pandas, polars, pyarrow or another library that gives its columns to Arrow's; a dict of columns; or
            a list of rows as dicts.
        role: Name of the argument, for messages.

    Raises:
        UserError: if it is none of these, cannot be read, or has two columns of one name.

    Example:
        >>> source = open_source({"size": [1.5, None]}, "source")
        >>> source.names, source.read(["size"], ()).column("size", False).values
        (('size',), array([1.5, nan]))
    """
    if isinstance(source, str | os.PathLike):
        found = _open_file(arguments.path(role, source))
    elif hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        found = _of_frame(source, role)
    elif hasattr(source, "keys") and not isinstance(source, type):
        found = _of_columns({key: source[key] for key in source.keys()}, role)  # noqa: SIM118, frames iterate otherwise
    elif isinstance(source, list | tuple) and source and all(isinstance(row, Mapping) for row in source):
        found = _of_rows(source, role)
    else:
        raise UserError(
            f"{role} is {shown(source)}, expected the path of a file, a data frame, a dict of columns, or a list of "
            f"rows as dicts"
        )
    if len(set(found.names)) < len(found.names):
        twice = sorted({name for name in found.names if found.names.count(name) > 1})
        raise UserError(f"{found.label} has two columns of one name, {listed(twice)}: rename one")
    return found


def stack(tables: Sequence[Table]) -> Table:
    """Put tables one below the other.

    Example:
        >>> two = [open_source({"a": [one]}, "source").read(["a"], ()) for one in (1.0, 2.0)]
        >>> stack(two).column("a", False).values
        array([1., 2.])
    """
    if len(tables) == 1:
        return tables[0]
    starts = np.cumsum([0, *(table.num_rows for table in tables)])

    def place(row: int) -> str:
        at = int(np.searchsorted(starts, row, side="right")) - 1
        return tables[at].place(row - int(starts[at]))

    def column(name: str, names: bool) -> Cells:
        return _whole(stacked([table.column(name, names) for table in tables]), name, place)

    return Table(tables[0].label, int(starts[-1]), column, place)


def _open_file(path: Path) -> ReadableTable:
    head = first_bytes(path)
    if path.is_dir():
        raise UserError(f"{path} cannot be read: it is a directory, expected a file")
    bare = Path(path.name.removesuffix(path.suffix)) if path.suffix in COMPRESSED_SUFFIXES else path
    suffix = bare.suffix.lower()
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    expected = "Parquet" if suffix in _PARQUET else "Arrow" if suffix in _ARROW else ""
    if expected and (kind is None or (kind == "parquet") != (expected == "Parquet")):
        raise UserError(f"{path} is no {expected} file, it begins with {head!r}: get it again, or give its true name")
    if kind == "parquet":
        return _open_parquet(path)
    if kind is not None or suffix in _JSON:
        return _open_json(path) if kind is None else _open_arrow(path, kind == "stream")
    if head.startswith(b"PK\x03\x04"):
        raise UserError(f"{path} is a ZIP file, such as those of spreadsheets: save the table as CSV or Parquet")
    return _open_csv(path)


def _open_csv(path: Path) -> ReadableTable:
    file = open_csv(path)

    def read(names: Sequence[str], text: Collection[str]) -> Table:
        num_rows, found = file.read(names, text)
        return _table(str(path), num_rows, found.__getitem__, lambda row: f"{path}, line {file.line(row)}")

    def read_parts(names: Sequence[str], text: Collection[str]) -> Iterator[Table]:
        first = 0
        for num_rows, found in file.parts(names, text):
            yield _table(
                str(path), num_rows, found.__getitem__, lambda row, at=first: f"{path}, line {file.line(at + row)}"
            )
            first += num_rows

    nameless = tuple(name for name in file.names if name.startswith(NO_NAME))
    note = " alone: expected names separated by commas in the first line" if len(file.names) == 1 else ""
    return ReadableTable(str(path), file.names, nameless, read, note, read_parts)


def _open_parquet(path: Path) -> ReadableTable:
    import pyarrow as pa
    from pyarrow import parquet

    def read(names: Sequence[str], text: Collection[str]) -> Table:
        with _readable(path), parquet.ParquetFile(path, page_checksum_verification=True) as file:
            columns = file.read(columns=list(names))
        return _of_arrow(str(path), columns).read(names, text)

    def read_parts(names: Sequence[str], text: Collection[str]) -> Iterator[Table]:
        first = 0
        with _readable(path), parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_PART_ROWS, columns=list(names)):
                part = _of_arrow(
                    str(path), pa.Table.from_batches([batch]), lambda row, at=first: f"{path}, row {at + row}"
                )
                yield part.read(names, text)
                first += batch.num_rows

    with _readable(path), parquet.ParquetFile(path) as file:
        return _of_arrow(str(path), file.schema_arrow.empty_table())._replace(read=read, read_parts=read_parts)


def _open_arrow(path: Path, stream: bool) -> ReadableTable:
    import pyarrow as pa
    from pyarrow import feather

    with _readable(path):
        columns = pa.ipc.open_stream(path.read_bytes()).read_all() if stream else feather.read_table(path)
        columns.validate(full=True)  # a damaged file would end the process
    return _of_arrow(str(path), columns)


def _open_json(path: Path) -> ReadableTable:
    with _readable(path):
        columns, by_line = read_json(path)
    return _of_arrow(str(path), columns, (lambda row: f"{path}, line {row + 1}") if by_line else None)


def _of_frame(frame: Any, role: str) -> ReadableTable:
    import pyarrow as pa

    try:
        columns = pa.table(frame)
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = ": ".join(map(str, error.args)).partition("\n")[0]
        raise UserError(f"{role} cannot be read as a table: {reason}") from None
    return _of_arrow(role, columns, "row {}".format)


def _of_arrow(label: str, columns: Any, place: Callable[[int], str] | None = None) -> ReadableTable:
    """Describe an Arrow table."""

    def read(_names: Sequence[str], _text: Collection[str]) -> Table:
        def get(name: str) -> Cells:
            return of_arrow(columns.column(name), f"{label}: column {shown(name)}")

        return _table(label, columns.num_rows, get, place or (lambda row: f"{label}, row {row}"))

    return ReadableTable(label, tuple(columns.column_names), _pandas_index(columns.schema.metadata), read)


def _pandas_index(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """Return the columns that were the index of a frame of pandas."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        found = json.loads((metadata or {})[b"pandas"])["index_columns"] if b"pandas" in (metadata or {}) else ()
        return tuple(name for name in found if isinstance(name, str))
    return ()


def _of_columns(columns: Mapping[Any, Any], role: str) -> ReadableTable:
    for name in columns:
        if not isinstance(name, str):
            raise UserError(f"{role} has a column {shown(name)}, expected names that are text")

    def read(names: Sequence[str], text: Collection[str]) -> Table:
        found = {
            name: _whole(of_values(columns[name], f"column {shown(name)}", name in text), name, "row {}".format)
            for name in names
        }
        lengths = [len(one.values) for one in found.values()]
        if len(set(lengths)) > 1:
            raise UserError(f"columns have lengths {listed(lengths)}, expected all the same")
        return _table(role, lengths[0] if lengths else 0, found.__getitem__, "row {}".format)

    return ReadableTable(role, tuple(columns), (), read)


def _of_rows(rows: Sequence[Mapping[Any, Any]], role: str) -> ReadableTable:
    names = {name: None for row in rows for name in row}

    def read(wanted: Sequence[str], text: Collection[str]) -> Table:
        for index, row in enumerate(rows):
            if missing := [name for name in wanted if name not in row]:
                raise UserError(f"row {index} lacks {listed(missing)}")
        return _of_columns({name: [row[name] for row in rows] for name in wanted}, role).read(wanted, text)

    return _of_columns(names, role)._replace(read=read)


def _table(label: str, num_rows: int, get: Callable[[str], Cells | Mixture], place: Callable[[int], str]) -> Table:
    if not num_rows:
        raise UserError(f"{label} is empty, expected rows")

    def column(name: str, names: bool) -> Cells:
        cells = get(name)
        if names:
            return as_names(cells) if isinstance(cells, Cells) else cells.as_names()
        return _whole(cells, name, place)

    return Table(label, num_rows, column, place)


def _whole(cells: Cells | Mixture, name: str, place: Callable[[int], str]) -> Cells:
    if isinstance(cells, Cells):
        return cells
    raise not_a_number(place(cells.row), name, cells.value)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        with reading(path):
            yield
    except UserError:
        raise
    except (pa.ArrowException, ValueError, TypeError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read: {reason}: it is damaged, or of another kind") from None
