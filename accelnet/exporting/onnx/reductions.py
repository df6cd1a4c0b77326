"""Reductions, cumulative sums and sorting."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from accelnet.exporting.onnx.graph import Graph, Value
from accelnet.exporting.onnx.rules import UnsupportedError, cast, made, rule
from accelnet.exporting.onnx.sizes import is_known
from accelnet.exporting.onnx.windows import pooled_split
from accelnet.ops.program import trace

_REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_or": "ReduceMax",
    "reduce_and": "ReduceMin",
}


@rule(*_REDUCTIONS)
def _reduce(graph: Graph, step: Any, value: Value) -> Value:
    axes = step.params["axes"]
    if not axes:
        return value
    pools = step.name in ("reduce_sum", "reduce_max") and not value.thin
    if pools and (result := pooled_split(graph, step, value, step.name.removeprefix("reduce_"))) is not None:
        return result
    repeats = value.thin & set(axes)
    counts = repeats and step.name in ("reduce_sum", "reduce_prod")
    tensor = graph.tensor(value, value.layout, spread=bool(counts))
    is_bool = value.dtype == np.bool_
    tensor = cast(graph, tensor, np.int32) if is_bool else tensor
    name = graph.add(_REDUCTIONS[step.name], tensor, graph.ints(value.axes(axes)), keepdims=0)
    name = cast(graph, name, np.bool_) if is_bool else name
    kept = [axis for axis in range(value.rank) if axis not in axes]
    layout = [kept.index(axis) for axis in value.layout if axis in kept]
    thin = frozenset() if counts else frozenset(kept.index(axis) for axis in value.thin if axis in kept)
    return made(name, step.out_avals[0], layout, thin)


@rule("argmax", "argmin")
def _arg(graph: Graph, step: Any, value: Value) -> Value:
    (axis,) = step.params["axes"]
    aval = step.out_avals[0]
    tensor = graph.tensor(value)
    tensor = cast(graph, tensor, np.int32) if value.dtype == np.bool_ else tensor
    name = graph.add("ArgMax" if step.name == "argmax" else "ArgMin", tensor, axis=axis, keepdims=0)
    return made(cast(graph, name, aval.dtype), aval)


@rule("cumsum")
def _cumsum(graph: Graph, step: Any, value: Value) -> Value:
    tensor, axis = graph.tensor(value, value.layout), value.layout.index(step.params["axis"])
    name = graph.add("CumSum", tensor, graph.store(np.int64(axis)), reverse=int(step.params["reverse"]))
    return made(name, step.out_avals[0], value.layout)


_CUMULATIVE: dict[str, Any] = {
    "cumlogsumexp": jnp.logaddexp, "cummax": jnp.maximum, "cummin": jnp.minimum, "cumprod": jnp.multiply,
}  # fmt: skip


@rule(*_CUMULATIVE)
def _cumulative(graph: Graph, step: Any, value: Value) -> Value:
    """Write a loop over the steps, since ONNX has an operator for cumulative sums alone."""
    axis, backwards, combine = step.params["axis"], step.params["reverse"], _CUMULATIVE[step.name]

    def loop(x: jax.Array) -> jax.Array:
        steps = jnp.moveaxis(x, axis, 0)
        nothing = jnp.full(steps.shape[1:], _nothing(step.name, x.dtype), x.dtype)
        _, found = lax.scan(lambda before, one: (combine(before, one),) * 2, nothing, steps, reverse=backwards)
        return jnp.moveaxis(found, 0, axis)

    assert graph.root.write is not None
    return graph.root.write(trace(loop, jax.ShapeDtypeStruct(value.shape, value.dtype)), [value], graph)[0]


def _nothing(name: str, dtype: Any) -> Any:
    """Return what changes nothing that it is combined with."""
    if name == "cumprod":
        return 1
    sign = 1 if name == "cummin" else -1
    if dtype.kind == "f":
        return sign * np.inf
    return np.iinfo(dtype).max if sign == 1 else np.iinfo(dtype).min


@rule("sort")
def _sort(graph: Graph, step: Any, *values: Value) -> list[Value]:
    if step.params["num_keys"] != 1:
        raise UnsupportedError("sorts by several keys")
    axis = step.params["dimension"]
    # Of equal keys TopK takes those with lower numbers first: a stable sort.
    keys, order = _top(graph, values[0], axis, values[0].shape[axis], largest=0)
    names = [keys, *(graph.add("GatherElements", graph.tensor(v), order, axis=axis) for v in values[1:])]
    return [made(name, aval) for name, aval in zip(names, step.out_avals, strict=True)]


@rule("top_k")
def _top_k(graph: Graph, step: Any, value: Value) -> list[Value]:
    if not is_known(step.params["k"]):
        raise UnsupportedError("takes the top of an unknown number")
    values, indices = _top(graph, value, step.params.get("axis", -1) % value.rank, step.params["k"], largest=1)
    return [made(values, step.out_avals[0]), made(cast(graph, indices, step.out_avals[1].dtype), step.out_avals[1])]


def _top(graph: Graph, value: Value, axis: int, count: Any, *, largest: int) -> list[str]:
    settings: dict[str, Any] = {"axis": axis, "largest": largest, "sorted": 1}
    return graph.add("TopK", graph.tensor(value), graph.size(count), outputs=2, **settings)
