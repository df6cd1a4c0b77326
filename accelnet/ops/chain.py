"""Layers of a flat program that are one call of the kernels' library: `accelnet_chain` in kernels.cc.

A bias, a normalization by known statistics and relu behind a layer become a part of it.
"""

import math
from collections import Counter
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
LAYERS = ("accelnet_convolve", "accelnet_multiply", "accelnet_recur", "accelnet_pool", "add", "mean", "shortcut")
_ARGUMENT, _RESULT, _BETWEEN = range(3)
_ALIGNED = 16  # floats of a cache line


@dataclass
class Operand:
    """An array of a layer: a value of the program, as a layer reads it, or weights of its own by number.

    Attributes:
        ref: Number of the value, None for one of `Layer.weights`.
        shape: Its shape as the layer reads it.
    """

    ref: int | None
    shape: tuple[int, ...]


@dataclass
class Layer:
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

    @property
    def has_finish(self) -> bool:
        return bool(self.steps) or (self.relu and self.features > 0)

    def early(self, read: Callable[[Ref], Array]) -> list[Array]:
        """Compute the arrays that it needs of its weights: prepared weights, others, and a bias."""
        arrays = [read(ref) for ref in self.weights]
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
            columns = scale[:, None] if is_transposed else scale
            arrays[0] = arrays[0] * columns.reshape((1,) * (arrays[0].ndim - columns.ndim) + columns.shape)
        if self.prepares is not None and (size := kernels.prepared_size(self.prepares)):
            shape = jax.ShapeDtypeStruct((1, size), jnp.float32)
            preparation = kernels.Kernel("accelnet_prepare", self.prepares, tuple)
            arrays[:1] = kernels.call_library(preparation, [shape], arrays[0])
        return [*arrays, bias[None]] if self.has_finish else arrays


def source_of(ref: Ref, aliases: Mapping[int, Step]) -> Ref:
    """Follow a value through steps that only give it another shape.

    Example:
        >>> source_of(3, {})
        3
    """
    while isinstance(ref, int) and ref in aliases:
        ref = aliases[ref].inputs[0]
    return ref


def is_alias(step: Step) -> bool:
    """Say whether a step gives the numbers of its first operand in their order, in another shape."""
    if not step.in_avals or step.in_avals[0].size != step.out_avals[0].size:
        return False
    if step.in_avals[0].dtype != step.out_avals[0].dtype:
        return False
    if step.name == "transpose":
        shape = step.in_avals[0].shape
        moved = [axis for axis in step.params["permutation"] if shape[axis] > 1]
        return moved == sorted(moved)
    if step.name == "pad":
        return not np.any(step.params["padding_config"])
    return step.name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "name", "slice", "copy")


class Layers:
    """The layers of a program that the library can compute, found as its steps are offered in their order.

    Args:
        uses: How often each value is read, those read through steps of `aliases` as well.
        aliases: Steps that only give a value another shape, by the number of their result.
        is_known: Whether a value is made of weights alone.
    """

    def __init__(self, uses: Counter[int], aliases: Mapping[int, Step], is_known: Callable[[Ref], bool]) -> None:
        self._uses, self._aliases, self._is_known = uses, aliases, is_known
        self._made: dict[int, Layer] = {}

    def take(self, step: Step) -> Layer | None | bool:
        """Return the layer that a step is, True if it has become a part of an earlier one, None if it is neither."""
        if any(aval.dtype == jnp.bfloat16 for aval in (*step.in_avals, *step.out_avals)):
            return None
        if step.name == kernels.NAME:
            return self._new(_of_kernel(step, self._source, self._is_known))
        joins = {"pad": self._join_channels, "max": self._join_elementwise, "div": self._join_elementwise,
                 "sub": self._join_elementwise, "mul": self._join_elementwise, "add": self._join_elementwise}  # fmt: skip
        if step.name in joins and joins[step.name](step):
            return True
        makers = {"add": self._sum, "reduce_sum": self._pixel_sum, "slice": self._cut, "dot_general": self._product}
        return self._new(makers[step.name](step)) if step.name in makers else None

    def _new(self, layer: Layer | None) -> Layer | None:
        if layer is not None:
            self._made[layer.results[0][0]] = layer
        return layer

    def _source(self, ref: Ref) -> Ref:
        return source_of(ref, self._aliases)

    def _before(self, step: Step, place: int) -> Layer | None:
        """Return the layer that makes an operand, if nothing else reads it and it may still become another."""
        ref = self._source(step.inputs[place])
        layer = self._made.get(ref) if isinstance(ref, int) else None
        return None if layer is None or layer.relu or self._uses[ref] != 1 else layer

    def _joined(self, step: Step, layer: Layer, shape: tuple[int, ...]) -> bool:
        del self._made[layer.results[0][0]]
        layer.results[0] = (step.outputs[0], shape)
        self._made[step.outputs[0]] = layer
        return True

    def _join_elementwise(self, step: Step) -> bool:
        """Make a step a part of the layer before it."""
        for place, other in ((0, 1), (1, 0)):
            layer, with_ = self._before(step, place), step.inputs[other]
            if layer is None or step.out_avals[0].size != math.prod(layer.results[0][1]):
                continue
            if step.name == "max":
                if not (_is_zero(with_) and (layer.features or layer.kind == "add")):
                    continue
                layer.relu = True
            elif layer.kind == "mean" and step.name == "div" and place == 0:
                pixels = layer.operands[0].shape[1]
                if layer.numbers != (1,) or not isinstance(with_, Constant) or not np.all(with_.value == pixels):
                    continue
                layer.numbers = (pixels,)
            elif layer.features and (place == 0 or step.name in ("add", "mul")) and self._is_vector(layer, step, other):
                layer.steps.append((step.name, self._source(with_)))
            else:
                continue
            return self._joined(step, layer, layer.results[0][1])
        return False

    def _join_channels(self, step: Step) -> bool:
        """Make channels of zeros a part of the cut that they stand behind."""
        layer = self._before(step, 0)
        *rest, last = (tuple(map(int, one)) for one in step.params["padding_config"])
        only_behind = not any(map(any, rest)) and last[0] == last[2] == 0 <= last[1]
        if layer is None or layer.kind != "shortcut" or not only_behind or not _is_zero(step.inputs[1]):
            return False
        return self._joined(step, layer, step.out_avals[0].shape)

    def _is_vector(self, layer: Layer, step: Step, place: int) -> bool:
        """Say whether an operand has one known number for each feature, or one for all."""
        ref, aval = step.inputs[place], step.in_avals[place]
        if isinstance(ref, Constant):
            return np.size(ref.value) == 1
        ref = self._source(ref)
        last = aval.shape[-1] if aval.shape else 1
        return self._is_known(ref) and aval.size in (1, layer.features) and last == aval.size

    def _sum(self, step: Step) -> Layer | None:
        refs = [self._source(ref) for ref in step.inputs]
        shapes = [aval.shape for aval in step.in_avals]
        alike = shapes[0] == shapes[1] and step.out_avals[0].dtype == jnp.float32
        if not alike or any(not isinstance(ref, int) or self._is_known(ref) for ref in refs):
            return None
        if not any(ref in self._made for ref in refs):
            return None
        flat = (1, math.prod(shapes[0]))
        return Layer("add", [Operand(ref, flat) for ref in refs], [(step.outputs[0], flat)])

    def _pixel_sum(self, step: Step) -> Layer | None:
        """Return the layer of sums over all pixels, which become means if they are divided by their number."""
        shape, source = step.in_avals[0].shape, self._source(step.inputs[0])
        is_over_pixels = len(shape) > 2 and tuple(step.params["axes"]) == tuple(range(1, len(shape) - 1))
        if not is_over_pixels or source not in self._made or step.out_avals[0].dtype != jnp.float32:
            return None
        whole = (shape[0], math.prod(shape[1:-1]), shape[-1])
        return Layer("mean", [Operand(source, whole)], [(step.outputs[0], step.out_avals[0].shape)], (1,))

    def _cut(self, step: Step) -> Layer | None:
        """Return the layer of every n-th pixel of whole images."""
        shape, source = step.in_avals[0].shape, self._source(step.inputs[0])
        strides = step.params["strides"] or (1,) * len(shape)
        is_whole = not any(step.params["start_indices"]) and tuple(step.params["limit_indices"]) == shape
        if not is_whole or len(shape) != 4 or strides[0] * strides[3] != 1 or source not in self._made:
            return None
        return Layer("shortcut", [Operand(source, shape)], [(step.outputs[0], step.out_avals[0].shape)], strides[1:3])

    def _product(self, step: Step) -> Layer | None:
        """Return the layer of a product that is too small for a kernel of its own."""
        rows, weights = step.in_avals
        plain = step.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
        floats = rows.dtype == weights.dtype == step.out_avals[0].dtype == jnp.float32
        source = self._source(step.inputs[0])
        if not (plain and floats and rows.ndim == weights.ndim == 2 and source in self._made):
            return None
        if not self._is_known(step.inputs[1]):
            return None
        (m, k), n = rows.shape, weights.shape[1]
        return Layer(
            "accelnet_multiply", [Operand(source, (1, m, k)), Operand(None, (1, k, n))],  # pyright: ignore
            [(step.outputs[0], (1, m, n))], (0, 0, 0), [step.inputs[1]], (0, 0, k, n), n,
        )  # fmt: skip


def _is_zero(ref: Ref) -> bool:
    return isinstance(ref, Constant) and not np.any(ref.value)


_LSTM = 1  # of `Cell` in recurrence.h


def _of_kernel(step: Step, source: Callable[[Ref], Ref], is_known: Callable[[Ref], bool]) -> Layer | None:
    """Return the layer of a step that is a kernel, if there is one and its weights are known."""
    kernel = step.params["kernel"]
    kind, numbers = kernel.target, tuple(kernel.numbers)
    shapes = [tuple(aval.shape) for aval in step.in_avals]
    if kind not in LAYERS or any(shape[0] != 1 for shape in shapes) or isinstance(kernel.meaning, kernels.Rounding):
        return None
    results = list(zip(step.outputs, (tuple(aval.shape) for aval in step.out_avals), strict=True))
    places, prepares, features = range(1, 2), None, shapes[1][-1] if len(shapes) > 1 else 0
    if kind == "accelnet_multiply":
        if numbers[0]:
            return None
        _, rows, columns = shapes[1]
        features = rows if numbers[1] else columns
        prepares, numbers = (0, numbers[1], *((columns, rows) if numbers[1] else (rows, columns))), (*numbers, 0)
    elif kind == "accelnet_convolve":
        prepares = (1, *shapes[0], *results[0][1], *numbers)
    elif kind == "accelnet_recur":
        if numbers[2]:
            return None
        first = 2 + numbers[3] + (numbers[0] == _LSTM)  # behind inputs, tokens, state and memory
        places, features = range(first, first + 1 + numbers[4]), 0
        prepares, numbers = (0, 0, *shapes[first][1:]), (*numbers, 0)
    else:
        places = range(0)
    refs = [source(ref) for ref in step.inputs]
    if not all(is_known(refs[place]) for place in places):
        return None
    if any(not isinstance(ref, int) or is_known(ref) for place, ref in enumerate(refs) if place not in places):
        return None
    operands = [
        Operand(None if place in places else ref, shape)  # pyright: ignore[reportArgumentType]
        for place, (ref, shape) in enumerate(zip(refs, shapes, strict=True))
    ]
    weights = [step.inputs[place] for place in places]
    return Layer(kind, operands, results, numbers, weights, prepares, features)


def call(
    layers: Sequence[Layer], weights: Sequence[Sequence[Array]], values: Mapping[int, Array], wanted: Mapping[int, Any]
) -> dict[int, Array]:
    """Compute layers in one call.

    Args:
        layers: The layers, in their order.
        weights: What `Layer.early` gave for each.
        values: Values that come from outside, by number.
        wanted: Shapes and dtypes of the values that are read outside, by number.

    Returns:
        The wanted values, by number.
    """
    given = list(values)
    arrays = [values[ref] for ref in given]
    places: dict[int, tuple[int, int]] = {ref: (_ARGUMENT, index) for index, ref in enumerate(given)}
    places |= {ref: (_RESULT, index) for index, ref in enumerate(wanted)}
    between = _Memory(layers, {*given, *wanted})
    code = list[int]()
    for position, (layer, own) in enumerate(zip(layers, weights, strict=True)):
        left = [(_ARGUMENT, len(arrays) + index) for index in range(len(own))]
        shapes = [array.shape for array in own]
        arrays += own
        code += [LAYERS.index(layer.kind), len(layer.operands) + layer.has_finish]
        for operand in layer.operands:
            if operand.ref is None:
                # Prepared weights have another shape than those that they are made of.
                code += _array(left.pop(0), shapes.pop(0))
            else:
                code += _array(places[operand.ref], operand.shape)
        if layer.has_finish:
            code += _array(left.pop(0), shapes.pop(0))
        places |= between.give(position)
        code += [len(layer.results), *(number for ref, shape in layer.results for number in _array(places[ref], shape))]
        numbers = layer.numbers
        numbers = (*numbers, int(layer.relu)) if layer.has_finish or layer.kind == "add" else numbers
        code += [len(numbers), *numbers]
        between.take_back(position)
    numbers = np.array([between.size, len(layers), *code], np.int64)
    results = jax.ffi.ffi_call("accelnet_chain", list(wanted.values()))(*arrays, numbers=numbers)
    return dict(zip(wanted, results, strict=True))


def _array(place: tuple[int, int], shape: Sequence[int]) -> list[int]:
    return [*place, len(shape), *map(int, shape)]


class _Memory:
    """The memory between layers: each value has its place from the layer that makes it to the last that reads it."""

    def __init__(self, layers: Sequence[Layer], outside: set[int]) -> None:
        self.size = 0
        self._layers, self._outside = layers, outside
        self._last = {
            operand.ref: position for position, layer in enumerate(layers) for operand in layer.operands
        }
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
