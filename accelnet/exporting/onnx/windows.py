"""Pooling: reductions of windows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from accelnet.exporting.onnx.graph import Graph, Value
from accelnet.exporting.onnx.products import pads_of
from accelnet.exporting.onnx.rules import UnsupportedError, made, rule, scalar
from accelnet.exporting.onnx.shapes import padded

Pairs = list[tuple[int, int]]


@rule("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")
def _window(graph: Graph, step: Any, value: Value, *initial: Value) -> Value:
    params, kind = step.params, _kind(step, initial)
    if any(size != 1 for size in params["window_dilation"]):
        raise UnsupportedError("spreads the pixels of a window")
    window, padding = params["window_dimensions"], list(params["padding"])
    beyond = any(min(pair) < 0 or max(pair) >= max(size, 2) for size, pair in zip(window, padding, strict=True))
    if beyond or any(size != 1 for size in params["base_dilation"]):
        config = [(low, high, spread - 1) for (low, high), spread in zip(padding, params["base_dilation"], strict=True)]
        empty = scalar(graph, {"max": -np.inf, "min": np.inf, "sum": 0}[kind], value.dtype)
        value, padding = padded(graph, value, empty, config), [(0, 0)] * value.rank
    return pooled(graph, step.out_avals[0], value, kind, (window, params["window_strides"], padding))


def pooled(graph: Graph, aval: Any, value: Value, kind: str, geometry: tuple[Any, Any, Pairs]) -> Value:
    """Write a pooling.

    Args:
        graph: The graph.
        aval: Shape and dtype of the result.
        value: What is pooled.
        kind: "max", "min" or "sum".
        geometry: Window, strides, and padding (low, high), smaller than the window, of every axis.
    """
    window, strides, padding = geometry
    moved = [a for a in range(value.rank) if (window[a], strides[a], *padding[a]) != (1, 1, 0, 0)]
    if not moved:
        return value
    # Images keep their spatial axes together, so that they lie as convolutions want them.
    spatial = list(range(1, value.rank - 1)) if moved[0] > 0 and moved[-1] < value.rank - 1 else moved
    spatial = spatial if len(spatial) <= 3 else moved
    if len(spatial) > 3 or not np.issubdtype(value.dtype, np.floating):
        raise UnsupportedError(f"reduces windows of {len(spatial)} axes of {value.dtype}: at most 3, of floats")
    others = [axis for axis in value.layout if axis not in spatial]
    layout = [*others, *spatial]
    image = graph.tensor(value, layout)
    if len(others) != 2:
        sizes = [value.shape[axis] for axis in layout]
        image = graph.reshape(image, [math.prod(sizes[: len(others)]), 1, *sizes[len(others) :]])
    settings: dict[str, Any] = {
        "kernel_shape": [window[axis] for axis in spatial],
        "strides": [strides[axis] for axis in spatial],
        "pads": pads_of([padding[axis] for axis in spatial]),
    }
    image = graph.add("Neg", image) if kind == "min" else image
    if kind == "sum":
        mean = graph.add("AveragePool", image, count_include_pad=1, **settings)
        name = graph.add("Mul", mean, scalar(graph, math.prod(window), value.dtype))
    else:
        name = graph.add("MaxPool", image, **settings)
    name = graph.add("Neg", name) if kind == "min" else name
    if len(others) != 2:
        name = graph.reshape(name, [aval.shape[axis] for axis in layout])
    return made(name, aval, layout)


def pooled_split(graph: Graph, step: Any, value: Value, kind: str) -> Value | None:
    """Write the reduction over the inner parts of split axes, [n * w] as [n, w], as pooling; None if it is none."""
    source, split = graph.splits.get(value.name, (None, {}))
    if source is None or set(step.params["axes"]) != set(split.values()) or source.dtype.kind != "f":
        return None
    sizes = dict.fromkeys(range(source.rank), 1) | {axis: value.shape[inner] for axis, inner in split.items()}
    window = [sizes[axis] for axis in range(source.rank)]
    moved = [axis for axis, size in enumerate(window) if size != 1]
    if not moved or len(moved) > 3 or not 0 < moved[0] <= moved[-1] < source.rank - 1 or source.rank > 5:
        return None
    return pooled(graph, step.out_avals[0], source, kind, (window, window, [(0, 0)] * source.rank))


def _kind(step: Any, initial: Sequence[Value]) -> str:
    """Tell which reduction a window's is: "max", "min" or "sum"."""
    if step.name != "reduce_window":
        return step.name.removeprefix("reduce_window_")
    names = [equation.primitive.name for equation in step.params["jaxpr"].eqns]
    starts = {"max": -np.inf, "min": np.inf, "add": 0}
    if len(names) == 1 and names[0] in starts and initial[0].constant == starts[names[0]]:
        return "sum" if names[0] == "add" else names[0]
    raise UnsupportedError(f"reduces windows by {', '.join(names)}: only maximum, minimum and sum have an operator")
