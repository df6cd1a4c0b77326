"""Reading CSV files as people have them: other separators, marks of byte order, compressed."""

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accelnet.data.cells import Cells, Mixture, named, stacked_names, to_number, untyped
from accelnet.data.files import open_stream, reading
from accelnet.errors import UserError
from accelnet.wording import listed

NO_NAME = "Unnamed: "
_BLOCK_BYTES = 1 << 24  # a row must fit into one


class CsvFile(NamedTuple):
    """Describe a CSV file of which the header was read.

    Attributes:
        path: File.
        names: Names of its columns; those without a name are called as pandas calls them, "Unnamed: 0".
        separator: Character between columns.
        header_lines: Lines of the file up to the end of the header.
    """

    path: Path
    names: tuple[str, ...]
    separator: str
    header_lines: int

    def read(self, names: Sequence[str], as_names: Collection[str]) -> tuple[int, dict[str, Cells | Mixture]]:
        """Read columns, block by block: text that spells numbers is kept as these.

        Args:
            names: Columns to read.
            as_names: Those of them that hold names whatever they look like.

        Returns:
            The number of rows, and the columns by name.

        Raises:
            UserError: if the file is damaged, no CSV file, not UTF-8 or has no rows; with the line, if a row has more
                or fewer fields than the header.
        """
        columns, num_rows = {name: _Column(name in as_names) for name in names}, 0
        for block in self._blocks(names):
            num_rows += block.num_rows
            for name, column in columns.items():
                column.add(block.column(name))
        return num_rows, {name: column.cells() for name, column in columns.items()}

    def parts(
        self, names: Sequence[str], as_names: Collection[str]
    ) -> Iterator[tuple[int, dict[str, Cells | Mixture]]]:
        """Yield what `read` returns, block by block, for files that are larger than memory."""
        for block in self._blocks(names):
            columns = {name: _Column(name in as_names) for name in names}
            for name, column in columns.items():
                column.add(block.column(name))
            yield block.num_rows, {name: column.cells() for name, column in columns.items()}

    def _blocks(self, names: Sequence[str]) -> Iterator[Any]:
        """Yield blocks of rows, one at least, as Arrow's batches of text."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        read = arrow_csv.ReadOptions(block_size=_BLOCK_BYTES, column_names=self.names, skip_rows=self.header_lines)
        parse = arrow_csv.ParseOptions(
            delimiter=self.separator,
            newlines_in_values=True,
            invalid_row_handler=lambda row: "error" if row.text.strip() else "skip",
        )
        # An empty field is missing; what else is, depends on the column.
        convert = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=list(dict.fromkeys(names)),
            null_values=[""],
            strings_can_be_null=True,
        )
        last: Any = None
        try:
            with reading(self.path), open_stream(self.path) as stream:
                for block in arrow_csv.open_csv(stream, read, parse, convert):
                    if block.num_rows:
                        last = block
                        yield block
                ends = last.slice(last.num_rows - 1).to_pylist() if last is not None else []
                if any("\n" in (text or "") for row in ends for text in row.values()):
                    self._check()  # is the last quote open?
        except pa.ArrowInvalid as error:
            self._check()
            if next(self._rows(), None) is not None:
                raise UserError(f"{self.path} is not a CSV file: {error}") from None
        if last is None:
            raise UserError(f"{self.path} is empty: expected a header line and rows")

    def line(self, row: int) -> int:
        """Return the number of the line in the file where a row ends."""
        for index, (line, _) in enumerate(self._rows()):
            if index == row:
                return line
        raise IndexError(f"row {row} of {self.path} is not there")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line, fields) of each row, slowly: for messages."""
        with open_stream(self.path) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, delimiter=self.separator)
            for fields in reader:
                if reader.line_num > self.header_lines and not _is_blank(fields):
                    yield reader.line_num, fields

    def _check(self) -> None:
        """Raise UserError with the line of the first row that is no row of this file."""
        try:
            for line, fields in self._rows():
                if len(fields) != len(self.names):
                    alone = f" {listed(self.names)}: expected names separated by commas first"
                    raise UserError(
                        f"{self.path}, line {line}: {len(fields)} fields, expected {len(self.names)} as in the header"
                        f"{alone if len(self.names) == 1 else ''}"
                    ) from None
        except csv.Error as error:
            raise UserError(f"{self.path} is not a CSV file: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it"
            ) from None


def open_csv(path: Path) -> CsvFile:
    r"""Read the header line of a file.

    Args:
        path: UTF-8 with or without a byte order mark, compressed or not. Commas separate columns; semicolons, tabs or
            bars do where the header has one of them and no comma.

    Returns:
        The `CsvFile`. Blanks around the names of columns and lines without any text are left out.

    Raises:
        UserError: if the file is missing, empty or no such text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.csv"
        ...     _ = path.write_text("size;price\n1;2\n")
        ...     file = open_csv(path)
        ...     file.names, file.separator, file.read(["price"], ())[1]["price"].values
        (('size', 'price'), ';', array([2.]))
    """
    try:
        with reading(path), open_stream(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as file:
            skipped, first = 0, ""
            for first in file:
                if first.strip():
                    break
                skipped += 1
            separator = _separator(first)
            # A quoted name may hold a line break: the header ends where the reader says.
            reader = csv.reader(_from(first, file), strict=True, skipinitialspace=True, delimiter=separator)
            header = [name.strip() for name in next(reader, [])]
            lines = skipped + reader.line_num
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from None
    if not any(header):
        raise UserError(f"{path} is empty: expected a header line and rows")
    return CsvFile(path, tuple(name or f"{NO_NAME}{at}" for at, name in enumerate(header)), separator, lines)


class _Column:
    """A column that grows by blocks, each of numbers or of text in Arrow's dictionaries."""

    def __init__(self, as_names: bool) -> None:
        self.as_names = as_names
        self._blocks: list[np.ndarray] = []  # float64 [n] of numbers, int64 [n] of positions
        self._position: dict[str, int] = {}

    def add(self, texts: Any) -> None:
        """Add a block, an Arrow array of text."""
        self._blocks.append(self._numbers(texts) if not self.as_names else self._positions(texts))

    def _numbers(self, texts: Any) -> np.ndarray:
        import pyarrow as pa
        from pyarrow import compute

        for trim in (False, True):
            try:
                found = compute.call_function("utf8_trim_whitespace", [texts]) if trim else texts
                numbers = found.cast(pa.float64()).to_numpy(zero_copy_only=False)
            except pa.ArrowInvalid:  # a text in it is no number
                continue
            # A block without a number may belong to a column of text, where NA is a name.
            return self._positions(texts) if np.isnan(numbers).all() else numbers
        distinct = texts.dictionary_encode()
        numbers = [to_number(_unquoted(text)) for text in distinct.dictionary.to_pylist()]
        values = np.array([*numbers, np.nan], np.float64)  # None as NaN
        if None in numbers or np.isnan(values).all():
            return self._positions(distinct)
        return values[_codes(distinct)]

    def _positions(self, texts: Any) -> np.ndarray:
        distinct = texts if hasattr(texts, "dictionary") else texts.dictionary_encode()
        places = [
            self._position.setdefault(_unquoted(text), len(self._position)) for text in distinct.dictionary.to_pylist()
        ]
        return np.array([*places, -1])[_codes(distinct)]

    def cells(self) -> Cells | Mixture:
        """Return the whole column."""
        blocks, self._blocks = self._blocks, []
        texts = list(self._position)
        if all(block.dtype != np.float64 for block in blocks):
            return (named if self.as_names else untyped)(texts, np.concatenate(blocks))
        numbers = [*map(to_number, texts), np.nan]
        bad = np.array([number is None for number in numbers])
        start = 0
        for index, block in enumerate(blocks):
            if block.dtype != np.float64:
                if bad[block].any():
                    row = int(np.argmax(bad[block]))
                    return Mixture(start + row, texts[block[row]], lambda: self._as_names(texts, blocks))
                blocks[index] = np.array(numbers, np.float64)[block]
            start += len(block)
        return Cells("number", np.concatenate(blocks))

    def _as_names(self, texts: Sequence[str], blocks: Sequence[np.ndarray]) -> Cells:
        return stacked_names([Cells("number", one) if one.dtype == np.float64 else named(texts, one) for one in blocks])


def _codes(distinct: Any) -> np.ndarray:
    return distinct.indices.fill_null(-1).to_numpy(zero_copy_only=False)


def _unquoted(text: str) -> str:
    """Return a field without blanks around it, and without quotes that were read as text after a blank."""
    bare = text.strip()
    quoted = bare != text and len(bare) > 1 and bare[0] == bare[-1] == '"'
    return bare[1:-1].replace('""', '"').strip() if quoted else bare


def _from(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _is_blank(fields: Sequence[str]) -> bool:
    return not fields or (len(fields) == 1 and not fields[0].strip())


def _separator(header: str) -> str:
    header = re.sub('"[^"]*"', "", header)  # a quoted name may hold any of them
    found = [one for one in (";", "\t", "|") if one in header]
    return found[0] if len(found) == 1 and "," not in header else ","
