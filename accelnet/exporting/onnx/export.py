"""A function of JAX as an ONNX file."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from accelnet.errors import UserError, user_code
from accelnet.exporting.onnx.folding import fold
from accelnet.exporting.onnx.graph import Graph, Node, Value
from accelnet.exporting.onnx.model import serialize
from accelnet.exporting.onnx.sizes import is_known, symbols
from accelnet.exporting.onnx.writer import write
from accelnet.ops.program import FlatProgram, trace
from accelnet.packages import imported


def to_onnx(function: Callable[[Any], Any], inputs: Any, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write a function of JAX as an ONNX file of standard operators (opset 18).

    What is computed from constants alone is computed once; normalizations with known statistics become part of the
    layer before them; accelnet's recurrent layers become LSTM, GRU and RNN, its kernels what they mean.

    Args:
        function: Traceable by JAX, from `inputs` to an array or a dict of arrays, with its weights inside.
        inputs: An array's shape, `jax.ShapeDtypeStruct`, or a dict of them. Sizes may be symbols of
            `jax.export.symbolic_shape`, such as the batch; each must be the whole size of some axis.
        metadata: Texts to keep in the file, such as class names.

    Returns:
        The bytes of the file. Inputs and outputs are named by the keys of the dicts; what is none is named "inputs" or
        "outputs".

    Raises:
        UserError: If the model does something that ONNX has no operator for, with the line that does it, or if the
            package onnx is missing.

    Example:
        >>> (batch,) = jax.export.symbolic_shape("batch")
        >>> data = to_onnx(jax.nn.relu, jax.ShapeDtypeStruct((batch, 3), "float32"))  # doctest: +SKIP

    Source: the specification of ONNX, https://onnx.ai/onnx/operators.
    """
    imported("onnx", "onnx")
    graph, program, names = _traced(function, inputs)
    results = write(program, _input_values(graph), graph)
    _finish(graph, names, results)
    return serialize(graph, metadata or {})


def _traced(function: Callable[[Any], Any], inputs: Any) -> tuple[Graph, FlatProgram, list[str]]:
    """Trace a function; return an empty graph with its inputs, its program, and the names of its outputs."""
    leaves, structure = jax.tree.flatten(inputs)
    outputs: list[Any] = []

    def flat(*operands: Any) -> list[Any]:
        result = function(jax.tree.unflatten(structure, operands))
        outputs.append(result)
        return jax.tree.leaves(result)

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    with user_code("the model, traced for export,"):
        program = trace(flat, *shapes)
    graph = Graph()
    graph.write = write
    graph.inputs = [
        (name, shape.dtype, tuple(shape.shape)) for name, shape in zip(named(inputs, "inputs"), shapes, strict=True)
    ]
    _check_symbols(graph)
    return graph, program, list(named(outputs[-1], "outputs"))


def _input_values(graph: Graph) -> list[Value]:
    """Return the values of a graph's inputs."""
    return [Value(name, shape, dtype, tuple(range(len(shape)))) for name, dtype, shape in graph.inputs]


def _finish(graph: Graph, names: list[str], results: list[Value]) -> None:
    """Make the results of a program the outputs of its graph, and fold what can be folded."""
    for name, value in zip(names, results, strict=True):
        taken = {given for given, _, _ in graph.inputs}
        if name in taken:
            raise UserError(f"an input and an output of the model are both named {name}: ONNX wants two names")
        graph.nodes.append(Node("Identity", [graph.tensor(value)], [name], {}, ""))
        graph.outputs.append((name, value.dtype, value.shape))
    fold(graph)


def named(tree: Any, alone: str) -> dict[str, Any]:
    """Name the leaves of a tree by their keys; one that stands alone is named `alone`."""
    return {
        ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) or alone: leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _check_symbols(graph: Graph) -> None:
    sizes = [size for _, _, shape in graph.inputs for size in shape if not is_known(size)]
    alone = {str(size) for size in sizes}
    for size in sizes:
        if missing := symbols(size) - alone:
            raise UserError(
                f"the size {size} of an input depends on {', '.join(sorted(missing))}, which is the whole size of no "
                "axis: give such an axis, or a number"
            )
