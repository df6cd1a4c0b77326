"""Layers that are one call of the kernels' library: `accelnet_chain` in kernels.cc."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from accelnet.ops import kernels
from accelnet.ops.program import Constant, Step

Ref = int | Constant
# In the order of kernels.cc.
STANDARDIZE, CAST, SWAP = "standardize", "cast", "swap"
LAYERS = (
    "accelnet_convolve", "accelnet_multiply", "accelnet_recur", "accelnet_pool", "add", "mean", "shortcut",
    "accelnet_multiply_rounded", "accelnet_convolve_rounded", "accelnet_recur_rounded", STANDARDIZE, CAST, SWAP,
    "accelnet_softmax", "accelnet_argmax",
)  # fmt: skip
# Layers with weights of few bits, whose columns have scales of their own.
ROUNDED = frozenset({"accelnet_multiply_rounded", "accelnet_convolve_rounded", "accelnet_recur_rounded"})
RECURRENCES = frozenset({"accelnet_recur", "accelnet_recur_rounded"})
# Layers that are worth a call only beside others: XLA joins their steps to those around them.
LIGHT = frozenset({"add", "mean", "shortcut", STANDARDIZE, CAST, SWAP, "accelnet_softmax", "accelnet_argmax"})
_ARGUMENT, _RESULT, _BETWEEN = range(3)
_ALIGNED = 16  # floats of a cache line


@dataclass
class Operand:
    """An array of a layer: a value of the program, as a layer reads it, or weights of its own by number.

    Attributes:
        ref: Number of the value, None for one of `ChainLayer.weights`.
        shape: Its shape as the layer reads it.
    """

    ref: int | None
    shape: tuple[int, ...]


@dataclass
class ChainLayer:
    """A layer of a chain.

    Attributes:
        kind: One of `LAYERS`.
        operands: What it reads; weights stand where it expects them.
        results: Numbers of the values that it gives, with their shapes as the layer writes them.
        numbers: Its settings.
        weights: References of weights that are known, in the order of operands without a number.
        prepares: What `accelnet_prepare` is told of the first of the weights, None if they stay as they are.
        features: Size of the last axis where known vectors can be joined to it, 0 if they cannot.
        steps: What is joined: "mul", "add", "sub" or "div", by a known vector or number.
        relu: Whether what is negative becomes 0 at last.
        made_of: Steps of the program that it is.
    """

    kind: str
    operands: list[Operand]
    results: list[tuple[int, tuple[int, ...]]]
    numbers: tuple[int, ...] = ()
    weights: list[Ref] = field(default_factory=list)
    prepares: tuple[int, ...] | None = None
    features: int = 0
    steps: list[tuple[str, Ref]] = field(default_factory=list)
    relu: bool = False
    made_of: list[Step] = field(default_factory=list)

    @property
    def has_finish(self) -> bool:
        return self.kind != STANDARDIZE and (bool(self.steps) or (self.relu and self.features > 0))

    def early(self, read: Callable[[Ref], Array]) -> list[Array]:
        """Compute the arrays that it needs of its weights: prepared weights, others, and a bias."""
        arrays = [read(ref) for ref in self.weights]
        if self.kind == STANDARDIZE:
            # Not joined to a scale and a bias, which would round otherwise.
            given = {name: read(ref).astype(jnp.float32).reshape(-1) for name, ref in self.steps}
            pair = given.get("sub", jnp.zeros(1)), given.get("mul", jnp.ones(1))
            return [jnp.broadcast_to(one.astype(jnp.float32), (1, self.features)) for one in pair]
        scale, bias = jnp.ones(self.features, jnp.float32), jnp.zeros(self.features, jnp.float32)
        for name, ref in self.steps:
            vector = jnp.broadcast_to(read(ref).reshape(-1), (self.features,)).astype(jnp.float32)
            if name in ("mul", "div"):
                by = vector if name == "mul" else 1 / vector
                scale, bias = scale * by, bias * by
            else:
                bias = bias + vector if name == "add" else bias - vector
        if any(name in ("mul", "div") for name, _ in self.steps):
            is_transposed = self.kind == "accelnet_multiply" and self.numbers[1]
            columns, place = scale[:, None] if is_transposed else scale, int(self.kind in ROUNDED)
            arrays[place] = arrays[place] * columns.reshape((1,) * (arrays[place].ndim - columns.ndim) + columns.shape)
        if self.prepares is not None and (size := kernels.prepared_size(self.prepares)):
            shape = jax.ShapeDtypeStruct((1, size), jnp.float32)
            preparation = kernels.Kernel("accelnet_prepare", self.prepares, lambda *arrays: arrays)
            arrays[:1] = kernels.call_library(preparation, [shape], arrays[0])
        return [*arrays, bias[None]] if self.has_finish else arrays


def call(
    layers: Sequence[ChainLayer],
    weights: Sequence[Sequence[Array]],
    values: Mapping[int, Array],
    wanted: Mapping[int, Any],
) -> dict[int, Array]:
    """Compute layers in one call.

    Args:
        layers: The layers, in their order.
        weights: What `ChainLayer.early` gave for each.
        values: Values that come from outside, by number.
        wanted: Shapes and dtypes of the values that are read outside, by number.

    Returns:
        The wanted values, by number.
    """
    own = [array for arrays in weights for array in arrays]
    shapes = [[array.shape for array in arrays] for arrays in weights]
    numbers = encode(layers, shapes, list(values), list(wanted))
    results = jax.ffi.ffi_call("accelnet_chain", list(wanted.values()))(*values.values(), *own, numbers=numbers)
    return dict(zip(wanted, results, strict=True))


def encode(
    layers: Sequence[ChainLayer],
    weights: Sequence[Sequence[tuple[int, ...]]],
    given: Sequence[int],
    wanted: Sequence[int],
) -> np.ndarray:
    """Return the numbers that tell the library a chain, whose arguments are the given values and then all weights.

    Args:
        layers: The layers, in their order.
        weights: Shapes of what `ChainLayer.early` gave for each.
        given: Numbers of the values that come from outside.
        wanted: Numbers of the values that are read outside, its results.
    """
    places: dict[int, tuple[int, int]] = {ref: (_ARGUMENT, index) for index, ref in enumerate(given)}
    places |= {ref: (_RESULT, index) for index, ref in enumerate(wanted)}
    between, next_weight = _Memory(layers, {*given, *wanted}), len(given)
    code = list[int]()
    for position, (layer, own) in enumerate(zip(layers, weights, strict=True)):
        # Prepared weights have another shape than those that they are made of.
        left = [((_ARGUMENT, next_weight + index), shape) for index, shape in enumerate(own)]
        next_weight += len(own)
        code += [LAYERS.index(layer.kind), len(layer.operands) + layer.has_finish]
        for operand in layer.operands:
            code += _array(*left.pop(0)) if operand.ref is None else _array(places[operand.ref], operand.shape)
        if layer.has_finish:
            code += _array(*left.pop(0))
        places |= between.give(position)
        code += [len(layer.results), *(number for ref, shape in layer.results for number in _array(places[ref], shape))]
        numbers = layer.numbers
        numbers = (*numbers, int(layer.relu)) if layer.has_finish or layer.kind == "add" else numbers
        code += [len(numbers), *numbers]
        between.take_back(position)
    return np.array([between.size, len(layers), *code], np.int64)


def _array(place: tuple[int, int], shape: Sequence[int]) -> list[int]:
    return [*place, len(shape), *map(int, shape)]


class _Memory:
    """The memory between layers: each value has its place from the layer that makes it to the last that reads it."""

    def __init__(self, layers: Sequence[ChainLayer], outside: set[int]) -> None:
        self.size = 0
        self._layers, self._outside = layers, outside
        self._last = {operand.ref: position for position, layer in enumerate(layers) for operand in layer.operands}
        self._held: dict[int, tuple[int, int]] = {}

    def give(self, position: int) -> dict[int, tuple[int, int]]:
        """Give places to what a layer makes."""
        made = {}
        for ref, shape in self._layers[position].results:
            if ref in self._outside:
                continue
            size = math.ceil(math.prod(shape) / _ALIGNED) * _ALIGNED
            begin = 0
            for start, end in sorted(self._held.values()):
                if begin + size <= start:
                    break
                begin = max(begin, end)
            self._held[ref] = (begin, begin + size)
            self.size = max(self.size, begin + size)
            made[ref] = (_BETWEEN, begin)
        return made

    def take_back(self, position: int) -> None:
        """Free the places of what no later layer reads."""
        self._held = {ref: place for ref, place in self._held.items() if self._last.get(ref, -1) > position}
