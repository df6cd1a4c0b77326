"""What was found in a data set, in words, with what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from accelnet.data.arrays import leaves
from accelnet.data.rows import LazyArray

_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """Hold something in a data set that may be a mistake.

    Attributes:
        name: Name of what such findings have in common, such as "duplicates".
        count: Number of rows, inputs, classes or values that it is about.
        text: What was found, and where.
        advice: What to do.
    """

    name: str
    count: int
    text: str
    advice: str


def place_of(data: Any, row: int) -> str:
    """Return where a row of a data set comes from: its file, or its number among the rows that were given.

    Example:
        >>> import accelnet as an
        >>> place_of(an.data.xor(), 2)
        'row 2'
    """
    lazy = next((array for _, array in leaves(data.arrays) if isinstance(array, LazyArray)), None)
    return f"row {data.splits.origin[row]}" if lazy is None else lazy.rows.place(int(row))


def few(words: Iterable[str]) -> str:
    """Return words separated by commas; of more than eight, the first.

    Example:
        >>> few("abcdefghij")
        'a, b, c, d, e, f, g, h and 2 more'
    """
    every = list(words)
    return ", ".join(every[:_NAMED]) + (f" and {len(every) - _NAMED} more" if len(every) > _NAMED else "")
