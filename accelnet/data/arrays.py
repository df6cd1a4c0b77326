"""Nested dicts of arrays with one leading axis: walking over them, reading them by blocks, checking them."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from accelnet.errors import UserError

# Reading a gigabyte from a disk takes seconds, and a memmap is used because reading all of it is too dear.
CHECKED_MEMMAP_BYTES = 1 << 30
CHUNK_BYTES = 1 << 24


def as_numpy(tree: Any, path: str) -> Any:
    """Return the arrays as NumPy arrays in plain dicts (other mappings are leaves to `jax.tree`).

    Args:
        tree: array, or mapping of names to trees.
        path: what it is called in messages.

    Returns:
        The same structure; arrays that are NumPy's already, memmaps too, are not copied.

    Raises:
        UserError: if a mapping is empty or an array holds anything but numbers and booleans.

    Example:
        >>> as_numpy({"a": [1, 2]}, "arrays")
        {'a': array([1, 2])}
    """
    if isinstance(tree, Mapping):
        if not tree:
            raise UserError(f"{path} is empty, expected arrays")
        return {key: as_numpy(value, f"{path}[{key!r}]") for key, value in tree.items()}
    array = tree if isinstance(tree, np.ndarray) else np.asarray(tree)
    # bfloat16 and float8 are of kind V.
    if array.dtype.kind not in "biufc" and not array.dtype.name.startswith(("bfloat", "float")):
        raise UserError(f"{path} has dtype {array.dtype}, expected numbers or booleans")
    return array


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to every array.

    Args:
        function: array -> anything.
        tree: array, or mapping of names to trees.

    Returns:
        The results in the same structure.

    Example:
        >>> map_leaves(len, {"a": [1, 2], "b": [3]})
        {'a': 2, 'b': 1}
    """
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    return function(tree)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every array with its path, in the order of the names.

    Args:
        tree: array, or mapping of names to trees.
        path: of the tree itself.

    Yields:
        (path, array), the names along the path joined by dots.

    Example:
        >>> list(leaves({"b": 1, "a": {"c": 2}}))
        [('a.c', 2), ('b', 1)]
    """
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from leaves(tree[key], f"{path}.{key}" if path else key)
    else:
        yield path, tree


def chunks(array: np.ndarray, limit_bytes: int | None = None) -> Iterator[np.ndarray]:
    """Yield the array by blocks of rows of about 16 MiB, so that a memmap needs no more memory.

    Args:
        array: [N, ...].
        limit_bytes: of a larger array, yield evenly spaced rows of so many bytes, first and last included.

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


def check_leading_axes(name: str, arrays: Any) -> None:
    """Raise UserError unless every array has the same number of rows."""
    shapes = {path: array.shape for path, array in leaves(arrays)}
    for path, shape in shapes.items():
        if not shape:
            raise UserError(f"data {name!r}: {path} is a single number, expected a leading axis of rows")
    if len({shape[0] for shape in shapes.values()}) > 1:
        rows = ", ".join(f"{path} has {shape[0]}" for path, shape in shapes.items())
        raise UserError(f"data {name!r} has unequal numbers of rows: {rows}")


def check_splits(name: str, splits: Mapping[str, range], num_rows: int) -> None:
    """Raise UserError unless the splits are disjoint ranges of the rows and one is for training."""
    for split, rows in splits.items():
        if not isinstance(rows, range) or rows.step != 1:
            raise UserError(f"data {name!r}: split {split!r} is {rows!r}, expected a range with step 1")
        if len(rows) and not 0 <= rows.start < rows.stop <= num_rows:
            raise UserError(f"data {name!r}: split {split!r} is {rows!r}, outside of the {num_rows} rows")
    if not len(splits.get("train", range(0))):
        raise UserError(f"data {name!r} has no training rows: {num_rows} rows, splits {splits or 'none'}")
    used = sorted((rows.start, rows.stop, split) for split, rows in splits.items() if len(rows))
    for (_, stop, first), (start, _, second) in pairwise(used):
        if start < stop:
            raise UserError(f"data {name!r}: splits {first!r} and {second!r} overlap from row {start} on")


def check_finite(name: str, arrays: Any) -> None:
    """Raise UserError if a value is NaN or infinite. Memmaps above 1 GiB are not read."""
    for path, array in leaves(arrays):
        if array.dtype.kind in "biu" or not _is_checked(array):
            continue
        start = 0
        for chunk in chunks(array):
            good = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
            if not good.all():
                row = start + int(np.argmin(good))
                raise UserError(f"data {name!r}: {path} is NaN or infinite in row {row}: remove or fill such rows")
            start += len(chunk)


def check_labels(name: str, targets: Any, num_classes: int) -> None:
    """Raise UserError if integer targets are not in [0, num_classes). Memmaps above 1 GiB are not read."""
    for path, array in leaves(targets, "targets"):
        if array.dtype.kind not in "iu" or not _is_checked(array) or not array.size:
            continue
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= num_classes:
            raise UserError(
                f"data {name!r}: {path} hold labels {low} to {high}, expected 0 to {num_classes - 1} "
                f"for num_classes={num_classes}"
            )


def _is_checked(array: np.ndarray) -> bool:
    return not isinstance(array, np.memmap) or array.nbytes <= CHECKED_MEMMAP_BYTES
