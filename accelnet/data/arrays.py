"""Nested dicts of arrays with one leading axis: walking over them, reading them by blocks, converting them."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from accelnet.data.rows import LazyArray
from accelnet.data.stored import StoredRows, is_stored
from accelnet.errors import UserError
from accelnet.wording import shown

# Reading a gigabyte from a disk takes seconds, and a file is read by rows because reading all of it is too dear.
CHECKED_STORED_BYTES = 1 << 30
CHUNK_BYTES = 1 << 24
# blake2b takes 0.4 s for them.
HASHED_BYTES = 1 << 28


def as_numpy(tree: Any, path: str) -> Any:
    """Return the arrays as NumPy arrays, or lazy ones, in plain dicts (other mappings are leaves to `jax.tree`).

    Args:
        tree: Array, or mapping of names to trees.
        path: Name of the tree in messages.

    Returns:
        The same structure; arrays that are NumPy's already are not copied, and those that are stored are not read.

    Raises:
        UserError: if a mapping is empty or has a key that is no text, or an array holds anything but numbers and
            booleans.

    Example:
        >>> as_numpy({"a": [1, 2]}, "arrays")
        {'a': array([1, 2])}
    """
    if isinstance(tree, Mapping):
        if not tree:
            raise UserError(f"{path} is empty, expected arrays")
        for key in tree:
            if not isinstance(key, str):
                raise UserError(f"{path} has the name {shown(key)}, expected names that are text, such as {str(key)!r}")
        return {key: as_numpy(value, f"{path}[{key!r}]") for key, value in tree.items()}
    array = native(tree, path)
    # bfloat16 and float8 are of kind V.
    if array.dtype.kind not in "biufc" and not array.dtype.name.startswith(("bfloat", "float")):
        raise UserError(f"{path} has dtype {array.dtype}, expected numbers or booleans{_advice(array)}")
    return array


def native(values: Any, path: str) -> Any:
    """Return values as an array of a type that jax knows: this machine's order of bytes, at most 64 bits.

    Args:
        values: Array, or nested lists of equal lengths.
        path: Name of the values in messages.

    Returns:
        The same values; NumPy arrays of such a type are not copied. A `LazyArray` where they are stored, such as in a
        memory map.

    Raises:
        UserError: if lists are of unequal lengths, values are masked, or there is no array in them.

    Example:
        >>> native(np.array([1.5, 2.5], ">f8"), "inputs").dtype.str
        '<f8'
        >>> native([[1, 2], [3]], "inputs")
        Traceback (most recent call last):
        accelnet.errors.UserError: inputs is no array (rows of unequal lengths?): pad the rows to one length
    """
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.getmaskarray(values).any():
            raise UserError(f"{path} has masked values: remove or fill such rows")
        values = values.data
    if isinstance(values, Mapping):
        raise UserError(f"{path} is a dict, expected an array")
    if isinstance(values, LazyArray):
        return values
    if is_stored(values):
        return LazyArray(StoredRows({path: values}), (path,))
    try:
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
    except (TypeError, ValueError):
        raise UserError(f"{path} is no array (rows of unequal lengths?): pad the rows to one length") from None
    wide = {"f": np.float64, "c": np.complex128}.get(array.dtype.kind)
    if wide is not None and array.dtype.itemsize > np.dtype(wide).itemsize:
        return array.astype(wide)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def _advice(array: np.ndarray) -> str:
    if array.dtype.kind in "UST":
        return ": encode names as numbers, or give them to from_arrays as targets"
    if array.dtype.kind in "Mm":
        return ": convert times to seconds as float64"
    return ": convert it to a numeric type" if array.dtype.kind == "O" else ""


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, array) in the order of the names; a path is that of the tree and these names, joined by dots.

    Example:
        >>> list(leaves({"b": 1, "a": {"c": 2}}))
        [('a.c', 2), ('b', 1)]
    """
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from leaves(tree[key], f"{path}.{key}" if path else key)
    else:
        yield path, tree


def chunks(array: Any, limit_bytes: int | None = None) -> Iterator[np.ndarray]:
    """Yield the array by blocks of rows of about 16 MiB, so that a lazy one needs no more memory.

    Args:
        array: [N, ...].
        limit_bytes: Bytes that are read of a larger array: evenly spaced rows, the first and the last included.

    Yields:
        Arrays [n, ...].

    Example:
        >>> [chunk.tolist() for chunk in chunks(np.arange(9, dtype=np.uint8), limit_bytes=3)]
        [[0, 4, 8]]
    """
    row_bytes = max(1, array.nbytes // max(1, len(array)))
    step = max(1, CHUNK_BYTES // row_bytes)
    if limit_bytes is None or array.nbytes <= limit_bytes:
        for start in range(0, len(array), step):
            yield array[start : start + step]
    else:
        rows = np.linspace(0, len(array) - 1, max(2, limit_bytes // row_bytes)).astype(np.int64)
        for start in range(0, len(rows), step):
            yield array[rows[start : start + step]]


def is_checked(array: Any) -> bool:
    """Return whether all values are looked at when a data set is made: in memory, or at most 1 GiB of a file."""
    if isinstance(array, LazyArray):
        return array.rows.stored and array.nbytes <= CHECKED_STORED_BYTES
    return True


def ranges_of(tree: Any, path: str, rows: range) -> dict[str, tuple[float, float]]:
    """Return the least and the largest value among rows, by path, of the arrays in memory."""
    return {
        name: (part.min().item(), part.max().item())
        for name, array in leaves(tree, path)
        if len(rows) and not isinstance(array, LazyArray) and array.dtype.kind != "c"
        for part in (array[rows.start : rows.stop],)
    }


def fingerprint_of(arrays: Any, splits: Mapping[str, range], tickets: np.ndarray | None = None) -> str:
    """Return 32 hexadecimal digits of names, shapes, types, values, splits and sampling, as `Data.fingerprint` does."""
    digest = hashlib.blake2b(digest_size=16)
    for split, rows in sorted(splits.items()):
        digest.update(f"{split} {rows.start} {rows.stop}\n".encode())
    read: dict[int, Any] = {}
    for path, array in leaves(arrays):
        digest.update(f"{path} {array.dtype.str} {array.dtype.name} {array.shape}\n".encode())
        if isinstance(array, LazyArray) and not array.rows.stored:
            if id(array.rows) not in read:
                digest.update(array.rows.identity())
                read[id(array.rows)] = array.rows.read(array.rows.hashed_rows())
            values = [array.of(read[id(array.rows)])]
        else:
            values = chunks(array, HASHED_BYTES)
        for chunk in values:
            digest.update(np.ascontiguousarray(chunk).view(np.uint8).data)
    if tickets is not None:
        digest.update(np.ascontiguousarray(tickets).data)
    return digest.hexdigest()
