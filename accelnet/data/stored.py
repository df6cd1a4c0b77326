"""Arrays that stay where they are, such as memory maps, and are read by their rows."""

import os
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from accelnet.data.rows import Rows
from accelnet.errors import UserError
from accelnet.wording import shown


class FileRows:
    """Records of one size in a file, at equal distances, read without mapping the file.

    A process that maps a file and touches a row gets up to 2 MB of it mapped, where the system caches files in large
    pages: 2,000 rows of 3 KB took 3.2 GB.

    Args:
        path: File.
        start: Byte at which the first record begins.
        stride: Bytes from one record to the next.
        size: Bytes of a record.
    """

    def __init__(self, path: str | os.PathLike[str], *, start: int, stride: int, size: int) -> None:
        self._path, self._start, self._stride, self._size = os.fspath(path), start, stride, size
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, rows: np.ndarray, out: Any) -> None:
        """Read records into an array of their bytes.

        Args:
            rows: int64 [B], ascending; neighbours that touch are read at once.
            out: Array [B, ...] of `size` bytes per row.

        Raises:
            UserError: if the file has become shorter or cannot be read.
        """
        if not len(rows):
            return
        buffer = memoryview(out).cast("B")
        touching = np.diff(rows) * self._stride == self._size
        firsts = np.flatnonzero(np.concatenate([[True], ~touching]))
        lasts = np.append(firsts[1:], len(rows))
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            part = buffer[first * self._size : last * self._size]
            position = self._start + int(rows[first]) * self._stride
            while len(part):
                try:
                    count = os.preadv(self._descriptor, [part], position)
                except OSError as error:
                    raise UserError(f"{self._path} cannot be read: {error.strerror or error}") from None
                if count == 0:
                    raise UserError(f"{self._path} has become shorter: it ends before row {int(rows[first])}")
                part, position = part[count:], position + count


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
        self._files = {name: _file_of(array) for name, array in self._arrays.items()}
        self._by_slice = {name: _takes(array, slice(0, 2), 2) for name, array in self._arrays.items()}
        self._by_list = {name: _takes(array, np.array([0, 2]), 3) for name, array in self._arrays.items()}

    def __len__(self) -> int:
        return int(next(iter(self._arrays.values())).shape[0])

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        distinct, inverse = np.unique(rows, return_inverse=True)  # h5py wants them ascending, and once
        return {name: self._read_one(name, array, distinct)[inverse] for name, array in self._arrays.items()}

    def _read_one(self, name: str, array: Any, rows: np.ndarray) -> np.ndarray:
        shape, dtype = (len(rows), *self.shapes[name].shape), self.shapes[name].dtype
        file = self._files[name]
        if file is not None:
            values = np.empty(shape, array.dtype)
            file.read(rows, values)
        else:
            try:
                values = self._of_array(name, array, rows)
            except OSError as error:
                few = shown(rows.tolist())
                raise UserError(f"{name}: rows {few} cannot be read: {error}: is their file open and whole?") from None
        values = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
        if values.shape != shape or values.dtype != dtype:
            raise UserError(
                f"{name}: rows {shown(rows.tolist())} were read as {values.dtype} {list(values.shape)}, expected "
                f"{dtype} {list(shape)}, as the array's shape and type say"
            )
        return values

    def _of_array(self, name: str, array: Any, rows: np.ndarray) -> np.ndarray:
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and self._by_slice[name]:
            return np.array(array[int(rows[0]) : int(rows[-1]) + 1])
        if self._by_list[name]:
            return np.array(array[rows])
        one = self.shapes[name]
        read = [np.asarray(array[int(row)]) for row in rows]
        return np.stack(read) if read else np.empty((0, *one.shape), one.dtype)

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
    return all(hasattr(values, name) for name in ("shape", "dtype", "__getitem__")) and len(values.shape) > 0


def _takes(array: Any, index: Any, least: int) -> bool:
    """Try whether an array of at least so many rows gives two rows for an index."""
    if array.shape[0] < least:
        return False
    try:
        return np.shape(array[index]) == (2, *array.shape[1:])
    except Exception:  # noqa: BLE001, any error of a stranger's indexing says no
        return False


def _file_of(array: Any) -> FileRows | None:
    """Return the place of a memory map's rows in its file; None for another array, or where a row has gaps."""
    if not isinstance(array, np.memmap):
        return None
    root = array
    while isinstance(root.base, np.memmap):
        root = root.base
    if (
        root.filename is None
        or array.mode == "c"
        or not len(array)
        or not array[0].flags.c_contiguous
        or array.strides[0] < 0
        or not array[0].nbytes
    ):
        return None
    start = root.offset + array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    try:
        file = FileRows(root.filename, start=start, stride=array.strides[0], size=array[0].nbytes)
        first = np.empty((1, *array.shape[1:]), array.dtype)
        file.read(np.array([0]), first)
    except (OSError, UserError):
        return None
    # The path may lead to another file by now.
    return file if first.tobytes() == array[:1].tobytes() else None
