"""Make a graph smaller: scales and shifts of a layer's outputs become part of its weights."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from accelnet.exporting.onnx.graph import Graph, Node

_LAYERS = ("Conv", "MatMul")


def fold(graph: Graph) -> None:
    """Fold a batch normalization, or any multiplication and addition per channel, into the layer before it.

    A convolution takes both into kernel and bias, a product the multiplication; additions in a row become one.
    """
    _drop_unused(graph)
    changed = True
    while changed:
        changed = False
        makers = {name: node for node in graph.nodes for name in node.outputs}
        uses = _uses(graph)
        for node in graph.nodes:
            affine = _affine(graph, node)
            if affine is None:
                continue
            source, scale, shift = affine
            before = makers.get(source)
            if before is None or uses[source] != 1 or not _absorb(graph, before, scale, shift, makers, uses):
                continue
            before.outputs = node.outputs
            graph.nodes.remove(node)
            changed = True
            break
    _drop_unused(graph)


def _affine(graph: Graph, node: Node) -> tuple[str, Any, Any] | None:
    """Read y = x * scale + shift of constants from an operation: (name of x, scale or None, shift or None)."""
    if node.op not in ("Add", "Sub", "Mul", "Div"):
        return None
    known = [graph.root.constants.get(name) for name in node.inputs]
    if (known[0] is None) == (known[1] is None):
        return None
    position = 0 if known[1] is None else 1
    array = known[position]
    assert array is not None
    if array.dtype != np.float32 or (position == 0 and node.op in ("Sub", "Div")):
        return None
    wide, source = array.astype(np.float64), node.inputs[1 - position]
    if node.op in ("Mul", "Div"):
        return (source, wide, None) if node.op == "Mul" else (source, 1 / wide, None) if np.all(wide) else None
    return source, None, wide if node.op == "Add" else -wide


def _absorb(graph: Graph, node: Node, scale: Any, shift: Any, makers: dict[str, Node], uses: Counter[str]) -> bool:
    """Make the scale or shift part of an operation; say whether it could be."""
    inner = _affine(graph, node)
    if inner is not None:
        source, inner_scale, inner_shift = inner
        if scale is not None and inner_scale is not None:
            return _set(graph, node, source, "Mul", inner_scale * scale)
        if shift is not None and inner_shift is not None:
            return _set(graph, node, source, "Add", inner_shift + shift)
        layer = makers.get(source)
        if scale is None or layer is None or uses[source] != 1 or not _absorb(graph, layer, scale, None, makers, uses):
            return False
        return _set(graph, node, source, "Add", inner_shift * scale)
    if node.op not in _LAYERS or (kernel := graph.constants.get(node.inputs[1])) is None:
        return False
    if kernel.dtype != np.float32 or (node.op == "MatMul" and kernel.ndim != 2):
        return False
    along, axis, rank = (0, 1, kernel.ndim) if node.op == "Conv" else (1, -1, 2)
    vector = _per_channel(scale if shift is None else shift, axis, kernel.shape[along], rank)
    if vector is None or (node.op == "MatMul" and scale is None):
        return False
    bias = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(kernel.shape[0])
    if bias is None:
        return False
    if scale is not None:
        places = [1] * kernel.ndim
        places[along] = -1
        node.inputs[1] = graph.store((kernel * vector.reshape(places)).astype(np.float32))
    if node.op == "Conv" and (shift is not None or len(node.inputs) > 2):
        new = bias * vector if shift is None else bias + vector
        node.inputs[2:] = [graph.store(new.astype(np.float32))]
    return True


def _set(graph: Graph, node: Node, source: str, op: str, array: Any) -> bool:
    node.op, node.inputs = op, [source, graph.store(array.astype(np.float32))]
    return True


def _per_channel(array: Any, axis: int, count: int, rank: int) -> Any:
    """Return one number per channel, None if the array differs along another axis."""
    if axis >= 0:
        shape = (*(1,) * (rank - array.ndim), *array.shape)
    else:
        shape = array.shape or (1,)
    axis %= len(shape)
    others = [size for place, size in enumerate(shape) if place != axis]
    if any(size != 1 for size in others) or shape[axis] not in (1, count) or (array.ndim > rank and rank > 2):
        return None
    return np.broadcast_to(array.reshape(-1), (count,))


def _read(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        yield from node.inputs
        for body in node.bodies.values():
            yield from _read(body)
    yield from (name for name, _, _ in graph.outputs)


def _uses(graph: Graph) -> Counter[str]:
    return Counter(_read(graph))


def _drop_unused(graph: Graph) -> None:
    while True:
        uses = _uses(graph)
        kept = [node for node in graph.nodes if any(uses[name] for name in node.outputs)]
        if len(kept) == len(graph.nodes):
            break
        graph.nodes = kept
    graph.constants = {name: array for name, array in graph.constants.items() if uses[name]}
    for node in graph.nodes:
        for body in node.bodies.values():
            _drop_unused(body)
