"""Loops over steps, and choices between programs."""

from itertools import compress
from typing import Any

import numpy as np

from accelnet.exporting.onnx.elementwise import choose
from accelnet.exporting.onnx.graph import Graph, Value, constant
from accelnet.exporting.onnx.rules import made, rule, scalar
from accelnet.ops.flops import scan_counts
from accelnet.ops.program import FlatProgram, flatten


@rule("scan")
def _scan(graph: Graph, step: Any, *operands: Value) -> list[Value]:
    num_consts, num_carry = scan_counts(step.params)
    program, live, wanted = _needed(step)
    carried_avals = [var.aval for var in step.params["jaxpr"].jaxpr.invars[num_consts:]]
    # Laid out before the loop, which would do it in every step.
    outside = [_plain(graph, value) if use else value for value, use in zip(operands, live, strict=True)]
    body = Graph(graph)
    steps = [made(body.new("step"), aval) for aval in carried_avals]
    carries = list(compress(range(num_carry), live[num_consts:]))
    scanned = list(compress(range(num_carry, len(steps)), live[num_consts + num_carry :]))
    given = [outside[num_consts + i] for i in (*carries, *scanned)]
    tensors = [graph.tensor(value) for value in given]
    body.inputs = [(steps[i].name, steps[i].dtype, steps[i].shape) for i in (*carries, *scanned)]
    if not scanned:
        # The steps are counted by something to read.
        end = graph.add("Squeeze", graph.size(step.params["length"]), graph.ints([0]))
        tensors.append(graph.add("Range", scalar(graph, 0, np.int64), end, scalar(graph, 1, np.int64)))
        body.inputs.append((body.new("step"), np.dtype(np.int64), ()))
    assert graph.root.write is not None
    results = graph.root.write(program, [*outside[:num_consts], *steps], body)
    body.outputs = [(body.add("Identity", body.tensor(value)), value.dtype, value.shape) for value in results]
    num_scans, num_outputs = len(tensors) - len(carries), len(results) - len(carries)
    settings: dict[str, Any] = {"num_scan_inputs": num_scans}
    if step.params["reverse"]:
        settings |= {"scan_input_directions": [1] * num_scans}
        settings |= {"scan_output_directions": [1] * num_outputs} if num_outputs else {}
    names = graph.add("Scan", *tensors, outputs=len(results), bodies={"body": body}, **settings)
    left = iter([names] if len(results) == 1 else names)
    # Nobody reads the others.
    return [
        made(next(left), aval) if use else constant(np.zeros(()))
        for aval, use in zip(step.out_avals, wanted, strict=True)
    ]


def _needed(step: Any) -> tuple[FlatProgram, list[bool], list[bool]]:
    """Flatten the body of a scan without what nothing reads after all steps, keys of unused noise among them.

    Returns:
        The body, whether it reads each of the scan's operands, and whether it makes each of the results.
    """
    closed, (num_consts, num_carry) = step.params["jaxpr"], scan_counts(step.params)
    wanted = list(step.used)
    while True:
        program = flatten(closed, step.scope, step.line, wanted)
        read = {
            ref
            for refs in (*(s.inputs for s in program.steps), program.outputs)
            for ref in refs
            if isinstance(ref, int)
        }
        live = [number in read for number in program.inputs]
        carried = [a or b for a, b in zip(wanted[:num_carry], live[num_consts : num_consts + num_carry], strict=True)]
        if carried == wanted[:num_carry]:
            live[num_consts : num_consts + num_carry] = carried
            return program, live, wanted
        wanted[:num_carry] = carried


def _plain(graph: Graph, value: Value) -> Value:
    if value.constant is not None:
        return value
    return Value(graph.tensor(value), value.shape, value.dtype, tuple(range(value.rank)))


@rule("cond")
def _cond(graph: Graph, step: Any, index: Value, *operands: Value) -> list[Value]:
    branches = step.params["branches"]
    if index.constant is not None:
        branches = [branches[int(np.clip(int(index.constant), 0, len(branches) - 1))]]
    assert graph.root.write is not None
    # Branches are pure: all of them are computed, and one is taken.
    cases = [graph.root.write(flatten(branch, step.scope, step.line), operands, graph) for branch in branches]
    results = cases[-1]
    for number in range(len(cases) - 2, -1, -1):
        chosen = graph.add("LessOrEqual", graph.tensor(index), scalar(graph, number, index.dtype))
        pairs = zip(cases[number], results, step.out_avals, strict=True)
        results = [
            made(choose(graph, chosen, graph.tensor(one), graph.tensor(other), aval.dtype), aval)
            for one, other, aval in pairs
        ]
    return results
