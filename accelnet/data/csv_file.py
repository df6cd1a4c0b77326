"""Reading CSV files as people have them: other separators, marks of byte order, compressed."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from accelnet.data.files import read_text
from accelnet.errors import UserError
from accelnet.wording import listed

NO_NAME = "Unnamed: "


class Table(NamedTuple):
    """A file's columns.

    Attributes:
        path: File that they come from.
        columns: Texts by name; columns without a name are called as pandas calls them, "Unnamed: 0".
        lines: Number of the line in the file where each row ends.
    """

    path: Path
    columns: dict[str, Sequence[str]]
    lines: list[int]

    def place(self, row: int) -> str:
        """Return where a row is, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(path: Path) -> Table:
    r"""Read a file with a header line.

    Args:
        path: UTF-8 with or without a byte order mark, gzip where the name ends in `.gz`. Commas separate columns;
            semicolons or tabs do where the header has one of them and no comma.

    Returns:
        The `Table`. Spaces around the names of columns and lines without any text are left out.

    Raises:
        UserError: if the file is missing, empty or no such text, or two columns have one name; with the line, if a
            row has more or fewer fields than the header.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.csv"
        ...     _ = path.write_text("size;price\n1;2\n")
        ...     read_table(path).columns
        {'size': ('1',), 'price': ('2',)}
    """
    file = io.StringIO(read_text(path, "CSV file"), newline="")
    separator = _separator(next((line for line in file if line.strip()), ""))
    file.seek(0)
    header: list[str] = []
    rows, lines = [], []
    reader = csv.reader(file, strict=True, skipinitialspace=True, delimiter=separator)
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if not header:
                header = [column.strip() for column in row]
                continue
            if len(row) != len(header):
                hint = f" {listed(header)}: expected names separated by commas first" if len(header) == 1 else ""
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, expected {len(header)} as in the header{hint}"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        raise UserError(f"{path} is empty: expected a header line and rows")
    header = [name or f"{NO_NAME}{index}" for index, name in enumerate(header)]
    if len(set(header)) < len(header):
        raise UserError(f"{path} has two columns of one name: {listed(header)}")
    return Table(path, dict(zip(header, zip(*rows, strict=True), strict=True)), lines)


def _separator(header: str) -> str:
    found = [one for one in (";", "\t") if one in header]
    return found[0] if len(found) == 1 and "," not in header else ","
