"""Primitives that move numbers: shapes, slices, paddings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from accelnet.exporting.onnx.graph import Graph, Value, constant
from accelnet.exporting.onnx.rules import cast, made, rule, scalar
from accelnet.exporting.onnx.sizes import is_known, same

_END = np.iinfo(np.int64).max


@rule("transpose")
def _transpose(_graph: Graph, step: Any, value: Value) -> Value:
    order = step.params["permutation"]
    shape = tuple(value.shape[axis] for axis in order)
    if value.constant is not None:
        return constant(np.transpose(value.constant, order), shape)
    layout = tuple(order.index(axis) for axis in value.layout)
    return replace(value, shape=shape, layout=layout, thin=frozenset(order.index(axis) for axis in value.thin))


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, step: Any, value: Value, *_: Value) -> Value:
    shape, places = step.out_avals[0].shape, step.params["broadcast_dimensions"]
    thin = {places[axis] for axis in value.thin}
    thin |= {place for axis, place in enumerate(places) if same(value.shape[axis], 1) and not same(shape[place], 1)}
    new = [axis for axis in range(len(shape)) if axis not in places]
    thin |= {axis for axis in new if not same(shape[axis], 1)}
    return replace(graph.unsqueeze(value, new), shape=tuple(shape), thin=frozenset(thin))


@rule("squeeze")
def _squeeze(graph: Graph, step: Any, value: Value) -> Value:
    return graph.squeeze(value, [axis % value.rank for axis in step.params["dimensions"]])


@rule("expand_dims")
def _expand_dims(graph: Graph, step: Any, value: Value) -> Value:
    return graph.unsqueeze(value, step.params["dimensions"])


@rule("reshape")
def _reshape(graph: Graph, step: Any, value: Value) -> Value:
    return reshaped(graph, value, step.out_avals[0].shape)


def reshaped(graph: Graph, value: Value, shape: Sequence[Any]) -> Value:
    """Reshape a value; where only axes of one element come or go, it stays laid as it is."""
    shape = tuple(shape)
    kept = [size for size in value.shape if not same(size, 1)]
    if [str(size) for size in kept] == [str(size) for size in shape if not same(size, 1)]:
        value = graph.squeeze(value, [axis for axis, size in enumerate(value.shape) if same(size, 1)])
        return graph.unsqueeze(value, [axis for axis, size in enumerate(shape) if same(size, 1)])
    name = graph.reshape(graph.tensor(value), shape)
    if split := _split_axes(value.shape, shape):
        graph.splits[name] = value, split
    return Value(name, shape, value.dtype, tuple(range(len(shape))))


def _split_axes(shape: Sequence[Any], new: Sequence[Any]) -> dict[int, int]:
    """Return which axes a reshape splits in two, and the new axis of each one's inner part; {} if it does else."""
    split, place = {}, 0
    for axis, size in enumerate(shape):
        if place < len(new) and same(new[place], size):
            place += 1
        elif (
            is_known(size) and all(map(is_known, new[place : place + 2])) and math.prod(new[place : place + 2]) == size
        ):
            split[axis] = place + 1
            place += 2
        else:
            return {}
    return split if place == len(new) else {}


@rule("concatenate")
def _concatenate(graph: Graph, step: Any, *values: Value) -> Value:
    axis = step.params["dimension"]
    # Runtimes refuse to repeat something no times, which is how a part without elements is made.
    values = tuple(value for value in values if not same(value.shape[axis], 0)) or values[:1]
    if len(values) == 1:
        return values[0]
    lead = next((value for value in values if value.constant is None), values[0])
    layout = tuple(range(lead.rank)) if lead.constant is not None else lead.layout
    tensors = [graph.tensor(value, layout) for value in values]
    return made(graph.add("Concat", *tensors, axis=layout.index(axis)), step.out_avals[0], layout)


@rule("stack")
def _stack(graph: Graph, step: Any, *values: Value) -> Value:
    axis = step.params["axis"]
    tensors = [graph.tensor(graph.unsqueeze(value, [axis])) for value in values]
    return made(graph.add("Concat", *tensors, axis=axis), step.out_avals[0])


@rule("unstack")
def _unstack(graph: Graph, step: Any, value: Value) -> list[Value]:
    axis = step.params["axis"]
    shape = [1 if a == axis else size for a, size in enumerate(value.shape)]
    parts = [cut(graph, value, {axis: (i, i + 1, 1)}, shape) for i in range(len(step.out_avals))]
    return [graph.squeeze(part, [axis]) for part in parts]


@rule("tile")
def _tile(graph: Graph, step: Any, value: Value) -> Value:
    return made(graph.add("Tile", graph.tensor(value), graph.shape(step.params["reps"])), step.out_avals[0])


@rule("split")
def _split(graph: Graph, step: Any, value: Value) -> list[Value]:
    axis, results, start = step.params["axis"], [], 0
    for aval, size in zip(step.out_avals, step.params["sizes"], strict=True):
        results.append(cut(graph, value, {axis: (start, start + size, 1)}, aval.shape))
        start = start + size
    return results


@rule("slice")
def _slice(graph: Graph, step: Any, value: Value) -> Value:
    starts, limits = step.params["start_indices"], step.params["limit_indices"]
    strides = step.params["strides"] or (1,) * value.rank
    windows = dict(enumerate(zip(starts, limits, strides, strict=True)))
    return cut(graph, value, windows, step.out_avals[0].shape)


def cut(graph: Graph, value: Value, windows: Mapping[int, tuple[Any, Any, int]], shape: Sequence[Any]) -> Value:
    """Take (start, end, stride) of axes; thin ones stay thin."""
    windows = {
        axis: (start, end, stride)
        for axis, (start, end, stride) in windows.items()
        if axis not in value.thin and not (same(start, 0) and same(end, value.shape[axis]) and stride == 1)
    }
    thin = frozenset(axis for axis in value.thin if not same(shape[axis], 1))
    if not windows:
        return replace(value, shape=tuple(shape), thin=thin)
    starts, ends, strides = zip(*windows.values(), strict=True)
    tensor = graph.tensor(value, value.layout, spread=False)
    axes = graph.ints(value.axes(list(windows)))
    name = graph.add("Slice", tensor, graph.shape(starts), graph.shape(ends), axes, graph.ints(strides))
    return Value(name, tuple(shape), value.dtype, value.layout, thin)


@rule("rev")
def _reverse(graph: Graph, step: Any, value: Value) -> Value:
    axes = [axis for axis in step.params["dimensions"] if axis not in value.thin]
    if not axes:
        return value
    tensor, count = graph.tensor(value, value.layout, spread=False), len(axes)
    limits = graph.ints([-1] * count), graph.ints([-_END] * count)
    name = graph.add("Slice", tensor, *limits, graph.ints(value.axes(axes)), graph.ints([-1] * count))
    return replace(value, name=name, constant=None)


@rule("pad")
def _pad(graph: Graph, step: Any, value: Value, fill: Value) -> Value:
    result = padded(graph, value, graph.tensor(fill), step.params["padding_config"])
    return replace(result, shape=tuple(step.out_avals[0].shape))


def padded(graph: Graph, value: Value, fill: str, config: Sequence[tuple[Any, Any, int]]) -> Value:
    """Pad as `lax.pad` does: low, high (negative numbers crop) and between the elements of each axis."""
    tensor, shape = graph.tensor(value, value.layout), list(value.shape)
    for axis, (_, _, between) in enumerate(config):
        if between and not same(shape[axis], 0):
            place = value.layout.index(axis)
            wide = graph.add("Unsqueeze", tensor, graph.ints([place + 1]))
            wide = graph.add("Pad", wide, graph.ints([0, between]), fill, graph.ints([place + 1]))
            sizes = [shape[a] for a in value.layout]
            sizes[place] = sizes[place] * (between + 1)
            whole = graph.reshape(wide, sizes)
            end, axes = graph.ints([-between]), graph.ints([place])
            tensor = graph.add("Slice", whole, graph.ints([0]), end, axes)
            shape[axis] = shape[axis] * (between + 1) - between
    result = Value(tensor, tuple(shape), value.dtype, value.layout)
    crops = {axis: (_cropped(low), shape[axis] - _cropped(high), 1) for axis, (low, high, _) in enumerate(config)}
    inner = [end - start for start, end, _ in crops.values()]
    result = cut(graph, result, crops, inner)
    pads = {axis: (_positive(low), _positive(high)) for axis, (low, high, _) in enumerate(config)}
    pads = {axis: pair for axis, pair in pads.items() if not (same(pair[0], 0) and same(pair[1], 0))}
    outer = [size + _positive(low) + _positive(high) for size, (low, high, _) in zip(inner, config, strict=True)]
    if pads:
        amounts = graph.shape([low for low, _ in pads.values()] + [high for _, high in pads.values()])
        name = graph.add("Pad", result.name, amounts, fill, graph.ints(result.axes(list(pads))))
        result = replace(result, name=name)
    return replace(result, shape=tuple(outer))


def _positive(size: Any) -> Any:
    return max(size, 0) if is_known(size) else size


def _cropped(size: Any) -> Any:
    return max(-size, 0) if is_known(size) else 0


@rule("iota")
def _iota(graph: Graph, step: Any) -> Value:
    aval, axis = step.out_avals[0], step.params["dimension"]
    size, rank = aval.shape[axis], len(aval.shape)
    if is_known(size):
        own = np.arange(size, dtype=aval.dtype).reshape([size if i == axis else 1 for i in range(rank)])
        return constant(own, tuple(aval.shape))
    number = graph.add("Squeeze", graph.size(size), graph.ints([0]))
    name = graph.add("Range", scalar(graph, 0, np.int64), number, scalar(graph, 1, np.int64))
    line = Value(cast(graph, name, aval.dtype), (size,), aval.dtype, (0,))
    others = [i for i in range(rank) if i != axis]
    thin = frozenset(i for i in others if not same(aval.shape[i], 1))
    return replace(graph.unsqueeze(line, others), shape=tuple(aval.shape), thin=thin)
