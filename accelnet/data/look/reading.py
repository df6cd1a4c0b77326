"""The rows of each split that a description looks at: all of those in memory, and some of the others."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from accelnet.data.arrays import CHUNK_BYTES
from accelnet.data.encoding import with_offsets

_MOST_BYTES = 1 << 28  # of all splits, where rows are not in memory


class SplitRows(NamedTuple):
    """Rows of a split in memory.

    Attributes:
        rows: int [n], their numbers in the data's arrays.
        arrays: Arrays [n, ...] in the structure of the data's, with the numbers of the user's file.
        is_whole: Whether these are all rows of the split.
    """

    rows: np.ndarray
    arrays: dict[str, Any]
    is_whole: bool


def read_splits(data: Any, most_rows: int, say: Callable[[str], None]) -> dict[str, SplitRows]:
    """Read rows of every split that has some.

    Args:
        data: A `Data`.
        most_rows: Most rows of a split that are read where they are not in memory; they are evenly spaced, and 256 MiB
            of all splits together at most. Of a stream, they are those of its first batch.
        say: Function that is told what is being done.

    Returns:
        The rows by split.

    Raises:
        UserError: if a row that is read is not as the data says.

    Example:
        >>> import accelnet as an
        >>> read_splits(an.data.xor(), 10, lambda text: None)["train"].rows
        array([0, 1, 2, 3])
    """
    splits = {split: rows for split, rows in data.splits.items() if len(rows)}
    if not data.is_lazy:
        return {split: _in_memory(data, rows) for split, rows in splits.items()}
    row_bytes = max(1, data.nbytes // data.num_rows)
    most = max(1, min(most_rows, _MOST_BYTES // len(splits) // row_bytes))
    stream = data.stream
    held = {}
    for split, every in splits.items():
        known = every if stream is None or every.start else range(stream.batch_size)
        rows = known.start + np.unique(np.linspace(0, len(known) - 1, min(most, len(known))).astype(np.int64))
        arrays = with_offsets(_read(data, split, rows, row_bytes, say), data.coding)
        held[split] = SplitRows(rows, arrays, len(rows) == len(every))
    return held


def blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array [n, ...] by blocks of rows that take about 16 MiB as float64.

    Example:
        >>> [len(block) for block in blocks(np.zeros((3, 1 << 20)))]
        [2, 1]
    """
    step = max(1, CHUNK_BYTES // (8 * max(1, math.prod(values.shape[1:]))))
    for start in range(0, len(values), step):
        yield values[start : start + step]


def _in_memory(data: Any, rows: range) -> SplitRows:
    views = jax.tree.map(lambda array: array[rows.start : rows.stop], dict(data.arrays))
    return SplitRows(np.arange(rows.start, rows.stop), with_offsets(views, data.coding), True)


def _read(data: Any, split: str, rows: np.ndarray, row_bytes: int, say: Callable[[str], None]) -> dict[str, Any]:
    step = max(1, CHUNK_BYTES // row_bytes)
    found: Any = None
    for start in range(0, len(rows), step):
        say(f"reading {split}, {start:,} of {len(rows):,} rows")
        part = data.take(rows[start : start + step])
        if found is None:
            found = jax.tree.map(lambda one: np.empty((len(rows), *one.shape[1:]), one.dtype), part)
        jax.tree.map(lambda to, one, start=start: to.__setitem__(slice(start, start + len(one)), one), found, part)
    return found
