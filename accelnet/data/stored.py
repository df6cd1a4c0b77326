"""Arrays that stay where they are, such as memory maps, and are read by their rows."""

import mmap
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from accelnet.data.rows import Rows
from accelnet.errors import UserError
from accelnet.wording import shown


class StoredRows(Rows):
    """Rows of arrays that stay where they are: memory maps, h5py data sets, zarr arrays, anything with a shape.

    Args:
        arrays: Arrays [N, ...] by name: objects with `shape`, `dtype` and `__getitem__`.
    """

    stored = True

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = dict(arrays)
        self.shapes = {
            name: jax.ShapeDtypeStruct(tuple(array.shape[1:]), np.dtype(array.dtype).newbyteorder("="))
            for name, array in self._arrays.items()
        }
        self._by_slice = {name: _takes(array, slice(0, 2), 2) for name, array in self._arrays.items()}
        self._by_list = {name: _takes(array, np.array([0, 2]), 3) for name, array in self._arrays.items()}

    def __len__(self) -> int:
        return int(next(iter(self._arrays.values())).shape[0])

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        distinct, inverse = np.unique(rows, return_inverse=True)  # h5py wants them ascending, and once
        return {name: self._read_one(name, array, distinct)[inverse] for name, array in self._arrays.items()}

    def _read_one(self, name: str, array: Any, rows: np.ndarray) -> np.ndarray:
        shape, dtype = (len(rows), *self.shapes[name].shape), self.shapes[name].dtype
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and self._by_slice[name]:
            values = np.array(array[int(rows[0]) : int(rows[-1]) + 1])
        elif self._by_list[name]:
            values = np.array(array[rows])
        else:
            values = np.stack([np.asarray(array[int(row)]) for row in rows]) if len(rows) else np.empty(shape, dtype)
        if isinstance(array, np.memmap):
            forget(array)
        values = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
        if values.shape != shape or values.dtype != dtype:
            raise UserError(
                f"{name}: rows {shown(rows.tolist())} were read as {values.dtype} {list(values.shape)}, expected "
                f"{dtype} {list(shape)}, as the array's shape and type say"
            )
        return values

    def place(self, row: int) -> str:
        files = [getattr(array, "filename", None) for array in self._arrays.values()]
        return f"row {row}" + (f" of {files[0]}" if files[0] else "")


def is_stored(values: Any) -> bool:
    """Return whether values are an array that stays where it is, such as on a disk, and is read by its rows.

    Example:
        >>> is_stored(np.zeros(3)), is_stored([1, 2])
        (False, False)
    """
    if isinstance(values, np.memmap):
        return True
    # What is in memory shows its memory, or is a column or a frame of a table, or a tensor.
    in_memory = ("__array_interface__", "__dlpack__", "__arrow_c_stream__", "__dataframe__", "iloc", "numpy")
    if isinstance(values, np.generic) or any(hasattr(values, name) for name in in_memory):
        return False
    return all(hasattr(values, name) for name in ("shape", "dtype", "__getitem__", "__len__"))


def _takes(array: Any, index: Any, least: int) -> bool:
    """Try whether an array of at least so many rows gives two rows for an index."""
    if len(array) < least:
        return False
    try:
        return np.shape(array[index]) == (2, *array.shape[1:])
    except Exception:  # noqa: BLE001, any error of a stranger's indexing says no
        return False


def forget(array: np.memmap) -> None:
    """Give back the memory of a file's pages that were read: the system keeps them as long as it has room."""
    if array.mode == "c":  # its changes are in memory alone
        return
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
