"""Tables: their rows by column, and the sources that they are read from."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from accelnet.data.cells import Cells
from accelnet.errors import UserError
from accelnet.wording import did_you_mean, listed, shown


class Table(NamedTuple):
    """Hold the rows of one or several sources.

    Attributes:
        label: Where they come from, for messages.
        num_rows: Number of rows.
        column: Function of a name, and of whether to take the column for names, that returns it.
        place: Function of a row that says where it is, for messages, such as "a.csv, line 3".
    """

    label: str
    num_rows: int
    column: Callable[[str, bool], Cells]
    place: Callable[[int], str]

    def take(self, rows: np.ndarray) -> "Table":
        """Return a table of some of the rows, int [B], in this order."""

        def column(name: str, names: bool) -> Cells:
            return self.column(name, names).take(rows)

        return Table(self.label, len(rows), column, lambda row: self.place(int(rows[row])))


class ReadableTable(NamedTuple):
    """Describe a table that can be read.

    Attributes:
        label: Where it is, for messages.
        names: Names of its columns.
        nameless: Those of them that number the rows or have no name: no features unless they are asked for.
        read: Function of the columns to read, and of those to take for names, that returns the `Table`.
        note: Words after the names of the columns, where one is looked for in vain.
        read_parts: Function like `read` that returns the rows as several tables, one after the other. None: they are in
            memory already.
    """

    label: str
    names: tuple[str, ...]
    nameless: tuple[str, ...]
    read: Callable[[Sequence[str], Collection[str]], Table]
    note: str = ""
    read_parts: Callable[[Sequence[str], Collection[str]], Iterator[Table]] | None = None

    def parts(self, names: Sequence[str], as_names: Collection[str]) -> Iterator[Table]:
        """Read the rows as tables, each of which fits into memory, one after the other."""
        return iter([self.read(names, as_names)]) if self.read_parts is None else self.read_parts(names, as_names)

    def check(self, names: Sequence[str]) -> None:
        """Raise UserError unless these columns are there."""
        for name in names:
            if name not in self.names:
                hint = did_you_mean(name, self.names) or "."
                raise UserError(
                    f"{self.label} has no column {shown(name)}{hint} It has {listed(self.names)}{self.note}"
                )
