"""Rows made of other rows, which are read only when these are: in another order, joined, one field of them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from accelnet.data.rows import LazyArray, Rows
from accelnet.data.stored import StoredRows
from accelnet.errors import UserError
from accelnet.terminal import StatusLine

_PIECE = 64  # rows that one thread reads at once
# Rows that statistics read, where reading a row takes computing: a mean of so many is right to 0.1 % of the deviation.
SAMPLED_BYTES, SAMPLED_ROWS = 1 << 28, 1 << 20


def reordered(tree: Any, order: np.ndarray) -> Any:
    """Return a tree of arrays with the rows `order` in that order: copied in memory, looked up where they are lazy.

    Args:
        tree: (Nested) dict of arrays [N, ...].
        order: int [M].
    """
    views: dict[int, Rows] = {}

    def one(array: Any) -> Any:
        if not isinstance(array, LazyArray):
            return array[order]
        return LazyArray(views.setdefault(id(array.rows), ReorderedRows(array.rows, order)), array.path)

    return jax.tree.map(one, tree)


def first_rows(array: Any, count: int) -> Any:
    """Return the first rows of an array for statistics of them.

    Args:
        array: Array [N, ...], lazy or not.
        count: Number of rows, at least 1.

    Returns:
        All of them, still lazy where they lie in a file; where reading a row takes computing, at most 2**20 evenly
        spaced ones, of 256 MiB in all.

    Raises:
        UserError: if one of these is NaN or infinite.
    """
    if not isinstance(array, LazyArray):
        return array[:count]
    if array.rows.stored:
        view = ReorderedRows(array.rows, np.arange(count))
        if array.nbytes > SAMPLED_BYTES:
            view.sort()
        return LazyArray(view, array.path)
    most = max(1, min(SAMPLED_ROWS, SAMPLED_BYTES // max(1, array.nbytes // len(array))))
    rows = np.linspace(0, count - 1, min(most, count)).astype(np.int64)
    found = LazyArray(ToldRows(array.rows), array.path)[rows]
    good = np.isfinite(found).reshape(len(found), -1).all(axis=1)
    if not good.all():
        where = array.rows.place(int(rows[int(np.argmin(good))]))
        raise UserError(f"{'.'.join(array.path)} of {where} is NaN or infinite: remove or fill such rows")
    return found


def joined(arrays: Sequence[Any]) -> LazyArray:
    """Put lazy arrays, and those in memory beside them, one after the other without reading them."""
    lazy = [one if isinstance(one, LazyArray) else LazyArray(StoredRows({"": one}), ("",)) for one in arrays]
    return LazyArray(JoinedRows([FieldRows(one) for one in lazy]), ("",))


class ToldRows(Rows):
    """Rows that take computing, read in pieces by threads; a line says how many are read once it takes 2 s.

    Args:
        rows: Rows that are read.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows, self.shapes = rows, rows.shapes

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, row: int) -> str:
        return self._rows.place(row)

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        out = jax.tree.map(lambda one: np.empty((len(rows), *one.shape), one.dtype), dict(self.shapes))
        line, starts = StatusLine(show=True, after_seconds=2), range(0, len(rows), _PIECE)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:

            def one(begin: int) -> int:
                piece = self._rows.read(rows[begin : begin + _PIECE])
                jax.tree.map(lambda to, values: to.__setitem__(slice(begin, begin + len(values)), values), out, piece)
                return begin + _PIECE

            try:
                for done in threads.map(one, starts):
                    line(f"reading rows for their mean: {min(done, len(rows)):,} of {len(rows):,}")
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
            finally:
                line.close()
        return out


class ReorderedRows(Rows):
    """Some rows of others, in another order.

    Args:
        rows: The others.
        order: int [M], each 0 to N - 1.
    """

    def __init__(self, rows: Rows, order: np.ndarray) -> None:
        if isinstance(rows, ReorderedRows):
            rows, order = rows._rows, rows._order[order]
        self._rows, self._order = rows, np.asarray(order, np.int64)
        self.shapes, self.stored, self.readers = rows.shapes, rows.stored, rows.readers

    def sort(self) -> None:
        """Put the rows in the order in which they lie, which a disk reads faster."""
        self._order = np.sort(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        return self._rows.read(self._order[rows])

    def place(self, row: int) -> str:
        return self._rows.place(int(self._order[row]))

    def identity(self) -> bytes:
        return self._rows.identity()


class JoinedRows(Rows):
    """The rows of several, one after the other.

    Args:
        parts: Rows of the same shapes.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts, self.shapes = tuple(parts), parts[0].shapes
        self.stored, self.stream = all(part.stored for part in parts), parts[0].stream
        self.readers = max(part.readers for part in parts)
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        found: Any = None
        for index in np.unique(part_of):
            chosen = part_of == index
            batch = self._parts[index].read(rows[chosen] - self._starts[index])
            if len(batch) and chosen.all():
                return batch
            if found is None:
                found = jax.tree.map(lambda a: np.empty((len(rows), *a.shape[1:]), a.dtype), batch)
            jax.tree.map(lambda out, a, chosen=chosen: out.__setitem__(chosen, a), found, batch)
        return found if found is not None else self._parts[0].read(rows)

    def place(self, row: int) -> str:
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[index].place(int(row - self._starts[index]))

    def identity(self) -> bytes:
        return b"".join(part.identity() for part in self._parts)

    def hashed_rows(self) -> np.ndarray:
        pairs = zip(self._parts, self._starts, strict=False)
        return np.concatenate([part.hashed_rows() + start for part, start in pairs])


class FieldRows(Rows):
    """One field of rows.

    Args:
        array: The field; it becomes `shapes[""]`.
        dtype: Type that its values get. None: their own.
    """

    def __init__(self, array: LazyArray, dtype: np.dtype | None = None) -> None:
        self._array, self.stored, self.stream = array, array.rows.stored, array.rows.stream
        self.readers = array.rows.readers
        self.shapes = {"": jax.ShapeDtypeStruct(array.shape[1:], dtype or array.dtype)}

    def __len__(self) -> int:
        return len(self._array)

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        return {"": self._array[rows].astype(self.shapes[""].dtype, copy=False)}

    def place(self, row: int) -> str:
        return self._array.rows.place(row)

    def identity(self) -> bytes:
        return self._array.rows.identity()

    def hashed_rows(self) -> np.ndarray:
        return self._array.rows.hashed_rows()
