"""From a flat program to a graph: constants computed, each step by its rule."""

from collections.abc import Sequence

import numpy as np

from accelnet.errors import UserError
from accelnet.exporting.onnx import elementwise, indexing, loops, products, recurrences, reductions, shapes, windows
from accelnet.exporting.onnx.graph import Graph, Value, constant
from accelnet.exporting.onnx.rules import RULES, UnsupportedError
from accelnet.exporting.onnx.sizes import is_known
from accelnet.ops.program import Constant, FlatProgram, Step
from accelnet.scopes import classes

# The modules are imported for the rules that they declare.
_ROOMS = (elementwise, indexing, loops, products, recurrences, reductions, shapes, windows)
# Constants of these stay small: what is repeated is not written down.
_KEPT_THIN = frozenset({"broadcast_in_dim", "iota", "dim_as_value", "transpose", "scan", "cond", "squeeze", "while"})
_HINTS = {
    "while": "repeats something an unknown number of times; lax.scan or lax.fori_loop of a fixed number can be written",
    "random_bits": "draws random numbers; let the model draw none in evaluation",
    "random_wrap": "draws random numbers; let the model draw none in evaluation",
    "random_seed": "draws random numbers; let the model draw none in evaluation",
    "threefry2x32": "draws random numbers; let the model draw none in evaluation",
}


def write(program: FlatProgram, operands: Sequence[Value], graph: Graph) -> list[Value]:
    """Write a program into a graph.

    Args:
        program: The program.
        operands: Values of its inputs.
        graph: The graph, at whose end the operations are added.

    Returns:
        The values of its outputs.

    Raises:
        UserError: If there is no rule for a step; it names the line that made it.
    """
    env: dict[int, Value] = dict(zip(program.inputs, operands, strict=True))
    constants: dict[int, Value] = {}

    def read(ref: int | Constant) -> Value:
        if not isinstance(ref, Constant):
            return env[ref]
        if id(ref) not in constants:
            array = ref.value
            constants[id(ref)] = constant(array if hasattr(array, "dtype") else np.asarray(array))
        return constants[id(ref)]

    outside = graph.scope
    for step in program.steps:
        graph.scope = step.scope
        results = _write_step(graph, step, [read(ref) for ref in step.inputs])
        env.update(zip(step.outputs, results, strict=True))
    graph.scope = outside
    return [read(ref) for ref in program.outputs]


def _write_step(graph: Graph, step: Step, values: list[Value]) -> list[Value]:
    if step.name not in _KEPT_THIN and all(value.constant is not None for value in values):
        known = [aval for aval in (*step.in_avals, *step.out_avals) if all(map(is_known, aval.shape))]
        if len(known) == len(step.in_avals) + len(step.out_avals):
            return [constant(array) for array in step.bind(*(value.full() for value in values))]
    try:
        for aval in step.out_avals:
            elementwise.check_type(aval.dtype)
        if step.name not in RULES:
            raise UnsupportedError(_HINTS.get(step.name, "has no operator of ONNX"))
        results = RULES[step.name](graph, step, *values)
    except UnsupportedError as error:
        place = step.line or "code of a library"
        layer = f", in {classes(step.scope)}" if step.scope else ""
        raise UserError(
            f"the model cannot be written as ONNX: its primitive {step.name} {error}; it comes from {place}{layer}"
        ) from None
    return list(results) if isinstance(results, list) else [results]
