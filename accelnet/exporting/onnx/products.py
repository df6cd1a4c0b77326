"""Matrix products and convolutions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from accelnet.exporting.onnx.graph import Graph, Value, constant
from accelnet.exporting.onnx.rules import UnsupportedError, cast, made, rule, scalar
from accelnet.exporting.onnx.shapes import padded


@rule("dot_general")
def _dot(graph: Graph, step: Any, lhs: Value, rhs: Value) -> Value:
    (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = step.params["dimension_numbers"]
    dtype = step.out_avals[0].dtype
    lhs, rhs = (_as_type(graph, value, dtype) for value in (lhs, rhs))
    lhs_free = [axis for axis in lhs.layout if axis not in (*lhs_axes, *lhs_batch)]
    rhs_free = [axis for axis in range(rhs.rank) if axis not in (*rhs_axes, *rhs_batch)]
    if not lhs_batch and len(lhs_axes) == 1 and len(rhs_free) == 1 and lhs_free:
        # [..., k] by [k, n], in whichever order the axes before k lie.
        left = graph.tensor(lhs, [*lhs_free, *lhs_axes])
        right = graph.tensor(rhs, [*rhs_axes, *rhs_free])
        order = sorted(lhs_free)
        layout = [*(order.index(axis) for axis in lhs_free), len(lhs_free)]
        return made(graph.add("MatMul", left, right), step.out_avals[0], layout)
    lhs_free = sorted(lhs_free)
    sizes = [[value.shape[axis] for axis in axes] for value, axes in ((lhs, lhs_free), (rhs, rhs_free))]
    batch = [lhs.shape[axis] for axis in lhs_batch]
    depth = [lhs.shape[axis] for axis in lhs_axes]
    left = _grouped(graph, graph.tensor(lhs, [*lhs_batch, *lhs_free, *lhs_axes]), batch, sizes[0], depth)
    right = _grouped(graph, graph.tensor(rhs, [*rhs_batch, *rhs_axes, *rhs_free]), batch, depth, sizes[1])
    name = graph.add("MatMul", left, right)
    if len(sizes[0]) != 1 or len(sizes[1]) != 1:
        name = graph.reshape(name, [*batch, *sizes[0], *sizes[1]])
    return made(name, step.out_avals[0])


def _as_type(graph: Graph, value: Value, dtype: Any) -> Value:
    if value.dtype == dtype:
        return value
    if value.constant is not None:
        return constant(value.constant.astype(dtype), value.shape)
    return replace(value, name=cast(graph, value.name, dtype), dtype=dtype)


def _grouped(graph: Graph, tensor: str, batch: list[Any], rows: list[Any], columns: list[Any]) -> str:
    """Make one axis each of the rows and of the columns of a tensor [*batch, *rows, *columns]."""
    if len(rows) == 1 and len(columns) == 1:
        return tensor
    return graph.reshape(tensor, [*batch, math.prod(rows), math.prod(columns)])


@rule("conv_general_dilated")
def _convolution(graph: Graph, step: Any, lhs: Value, rhs: Value) -> Value:
    params = step.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if params["batch_group_count"] != 1:
        raise UnsupportedError("groups the batch of a convolution")
    if not np.issubdtype(step.out_avals[0].dtype, np.floating):
        raise UnsupportedError(f"convolves {lhs.dtype}: convert to float32 before")
    padding, between = [tuple(pair) for pair in params["padding"]], params["lhs_dilation"]
    spatial = numbers.lhs_spec[2:]
    transposed = math.prod(between) > 1 and math.prod(params["window_strides"]) == 1 and rhs.constant is not None
    if not transposed and (math.prod(between) > 1 or any(min(pair) < 0 for pair in padding)):
        # What the operation cannot do itself: pixels between the image's, and cropping.
        config: list[Any] = [(0, 0, 0)] * lhs.rank
        for axis, spread, pair in zip(spatial, between, padding, strict=True):
            config[axis] = (*pair, spread - 1)
        lhs = padded(graph, lhs, scalar(graph, 0, lhs.dtype), config)
        padding = [(0, 0)] * len(padding)
    image = graph.tensor(lhs, numbers.lhs_spec)
    settings: dict[str, Any] = {"dilations": list(params["rhs_dilation"]), "group": groups}
    if transposed:
        return _transposed(graph, step, image, rhs, settings)
    settings |= {"strides": list(params["window_strides"]), "pads": pads_of(padding)}
    name = graph.add("Conv", image, graph.tensor(rhs, numbers.rhs_spec), **settings)
    return made(name, step.out_avals[0], numbers.out_spec)


def _transposed(graph: Graph, step: Any, image: str, rhs: Value, settings: dict[str, Any]) -> Value:
    """Write a convolution of a dilated image, as transposed convolutions are in JAX."""
    params = step.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = np.transpose(rhs.full(), numbers.rhs_spec)
    features, width, *taps = kernel.shape
    kernel = kernel.reshape(groups, features // groups, width, *taps).swapaxes(1, 2)
    kernel = np.flip(kernel.reshape(groups * width, features // groups, *taps), tuple(range(2, 2 + len(taps))))
    edges = [
        ((size - 1) * dilation - low, (size - 1) * dilation - high)
        for size, dilation, (low, high) in zip(taps, params["rhs_dilation"], params["padding"], strict=True)
    ]
    pads = pads_of([(max(low, 0), max(high, 0)) for low, high in edges])
    settings |= {"strides": list(params["lhs_dilation"]), "pads": pads}
    name = graph.add("ConvTranspose", image, graph.store(kernel), **settings)
    if (more := pads_of([(max(-low, 0), max(-high, 0)) for low, high in edges])) != [0] * len(pads):
        axes = graph.ints(range(2, 2 + len(taps)))
        name = graph.add("Pad", name, graph.ints(more), scalar(graph, 0, rhs.dtype), axes)
    return made(name, step.out_avals[0], numbers.out_spec)


def pads_of(pairs: Sequence[tuple[Any, ...]]) -> list[int]:
    """Return paddings as operators want them: all lows, then all highs."""
    return [int(low) for low, _ in pairs] + [int(high) for _, high in pairs]
