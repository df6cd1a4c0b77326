"""Recurrent layers as the operators LSTM, GRU and RNN."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from accelnet.exporting.onnx.elementwise import choose
from accelnet.exporting.onnx.graph import Graph, Value, constant
from accelnet.exporting.onnx.rules import cast, made, rule, scalar
from accelnet.ops import kernels
from accelnet.ops.program import flatten

# The operator of each cell, and its gates in the operator's order: ONNX has i, o, f, c and z, r, h.
_CELLS = {"simple": ("RNN", (0,)), "lstm": ("LSTM", (0, 3, 1, 2)), "gru": ("GRU", (1, 0, 2))}
_BY_GATES = {1: "simple", 4: "lstm", 3: "gru"}


@rule("accelnet_recurrence")
def _recurrent_layer(graph: Graph, step: Any, *operands: Value) -> list[Value]:
    meaning = next(_scans(step.params["jaxpr"].jaxpr), None)
    if meaning is None or operands[0].dtype != np.float32:
        # Other types than the kernels' are computed as a loop.
        assert graph.root.write is not None
        return graph.root.write(flatten(step.params["jaxpr"], step.scope, step.line), operands, graph)
    cell, given = meaning.cell, list(operands)
    inputs, kernel, recurrent, bias = given[:4]
    del given[:4]
    recurrent_bias = given.pop(0) if meaning.has_bias else None
    first = [given.pop(0) for _ in range(cell.num_states)]
    lengths = given.pop(0) if meaning.has_valid else None
    tokens = given.pop(0) if meaning.has_tokens else None
    batch, steps = (inputs if tokens is None else tokens).shape[:2]
    hidden = recurrent.shape[0]
    op, gates = _CELLS[_BY_GATES[cell.num_gates]]
    x = graph.tensor(inputs, (1, 0, 2)) if tokens is None else _rows(graph, inputs, tokens)
    weights = [_gates(graph, array, gates, hidden) for array in (kernel, recurrent)]
    biases = [bias, recurrent_bias or constant(np.zeros(bias.shape, np.float32))]
    biases = [graph.squeeze(_gates(graph, graph.unsqueeze(b, [0]), gates, hidden), [2]) for b in biases]
    both = graph.add("Concat", *(graph.tensor(array) for array in biases), axis=1)
    if all(array.constant is not None for array in biases):
        both = graph.store(np.concatenate([array.constant for array in biases], axis=1))
    length = "" if lengths is None else graph.tensor(lengths)
    length = cast(graph, length, np.int32) if lengths is not None and lengths.dtype != np.int32 else length
    starts = [_start(graph, state) for state in first]
    names = [x, *(graph.tensor(array) for array in weights), both, length, *starts]
    while not names[-1]:
        names.pop()
    settings: dict[str, Any] = {"hidden_size": hidden, "direction": "reverse" if meaning.reverse else "forward"}
    settings |= {"linear_before_reset": 1} if op == "GRU" else {}
    outputs, *last = graph.add(op, *names, outputs=1 + cell.num_states, **settings)
    float32 = np.dtype(np.float32)
    sequence = Value(outputs, (steps, 1, batch, hidden), float32, (0, 1, 2, 3))
    # As the operator puts it out, [steps, batch, hidden], for the next layer reads it so.
    sequence = graph.squeeze(sequence, [1])
    whole = made(sequence.name, step.out_avals[0], (1, 0, 2))
    finals = [graph.squeeze(Value(name, (1, batch, hidden), float32, (0, 1, 2)), [0]) for name in last]
    return [whole, *finals]


def _scans(jaxpr: Any) -> Iterator[Any]:
    """Find what the kernel of a recurrence in a program means."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == kernels.NAME and equation.params["kernel"].target == "accelnet_recur":
            yield equation.params["kernel"].meaning
        for value in equation.params.values():
            for body in value if isinstance(value, tuple | list) else (value,):
                if hasattr(body, "jaxpr") or hasattr(body, "eqns"):
                    yield from _scans(getattr(body, "jaxpr", body))


def _gates(graph: Graph, array: Value, gates: Sequence[int], hidden: int) -> Value:
    """Bring [in, gates * hidden] into the operator's [1, gates * hidden, in] and order."""
    order = np.concatenate([np.arange(gate * hidden, (gate + 1) * hidden) for gate in gates])
    if array.constant is not None:
        return constant(array.full().T[order][None])
    name = graph.add("Gather", graph.tensor(array, (1, 0)), graph.store(order), axis=0)
    name = graph.add("Unsqueeze", name, graph.ints([0]))
    return Value(name, (1, len(order), array.shape[0]), array.dtype, (0, 1, 2))


def _start(graph: Graph, state: Value) -> str:
    """Return an initial state, "" for the operator's own zeros."""
    if state.constant is not None and not np.any(state.constant):
        return ""
    return graph.add("Unsqueeze", graph.tensor(state), graph.ints([0]))


def _rows(graph: Graph, table: Value, tokens: Value) -> str:
    """Read a table's rows [steps, batch, features]; a token that is no symbol's reads NaN."""
    plain = cast(graph, graph.tensor(tokens, (1, 0)), np.int64)
    safe = graph.add("Min", graph.add("Max", plain, graph.ints([0])), graph.ints([table.shape[0] - 1]))
    rows = graph.add("Gather", graph.tensor(table), safe, axis=0)
    inside = graph.add("Unsqueeze", graph.add("Equal", safe, plain), graph.ints([2]))
    return choose(graph, inside, rows, scalar(graph, np.nan, table.dtype), table.dtype)
