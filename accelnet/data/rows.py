"""Rows that are read when they are asked for, and arrays of them whose shape is known before."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError

# Rows that fingerprints read of those that are not in memory.
_HASHED_ROWS = 256
_HASHED_BYTES = 1 << 24


class Rows(ABC):
    """Rows that are read when they are asked for: what is behind the arrays of a data set that does not fit in memory.

    Attributes:
        shapes: Shape and type of what one row holds, as a (nested) dict of `jax.ShapeDtypeStruct`.
        stored: Whether they lie in a file as they are, so that reading all of them takes as long as reading the file.
        readers: Threads that read at once with gain: 1 where rows come one after the other.
        stream: The `StreamRows` that these begin with; None where every row can be read.
    """

    shapes: Mapping[str, Any]
    stored: bool = False
    readers: int = 2
    stream: Any = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: np.ndarray) -> dict[str, Any]:
        """Read rows, in any order and with repeats; threads may call it at the same time.

        Args:
            rows: int64 [B], each 0 to N - 1.

        Returns:
            Arrays [B, ...] of their own memory, in the structure and with the types of `shapes`.
        """

    def place(self, row: int) -> str:
        """Return where a row comes from, for messages."""
        return f"row {row}"

    def identity(self) -> bytes:
        """Return bytes that change with the rows and cost little, for fingerprints; some values are added to them."""
        return b""

    def hashed_rows(self) -> np.ndarray:
        """Return which rows a fingerprint reads: evenly spaced ones, the first and the last included."""
        count = int(np.clip(_HASHED_BYTES // max(1, self.row_bytes), 2, _HASHED_ROWS))
        return np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory."""
        return sum(int(np.prod(one.shape)) * one.dtype.itemsize for one in jax.tree.leaves(self.shapes))


class LazyArray:
    """Show one field of rows as an array [N, ...]: shape and type are known, values are read by an index.

    Args:
        rows: Rows to read.
        path: Names that lead to the field in `rows.shapes`.

    Example:
        >>> from accelnet.data.stored import StoredRows
        >>> array = lazy_arrays(StoredRows({"a": np.arange(6).reshape(3, 2)}))["a"]
        >>> array.shape, array[1].tolist(), array[1:].tolist()
        ((3, 2), [2, 3], [[2, 3], [4, 5]])
    """

    def __init__(self, rows: Rows, path: Sequence[str]) -> None:
        one: Any = rows.shapes
        for name in path:
            one = one[name]
        self.rows, self.path = rows, tuple(path)
        self.shape, self.dtype = (len(rows), *one.shape), np.dtype(one.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes, that of the rows included."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """Bytes that all rows would take."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def of(self, batch: Any) -> Any:
        """Return this field of what `rows.read` gave."""
        for name in self.path:
            batch = batch[name]
        return batch

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.of(self.rows.read(np.arange(*index.indices(len(self)))))
        if np.ndim(index) == 0:
            return self[np.array([index])][0]
        return self.of(self.rows.read(np.asarray(index, np.int64)))

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise UserError(
            f"an array {list(self.shape)} that is read by rows was to be read whole: take some rows of it, array[rows]"
        )

    def __repr__(self) -> str:
        return f"LazyArray({self.dtype.name}{list(self.shape)})"


def lazy_arrays(rows: Rows) -> dict[str, Any]:
    """Return the fields of rows as `LazyArray`s, in the structure of `rows.shapes`."""

    def of(shapes: Any, path: tuple[str, ...]) -> Any:
        if isinstance(shapes, Mapping):
            return {name: of(one, (*path, name)) for name, one in shapes.items()}
        return LazyArray(rows, path)

    return of(rows.shapes, ())


def read(tree: Any, rows: np.ndarray) -> Any:
    """Read rows of a tree of arrays, lazy or not; fields of the same `Rows` are read once.

    Args:
        tree: (Nested) dict of arrays [N, ...].
        rows: int [B].

    Returns:
        The same structure of NumPy arrays [B, ...].

    Example:
        >>> read({"a": np.arange(3), "b": {"c": np.arange(3) * 10}}, np.array([2, 0]))
        {'a': array([2, 0]), 'b': {'c': array([20,  0])}}
    """
    batches: dict[int, Any] = {}

    def one(array: Any) -> Any:
        if not isinstance(array, LazyArray):
            return np.asarray(array[rows])
        if id(array.rows) not in batches:
            batches[id(array.rows)] = array.rows.read(np.asarray(rows, np.int64))
        return array.of(batches[id(array.rows)])

    return jax.tree.map(one, tree)
