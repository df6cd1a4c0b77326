"""Tables that fit a narrow terminal, by leaving out columns."""

import copy
from collections.abc import Collection, Sequence
from typing import Any


def narrowed(table: Any, console: Any, drop: Sequence[str] = ()) -> tuple[Any, list[str]]:
    """Leave out columns of a table until its rows fit, each on its lines.

    Where the first column alone is too wide, its cells are cut, which an ellipsis shows.

    Args:
        table: Table of rich.
        console: Console of rich, which has the width.
        drop: Headers of the columns that go first; after these the last goes first.

    Returns:
        A table, and the headers of the columns that are not in it.

    Example:
        >>> from rich.console import Console
        >>> from rich.table import Table
        >>> table = Table("run", "loss", "accuracy", box=None, pad_edge=False)
        >>> table.add_row("first", "0.12", "0.98")
        >>> narrowed(table, Console(width=16), drop=["loss"])[1]
        ['loss']
    """
    from rich.measure import Measurement

    headers = [str(column.header) for column in table.columns]
    last_first = sorted(range(1, len(headers)), reverse=True)
    order = sorted(last_first, key=lambda place: drop.index(headers[place]) if headers[place] in drop else len(drop))
    unlimited, gone = console.options.update(width=100_000), []

    def fits(left_out: Collection[int]) -> bool:
        return Measurement.get(console, unlimited, _without(table, left_out)).maximum <= console.width

    while len(gone) < len(order) and not fits(gone):
        gone.append(order[len(gone)])
    for place in reversed(gone[:-1]):  # a narrow one may still find room
        others = [one for one in gone if one != place]
        if fits(others):
            gone = others
    return _without(table, gone), [headers[place] for place in sorted(gone)]


def _without(table: Any, gone: Collection[int]) -> Any:
    made = copy.copy(table)
    kept = [column for place, column in enumerate(table.columns) if place not in gone]
    made.columns, made.rows = [], []
    for column in kept:
        made.add_column(column.header, column.footer, justify=column.justify, no_wrap=True, overflow="ellipsis")
    for cells in zip(*(column.cells for column in kept), strict=True):
        made.add_row(*cells)
    return made
