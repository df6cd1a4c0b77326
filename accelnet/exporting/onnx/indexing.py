"""Primitives that choose numbers by index: gather, scatter, dynamic slices."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from accelnet.exporting.onnx.elementwise import choose
from accelnet.exporting.onnx.graph import Graph, Value
from accelnet.exporting.onnx.rules import UnsupportedError, cast, made, rule, scalar
from accelnet.exporting.onnx.shapes import cut
from accelnet.exporting.onnx.sizes import is_known, same


@rule("gather")
def _gather(graph: Graph, step: Any, operand: Value, indices: Value) -> Value:
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    aval, mode = step.out_avals[0], step.params["mode"]
    if indices.rank == 1 and indices.constant is not None and not numbers.operand_batching_dims:
        starts = dict(zip(numbers.start_index_map, map(int, indices.constant), strict=True))
        ends = [(operand.shape[axis], start + sizes[axis], start) for axis, start in starts.items()]
        if all(is_known(end) and is_known(size) and start >= 0 and end <= size for size, end, start in ends):
            windows = {axis: (start, start + sizes[axis], 1) for axis, start in starts.items()}
            return graph.squeeze(cut(graph, operand, windows, sizes), numbers.collapsed_slice_dims)
    whole = [same(size, operand.shape[axis]) for axis, size in enumerate(sizes)]
    (axis,) = numbers.start_index_map if len(numbers.start_index_map) == 1 else (None,)
    rest = all(whole[a] for a in range(operand.rank) if a != axis)
    if axis is None or numbers.collapsed_slice_dims != (axis,) or numbers.operand_batching_dims or not rest:
        return _gather_any(graph, step, operand, indices)
    if mode == GatherScatterMode.FILL_OR_DROP and operand.dtype.kind not in "fi":
        return _gather_any(graph, step, operand, indices)
    index = graph.squeeze(indices, [indices.rank - 1])
    if index.constant is not None and _inside(index, operand, axis):
        name = graph.add("Gather", graph.tensor(operand), graph.store(index.full().astype(np.int64)), axis=axis)
        return made(name, aval, _order(numbers, axis, aval))
    plain = cast(graph, graph.tensor(index), np.int64)
    last = graph.add("Sub", _number(graph, operand.shape[axis]), scalar(graph, 1, np.int64))
    safe = graph.add("Min", graph.add("Max", plain, scalar(graph, 0, np.int64)), last)
    name = graph.add("Gather", graph.tensor(operand), safe, axis=axis)
    if mode == GatherScatterMode.FILL_OR_DROP:
        behind = list(range(index.rank, index.rank + operand.rank - 1 - axis))
        inside = graph.add("Equal", safe, plain)
        inside = graph.add("Unsqueeze", inside, graph.ints(behind)) if behind else inside
        name = choose(graph, inside, name, scalar(graph, fill_of(step, operand), operand.dtype), operand.dtype)
    return made(name, aval, _order(numbers, axis, aval))


def _inside(index: Value, operand: Value, axis: int) -> bool:
    """Say whether known indices are inside an axis."""
    size = operand.shape[axis]
    return is_known(size) and bool(np.all((index.constant >= 0) & (index.constant < size)))


def _order(numbers: Any, axis: int, aval: Any) -> list[int]:
    """Lay the operand's axes before `axis`, those of the indices, and the operand's behind it."""
    offsets = list(numbers.offset_dims)
    places = [a for a in range(len(aval.shape)) if a not in offsets]
    return [*offsets[:axis], *places, *offsets[axis:]]


def _number(graph: Graph, size: Any) -> str:
    """Return a size as a tensor without axes."""
    return scalar(graph, size, np.int64) if is_known(size) else graph.add("Squeeze", graph.size(size), graph.ints([0]))


def fill_of(step: Any, operand: Value) -> Any:
    """Return what a gather puts where an index is outside."""
    if (fill := step.params["fill_value"]) is not None:
        return fill
    if operand.dtype.kind == "f":
        return np.nan
    if operand.dtype.kind == "b":
        return True
    return np.iinfo(operand.dtype).min if operand.dtype.kind == "i" else np.iinfo(operand.dtype).max


def _gather_any(graph: Graph, step: Any, operand: Value, indices: Value) -> Value:
    """Gather from the flat operand, by the number that each element of the result has in it."""
    numbers, sizes, aval = step.params["dimension_numbers"], step.params["slice_sizes"], step.out_avals[0]
    batch = [axis for axis in range(len(aval.shape)) if axis not in numbers.offset_dims]
    inner = [a for a in range(operand.rank) if a not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]
    result = _Places(graph, aval.shape, batch)
    places = {axis: result.along(place) for axis, place in zip(inner, numbers.offset_dims, strict=True)}
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    places |= {axis: result.along(batch[place]) for axis, place in pairs}
    flat, inside = result.flat(operand, indices, numbers.start_index_map, sizes, places, step.params["mode"])
    source = graph.reshape(graph.tensor(operand), [math.prod(operand.shape)])
    name = graph.add("Gather", source, flat, axis=0)
    if inside:
        name = choose(graph, inside, name, scalar(graph, fill_of(step, operand), operand.dtype), operand.dtype)
    fit = "Expand" if aval.shape else "Reshape"
    return made(graph.add(fit, name, graph.shape(aval.shape)), aval)


@rule(
    "scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-max", "scatter-min", "scatter-sub"
)
def _scatter(graph: Graph, step: Any, operand: Value, indices: Value, updates: Value) -> Value:
    numbers = step.params["dimension_numbers"]
    if step.name == "scatter-sub":
        updates = replace(
            updates, name=graph.add("Neg", graph.tensor(updates, updates.layout, spread=False)), constant=None
        )
    reduction = step.name.replace("_", "-").removeprefix("scatter").removeprefix("-").replace("sub", "add") or "none"
    shape = updates.shape
    batch = [axis for axis in range(len(shape)) if axis not in numbers.update_window_dims]
    inner = [a for a in range(operand.rank) if a not in (*numbers.inserted_window_dims, *numbers.operand_batching_dims)]
    result = _Places(graph, shape, batch)
    windows = dict(zip(inner, numbers.update_window_dims, strict=True))
    places = {axis: result.along(place) for axis, place in windows.items()}
    pairs = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    places |= {axis: result.along(batch[place]) for axis, place in pairs}
    sizes = [shape[windows[axis]] if axis in windows else 1 for axis in range(operand.rank)]
    start_map = numbers.scatter_dims_to_operand_dims
    flat, inside = result.flat(operand, indices, start_map, sizes, places, step.params["mode"])
    count = math.prod(operand.shape)
    target = graph.reshape(graph.tensor(operand), [count])
    if inside:
        # What falls outside goes to one more element, which is cut off.
        flat = graph.add("Where", inside, flat, graph.size(count))
        target = graph.add("Concat", target, graph.store(np.zeros(1, operand.dtype)), axis=0)
    flat = graph.reshape(graph.add("Expand", flat, graph.shape(shape)), [math.prod(shape)])
    new = graph.reshape(graph.tensor(updates), [math.prod(shape)])
    name = graph.add("ScatterElements", target, flat, new, axis=0, reduction=reduction)
    if inside:
        name = graph.add("Slice", name, graph.ints([0]), graph.ints([-1]), graph.ints([0]))
    return made(graph.reshape(name, operand.shape), step.out_avals[0])


class _Places:
    """Numbers of elements in a flat array, of the shape of a result or its axes of one element."""

    def __init__(self, graph: Graph, shape: Sequence[Any], batch: Sequence[int]) -> None:
        self.graph, self.shape, self.batch = graph, shape, batch

    def along(self, axis: int) -> str:
        """Count along an axis of the result."""
        graph, others = self.graph, [a for a in range(len(self.shape)) if a != axis]
        end = _number(graph, self.shape[axis])
        line = graph.add("Range", scalar(graph, 0, np.int64), end, scalar(graph, 1, np.int64))
        return graph.add("Unsqueeze", line, graph.ints(others)) if others else line

    def flat(
        self, operand: Value, indices: Value, start_map: Sequence[int], sizes: Sequence[Any], places: dict, mode: Any
    ) -> tuple[str, str]:
        """Return the numbers, inside the operand, and a bool that tells which were, "" if all are."""
        graph, inside = self.graph, ""
        vector = cast(graph, graph.tensor(indices), np.int64)
        others = [axis for axis in range(len(self.shape)) if axis not in self.batch]
        starts = {}
        for number, axis in enumerate(start_map):
            one = graph.add("Gather", vector, graph.store(np.int64(number)), axis=indices.rank - 1)
            one = graph.add("Unsqueeze", one, graph.ints(others)) if others else one
            last = graph.add("Sub", graph.size(operand.shape[axis]), graph.size(sizes[axis]))
            starts[axis] = graph.add("Min", graph.add("Max", one, graph.ints([0])), last)
            if mode == GatherScatterMode.FILL_OR_DROP:
                fits = graph.add("Equal", one, starts[axis])
                inside = graph.add("And", inside, fits) if inside else fits
        total = ""
        for axis in range(operand.rank):
            parts = [part for part in (starts.get(axis), places.get(axis)) if part]
            if not parts:
                continue
            place = graph.add("Add", *parts) if len(parts) == 2 else parts[0]
            step = graph.add("Mul", place, graph.size(math.prod(operand.shape[axis + 1 :])))
            total = graph.add("Add", total, step) if total else step
        return total or graph.ints([0]), inside


@rule("dynamic_slice")
def _dynamic_slice(graph: Graph, step: Any, operand: Value, *starts: Value) -> Value:
    sizes = step.params["slice_sizes"]
    axes = [a for a in range(operand.rank) if not same(sizes[a], operand.shape[a])]
    if not axes:
        return operand
    first = _starts(graph, operand, axes, starts, sizes)
    ends = graph.add("Add", first, graph.shape([sizes[axis] for axis in axes]))
    tensor = graph.tensor(operand, operand.layout)
    name = graph.add("Slice", tensor, first, ends, graph.ints(operand.axes(axes)))
    return made(name, step.out_avals[0], operand.layout)


def _starts(graph: Graph, operand: Value, axes: Sequence[int], starts: Sequence[Value], sizes: Sequence[Any]) -> str:
    """Return where a dynamic slice begins, moved into the operand."""
    zero = graph.ints([0])
    parts = [graph.add("Unsqueeze", cast(graph, graph.tensor(starts[axis]), np.int64), zero) for axis in axes]
    first = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=0)
    last = graph.shape([operand.shape[axis] - sizes[axis] for axis in axes])
    return graph.add("Min", graph.add("Max", first, graph.ints([0] * len(axes))), last)


@rule("dynamic_update_slice")
def _dynamic_update_slice(graph: Graph, step: Any, operand: Value, update: Value, *starts: Value) -> Value:
    axes = [a for a in range(operand.rank) if not same(update.shape[a], operand.shape[a])]
    if not axes:
        return update
    if len(axes) > 1:
        raise UnsupportedError("updates a slice along several axes: x.at[...].set(...) has an operator")
    (axis,) = axes
    first = _starts(graph, operand, axes, starts, update.shape)
    tensor, along = graph.tensor(operand), graph.ints([axis])
    end = graph.add("Add", first, graph.size(update.shape[axis]))
    before = graph.add("Slice", tensor, graph.ints([0]), first, along)
    behind = graph.add("Slice", tensor, end, graph.ints([np.iinfo(np.int64).max]), along)
    return made(graph.add("Concat", before, graph.tensor(update), behind, axis=axis), step.out_avals[0])
