"""Chains of many rows, some rows at a time: what lies between their layers stays in the caches.

Each slice is one thread's from the first layer to the last. Bits are those of the whole, but for products over 2,048
numbers or more, which are cut into sums by the number of rows (matrices.h).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from accelnet.ops.chain import CAST, RECURRENCES, STANDARDIZE, SWAP, ChainLayer, Operand

Shape = tuple[int, ...]
# The axis of rows in what a layer reads, of layers of which each row is by itself. None: any axis, where a layer takes
# number by number.
_ROW_AXES: Mapping[str, int | None] = {
    "accelnet_convolve": 1, "accelnet_multiply": 1, "accelnet_pool": 1,
    "accelnet_multiply_rounded": 1, "accelnet_convolve_rounded": 1,
    "mean": 0, "shortcut": 0, STANDARDIZE: 0, "accelnet_softmax": 0, "accelnet_argmax": 0, "add": None, CAST: None,
}  # fmt: skip
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
    layers: Sequence[ChainLayer],
    between: int,
    weights: int,
    inputs: Mapping[int, Any],
    fixed: Mapping[int, np.ndarray],
    wanted: Sequence[int],
    num_threads: int,
) -> tuple[Sequence[ChainLayer], Mapping[int, np.ndarray], int]:
    """Return layers and fixed values of a slice and the number of slices; the whole and 1 where that is faster.

    Args:
        layers: Layers of the chain.
        between: Most bytes that lie between them at a time.
        weights: Bytes of all weights.
        inputs: What comes with each call by number, or its shapes.
        fixed: What the layers read beside inputs and weights, by number.
        wanted: Numbers of the results.
        num_threads: Threads that share the slices.

    Example:
        >>> layers = [ChainLayer("add", [Operand(0, (1, 64)), Operand(0, (1, 64))], [(1, (1, 64))])]
        >>> in_slices(layers, 0, 0, {0: np.ones((64, 1))}, {}, [1], 2)[2]
        1
    """
    whole = layers, fixed, 1
    rows = {one.shape[0] if one.shape else 0 for one in inputs.values()}
    if len(rows) != 1 or 0 in rows:
        return whole
    (count,) = rows
    written = sum(4 * math.prod(shape) for layer in layers for _, shape in layer.results)
    few = rows_of_slice(between, written, weights, count, num_threads)
    if few == count:
        return whole
    cut = _Cut(count, few, dict.fromkeys(inputs, 1), fixed)
    try:
        made = [cut.layer(layer) for layer in layers]
        tables = {layer.operands[0].ref for layer in layers if layer.kind in RECURRENCES and layer.numbers[3]}
        cut.check(all(cut.ahead[ref] == 1 for ref in wanted) and not tables & set(cut.states))
    except _MixedError:
        return whole
    return made, {**fixed, **cut.states}, count // few


class _MixedError(Exception):
    """A layer is not of each row by itself, or not known to be."""


@dataclass
class _Cut:
    """Layers for a slice of the rows.

    Attributes:
        rows: Rows of the whole.
        few: Rows of the slice, which divide them.
        ahead: How many times all rows lie in a value, one after the other, by its number: once in an input, and as
            often as there are steps where those are the first axis.
        fixed: Values beside inputs.
        states: Those of a slice that have rows.
    """

    rows: int
    few: int
    ahead: dict[int, int]
    fixed: Mapping[int, np.ndarray]
    states: dict[int, np.ndarray] = field(default_factory=dict)

    def layer(self, layer: ChainLayer) -> ChainLayer:
        """Return a layer for the slice, and note how rows lie in what it gives."""
        kind, shapes = layer.kind, [one.shape for one in layer.operands]
        values = [(place, one.ref) for place, one in enumerate(layer.operands) if one.ref is not None]
        if kind in RECURRENCES:
            expected, ahead = self._of_recurrence(layer)
        else:
            self.check((kind in _ROW_AXES or kind == SWAP) and not any(ref in self.fixed for _, ref in values))
            own = {self.ahead[ref] for _, ref in values}
            self.check(len(own) == 1)
            expected = dict.fromkeys([place for place, _ in values], own.pop())
            ahead = self._swapped(shapes[0], expected[0]) if kind == SWAP else expected[values[0][0]]
            ahead = [ahead] * len(layer.results)
        axis = _ROW_AXES.get(kind)
        for place, before in expected.items():
            found = self._axis(shapes[place], before)
            self.check(axis is None or found == axis)
            shapes[place] = self._fewer(shapes[place], found)
        operands = [Operand(one.ref, shape) for one, shape in zip(layer.operands, shapes, strict=True)]
        results = [
            (ref, self._fewer(shape, self._axis(shape, before)))
            for (ref, shape), before in zip(layer.results, ahead, strict=True)
        ]
        self.ahead |= {ref: before for (ref, _), before in zip(layer.results, ahead, strict=True)}
        return replace(layer, operands=operands, results=results)

    def check(self, good: bool) -> None:
        """Give up unless this holds."""
        if not good:
            raise _MixedError

    def _of_recurrence(self, layer: ChainLayer) -> tuple[dict[int, int], list[int]]:
        """Return how rows lie in what a recurrence reads, by place, and in its results: hiddens and last states."""
        has_tokens, steps = bool(layer.numbers[3]), layer.results[0][1][1]
        states = range(1 + has_tokens, has_tokens + len(layer.results))
        expected = dict[int, int]()
        for place, one in enumerate(layer.operands):
            if one.ref is None or (has_tokens and place == 0):
                continue  # weights, and a table of them
            expected[place] = 1 if place in states else steps
            if one.ref in self.fixed:
                state = self.fixed[one.ref]
                self.check(place in states and state.size % self.rows == 0)
                state = state.reshape(self.rows, -1)
                self.check(bool((state == state[:1]).all()))
                self.states[one.ref] = state[: self.few]
            else:
                self.check(self.ahead[one.ref] == expected[place])
        return expected, [steps, *[1] * (len(layer.results) - 1)]

    def _swapped(self, shape: Shape, ahead: int) -> int:
        axis = self._axis(shape, ahead)
        self.check(axis < 2 and shape[axis] == self.rows)
        return 1 if axis else shape[1]

    def _axis(self, shape: Shape, ahead: int) -> int:
        """Return the axis of a shape in which rows lie."""
        before = 1
        for axis, size in enumerate(shape):
            self.check(ahead % before == 0)
            if ahead // before < size:
                self.check(size % (ahead // before * self.rows) == 0)
                return axis
            before *= size
        raise _MixedError

    def _fewer(self, shape: Shape, axis: int) -> Shape:
        return (*shape[:axis], shape[axis] // self.rows * self.few, *shape[axis + 1 :])
