"""Which steps of a flat program are layers of a chain.

A bias, a normalization by known statistics and relu behind a layer become a part of it.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from accelnet.ops import kernels
from accelnet.ops.chain import CAST, STANDARDIZE, SWAP, ChainLayer, Operand, Ref
from accelnet.ops.kernel_layers import layer_of_kernel, number_of
from accelnet.ops.program import Constant, Step

# What a chain reads beside float32.
_WHOLE = ("bool", "uint8", "int8", "uint16", "int16", "int32")


def source_of(ref: Any, aliases: Mapping[int, Step]) -> Any:
    """Follow a value through steps that only give it another shape.

    Example:
        >>> source_of(3, {})
        3
    """
    while isinstance(ref, int) and ref in aliases:
        ref = aliases[ref].inputs[0]
    return ref


def is_alias(step: Step) -> bool:
    """Say whether a step gives the numbers of its first operand, a value, in their order, in another shape."""
    if not step.inputs or not isinstance(step.inputs[0], int) or step.in_avals[0].size != step.out_avals[0].size:
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
        inputs: Numbers of the program's inputs.
    """

    def __init__(
        self,
        uses: Counter[int],
        aliases: Mapping[int, Step],
        is_known: Callable[[Ref], bool],
        inputs: Collection[int],
    ) -> None:
        self._uses, self._aliases, self._is_known, self._inputs = uses, aliases, is_known, inputs
        self._made: dict[int, ChainLayer] = {}  # by the number of its first result, which may be joined to
        self._results = set[int]()

    def take(self, step: Step) -> ChainLayer | bool:
        """Return the layer that a step is, or say whether it has become a part of an earlier one."""
        if any(aval.dtype == jnp.bfloat16 for aval in (*step.in_avals, *step.out_avals)):
            return False
        if step.name == "pad" and self._join_channels(step):
            return True
        if step.name in ("add", "sub", "mul", "div", "max") and self._join_elementwise(step):
            return True
        makers = {
            kernels.NAME: (self._kernel,), "add": (self._sum,), "reduce_sum": (self._pixel_sum,),
            "slice": (self._cut,), "dot_general": (self._product,), "sub": (self._first,), "mul": (self._first,),
            "convert_element_type": (self._cast,), "transpose": (self._swap,),
        }  # fmt: skip
        layer = next((made for maker in makers.get(step.name, ()) if (made := maker(step)) is not None), None)
        if layer is None:
            return False
        layer.made_of.append(step)
        self._made[layer.results[0][0]] = layer
        self._results.update(ref for ref, _ in layer.results)
        return layer

    def _kernel(self, step: Step) -> ChainLayer | None:
        return layer_of_kernel(step, self._source, self._is_known)

    def _source(self, ref: Ref) -> Ref:
        return source_of(ref, self._aliases)

    def _is_result(self, ref: Ref) -> bool:
        return isinstance(ref, int) and ref in self._results

    def _before(self, step: Step, place: int) -> ChainLayer | None:
        """Return the layer that makes an operand, if nothing else reads it and it may still become another."""
        ref = self._source(step.inputs[place])
        layer = self._made.get(ref) if isinstance(ref, int) else None
        return None if layer is None or layer.relu or self._uses[layer.results[0][0]] != 1 else layer

    def _joined(self, step: Step, layer: ChainLayer, shape: tuple[int, ...]) -> bool:
        del self._made[layer.results[0][0]]
        layer.made_of.append(step)
        layer.results[0] = (step.outputs[0], shape)
        self._made[step.outputs[0]] = layer
        self._results.add(step.outputs[0])
        return True

    def _join_elementwise(self, step: Step) -> bool:
        """Make a step a part of the layer before it."""
        for place, other in ((0, 1), (1, 0)):
            layer, with_ = self._before(step, place), step.inputs[other]
            if layer is None or step.out_avals[0].size != math.prod(layer.results[0][1]):
                continue
            if step.name == "max":
                if not (_is_zero(with_) and (layer.features or layer.kind == "add") and layer.kind != STANDARDIZE):
                    continue
                layer.relu = True
            elif layer.kind == STANDARDIZE and not _may_follow(layer, step, place):
                continue
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

    def _is_vector(self, layer: ChainLayer, step: Step, place: int) -> bool:
        """Say whether an operand has one known number for each feature, or one for all."""
        ref, aval = step.inputs[place], step.in_avals[place]
        last = aval.shape[-1] if aval.shape else 1
        if aval.size not in (1, layer.features) or last != aval.size or step.out_avals[0].dtype != jnp.float32:
            return False
        return isinstance(ref, Constant) or self._is_known(self._source(ref))

    def _sum(self, step: Step) -> ChainLayer | None:
        refs = [self._source(ref) for ref in step.inputs]
        shapes = [aval.shape for aval in step.in_avals]
        alike = shapes[0] == shapes[1] and step.out_avals[0].dtype == jnp.float32
        if not alike or any(not isinstance(ref, int) or self._is_known(ref) for ref in refs):
            return None
        if not any(map(self._is_result, refs)):
            return None
        flat = (1, math.prod(shapes[0]))
        return ChainLayer("add", [Operand(number_of(ref), flat) for ref in refs], [(step.outputs[0], flat)])

    def _pixel_sum(self, step: Step) -> ChainLayer | None:
        """Return the layer of sums over all pixels, which become means if they are divided by their number."""
        shape, source = step.in_avals[0].shape, self._source(step.inputs[0])
        is_over_pixels = len(shape) > 2 and tuple(step.params["axes"]) == tuple(range(1, len(shape) - 1))
        if not is_over_pixels or not self._is_result(source) or step.out_avals[0].dtype != jnp.float32:
            return None
        whole = (shape[0], math.prod(shape[1:-1]), shape[-1])
        return ChainLayer(
            "mean", [Operand(number_of(source), whole)], [(step.outputs[0], step.out_avals[0].shape)], (1,)
        )

    def _cut(self, step: Step) -> ChainLayer | None:
        """Return the layer of every n-th pixel of whole images."""
        shape, source = step.in_avals[0].shape, self._source(step.inputs[0])
        strides = step.params["strides"] or (1,) * len(shape)
        is_whole = not any(step.params["start_indices"]) and tuple(step.params["limit_indices"]) == shape
        if not is_whole or len(shape) != 4 or strides[0] * strides[3] != 1 or not self._is_result(source):
            return None
        return ChainLayer(
            "shortcut", [Operand(number_of(source), shape)], [(step.outputs[0], step.out_avals[0].shape)], strides[1:3]
        )

    def _cast(self, step: Step) -> ChainLayer | None:
        """Return the layer of inputs that are made float32, and standardized if that follows, or int32."""
        aval, to, source = step.in_avals[0], step.out_avals[0].dtype, self._source(step.inputs[0])
        if source not in self._inputs or aval.dtype.name not in _WHOLE:
            return None
        if to == jnp.float32:
            return self._standardizing(step, source, [])
        flat = (1, aval.size)
        is_whole = to == jnp.int32 and aval.dtype != jnp.int32
        return ChainLayer(CAST, [Operand(number_of(source), flat)], [(step.outputs[0], flat)]) if is_whole else None

    def _first(self, step: Step) -> ChainLayer | None:
        """Return the layer of inputs that are standardized."""
        source = self._source(step.inputs[0])
        if source not in self._inputs or step.in_avals[0].dtype != jnp.float32:
            return None
        layer = self._standardizing(step, source, [(step.name, self._source(step.inputs[1]))])
        return layer if step.in_avals[0].size == step.out_avals[0].size and self._is_vector(layer, step, 1) else None

    def _standardizing(self, step: Step, source: Ref, steps: list[tuple[str, Ref]]) -> ChainLayer:
        shape = step.in_avals[0].shape
        width = shape[-1] if shape else 1
        whole = (step.in_avals[0].size // max(width, 1), width)
        operands = [Operand(number_of(source), whole), Operand(None, (1, width)), Operand(None, (1, width))]
        return ChainLayer(STANDARDIZE, operands, [(step.outputs[0], whole)], features=width, steps=steps)

    def _swap(self, step: Step) -> ChainLayer | None:
        """Return the layer of the first two axes in each other's place."""
        aval, source = step.in_avals[0], self._source(step.inputs[0])
        first, *rest = (int(axis) for axis in step.params["permutation"])
        swaps = [first, *rest] == [1, 0, *range(2, len(aval.shape))]
        if not swaps or aval.dtype not in (jnp.float32, jnp.int32) or not isinstance(source, int):
            return None
        if self._is_known(source):
            return None
        a, b, width = aval.shape[0], aval.shape[1], math.prod(aval.shape[2:])
        return ChainLayer(SWAP, [Operand(source, (a, b, width))], [(step.outputs[0], (b, a, width))])

    def _product(self, step: Step) -> ChainLayer | None:
        """Return the layer of a product that is too small for a kernel of its own."""
        rows, weights = step.in_avals
        plain = step.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
        floats = rows.dtype == weights.dtype == step.out_avals[0].dtype == jnp.float32
        source = self._source(step.inputs[0])
        follows = self._is_result(source) or source in self._inputs
        if not (plain and floats and rows.ndim == weights.ndim == 2 and follows):
            return None
        if not self._is_known(step.inputs[1]):
            return None
        (m, k), n = rows.shape, weights.shape[1]
        operands = [Operand(number_of(source), (1, m, k)), Operand(None, (1, k, n))]
        result = (step.outputs[0], (1, m, n))
        return ChainLayer("accelnet_multiply", operands, [result], (0, 0, 0), [step.inputs[1]], (0, 0, k, n), n)


def _may_follow(layer: ChainLayer, step: Step, place: int) -> bool:
    """Say whether a step can stand behind those of a standardization: a shift, then a scale, as they are computed."""
    names = [name for name, _ in layer.steps]
    return (step.name == "sub" and place == 0 and not names) or (step.name == "mul" and "mul" not in names)


def _is_zero(ref: Ref) -> bool:
    return isinstance(ref, Constant) and not np.any(ref.value)
