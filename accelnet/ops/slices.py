"""Chains of many rows, some rows at a time: what lies between their layers stays in the caches.

Each slice is one thread's from the first layer to the last. Bits are those of the whole, but for products over 2,048
numbers or more, which are cut into sums by the number of rows (matrices.h).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelnet.ops.chain import CAST, STANDARDIZE, ChainLayer, Operand

Shape = tuple[int, ...]
# The axis of rows in what a layer reads and writes, of layers of which each row is by itself. None: of what a layer
# takes number by number, the first axis of more than one.
_ROW_AXES: Mapping[str, int | None] = {
    "accelnet_convolve": 1, "accelnet_multiply": 1, "accelnet_pool": 1,
    "accelnet_multiply_rounded": 1, "accelnet_convolve_rounded": 1,
    "mean": 0, "shortcut": 0, STANDARDIZE: 0, "accelnet_softmax": 0, "accelnet_argmax": 0, "add": None, CAST: None,
}  # fmt: skip
_FROM_ROWS = frozenset({"accelnet_softmax", "accelnet_argmax"})  # whose results have axes of their own
_MOST_BYTES = 1 << 20  # of what lies between the layers of a slice, as large as the second cache of a thread
# With fewer, small images had another program of their convolutions (winograd.h), with weights prepared otherwise.
_FEWEST_ROWS = 8
_MANY = 4  # slices of a thread; with fewer, each has as many as the others, so that they end together


def rows_of_slice(between: int, written: int, weights: int, rows: int, num_threads: int) -> int:
    """Return of how many rows slices are fastest, all rows where that is the whole.

    Args:
        between: Most bytes that lie between the layers at a time.
        written: Bytes that all layers write. Slices read all weights again, so it has to be more than that.
        weights: Bytes of all weights.
        rows: Rows of the chain's inputs.
        num_threads: Threads that share the slices.

    Example:
        >>> rows_of_slice(32 << 20, 64 << 20, 1 << 20, 256, 2), rows_of_slice(1 << 20, 2 << 20, 1 << 20, 256, 2)
        (8, 256)
    """
    if between <= _MOST_BYTES:
        return rows
    most = min(rows // _FEWEST_ROWS, written // max(weights, 1))
    numbers = [
        number
        for number in range(num_threads, most + 1)
        if rows % number == 0 and (number % num_threads == 0 or number >= _MANY * num_threads)
    ]
    enough = [number for number in numbers if between <= number * _MOST_BYTES]
    return rows // (enough[:1] or numbers[-1:] or [1])[0]


def in_slices(
    layers: Sequence[ChainLayer], between: int, weights: int, inputs: Sequence[Any], num_threads: int
) -> tuple[Sequence[ChainLayer], int]:
    """Return the layers of a slice and the number of slices; of the whole and 1 where that is faster, or all there is.

    Args:
        layers: Layers of the chain.
        between: Most bytes that lie between them at a time.
        weights: Bytes of all weights.
        inputs: What comes with each call, or its shapes.
        num_threads: Threads that share the slices.

    Example:
        >>> import numpy as np
        >>> layers = [ChainLayer("add", [Operand(0, (1, 64)), Operand(0, (1, 64))], [(1, (1, 64))])]
        >>> in_slices(layers, 0, 0, [np.ones((64, 1))], 2)[1]
        1
    """
    rows = {one.shape[0] if one.shape else 0 for one in inputs}
    if len(rows) != 1 or 0 in rows:
        return layers, 1
    (count,) = rows
    written = sum(4 * math.prod(shape) for layer in layers for _, shape in layer.results)
    few = rows_of_slice(between, written, weights, count, num_threads)
    made = sliced(layers, count, few) if few < count else None
    return (layers, 1) if made is None else (made, count // few)


def sliced(layers: Sequence[ChainLayer], rows: int, few: int) -> list[ChainLayer] | None:
    """Return the layers for a slice of the rows, None where a layer is not of each row by itself.

    Args:
        layers: Layers for all rows.
        rows: Rows of the chain's inputs.
        few: Rows of the slice, which divide them.

    Example:
        >>> layers = [ChainLayer("add", [Operand(0, (1, 12)), Operand(1, (1, 12))], [(2, (1, 12))])]
        >>> sliced(layers, 6, 2)[0].results, sliced(layers, 8, 2)
        ([(2, (1, 4))], None)
    """
    made = []
    for layer in layers:
        if layer.kind not in _ROW_AXES:
            return None
        axis = _ROW_AXES[layer.kind]
        operands = [one.shape if one.ref is None else _of_rows(one.shape, axis, rows, few) for one in layer.operands]
        own_axis = None if layer.kind in _FROM_ROWS else axis
        results = [_of_rows(shape, own_axis, rows, few) for _, shape in layer.results]
        if None in operands or None in results:
            return None
        made.append(
            replace(
                layer,
                operands=[Operand(one.ref, shape or ()) for one, shape in zip(layer.operands, operands, strict=True)],
                results=[(ref, shape or ()) for (ref, _), shape in zip(layer.results, results, strict=True)],
            )
        )
    return made


def _of_rows(shape: Shape, axis: int | None, rows: int, few: int) -> Shape | None:
    """Return the shape of an array with fewer rows, each of them a part without gaps; None if it is not of rows."""
    if axis is None:
        axis = next((number for number, size in enumerate(shape) if size > 1), 0)
    if len(shape) <= axis or math.prod(shape[:axis]) != 1 or shape[axis] % rows:
        return None
    return (*shape[:axis], shape[axis] // rows * few, *shape[axis + 1 :])
