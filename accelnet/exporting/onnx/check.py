"""Compare an ONNX file, run in onnxruntime, with the function that it was written from."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError
from accelnet.exporting.difference import TOLERANCES, Difference, compare, of_array
from accelnet.exporting.onnx.export import finish, input_values, named, traced
from accelnet.exporting.onnx.graph import Value
from accelnet.exporting.onnx.model import serialize
from accelnet.exporting.onnx.writer import write
from accelnet.ops.program import Step, evaluate
from accelnet.packages import imported
from accelnet.scopes import classes

TOLERANCE = TOLERANCES["float32"]


def check_onnx(data: bytes, function: Callable[[Any], Any], rows: Any) -> Difference:
    """Run an ONNX file in onnxruntime on rows, and compare it with the function that it was written from.

    Args:
        data: The file, as of `to_onnx`.
        function: The function that `to_onnx` was given.
        rows: Arrays as the function's inputs: a batch, in the types of the file.

    Returns:
        The differences.

    Raises:
        UserError: If an output differs by more than 1e-4 of its largest number, or is not finite where the function's
            is; the message names the first layer that differs. Also if onnxruntime is missing or refuses the file.

    Example:
        >>> rows = np.ones((2, 3), np.float32)
        >>> check_onnx(data, jax.nn.relu, rows).largest  # doctest: +SKIP
        0.0
    """
    expected = {name: np.asarray(array) for name, array in named(jax.jit(function)(rows), "outputs").items()}
    found = compare(expected, session_of(data)(rows))
    if found.largest > TOLERANCE:
        raise UserError(
            f"the ONNX file differs from the model: {found.worst} by {found.largest:.1e} of its largest number, "
            f"expected at most {TOLERANCE:.0e}; {first_difference(function, rows)}"
        )
    return found


def session_of(data: bytes) -> Callable[[Any], dict[str, np.ndarray]]:
    """Open an ONNX file in onnxruntime, on the CPU, and return the function of rows that gives its outputs by name.

    Raises:
        UserError: If onnxruntime is missing or refuses the file; the function, if it refuses the rows.
    """
    onnxruntime = imported("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with _refusals():
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]

    def run(rows: Any) -> dict[str, np.ndarray]:
        given = {name: np.asarray(array) for name, array in named(rows, "inputs").items()}
        with _refusals():
            return dict(zip(names, session.run(names, given), strict=True))

    return run


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Report what onnxruntime refuses as a `UserError`."""
    try:
        yield
    except Exception as error:
        raise UserError(f"onnxruntime cannot run the ONNX file: {' '.join(str(error).split())}") from error


def first_difference(function: Callable[[Any], Any], rows: Any) -> str:
    """Name the first operation whose results differ, by running every one of them in both ways."""
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), rows)
    graph, program, names = traced(function, shapes)
    watched: list[tuple[Step, int, str]] = []

    def observe(step: Step, results: list[Value]) -> None:
        for place, value in enumerate(results):
            if value.constant is None and np.dtype(value.dtype).kind == "f":
                name = graph.add("Identity", graph.tensor(value))
                graph.outputs.append((name, value.dtype, value.shape))
                watched.append((step, place, name))

    finish(graph, names, write(program, input_values(graph), graph, observe))
    got = session_of(serialize(graph, {}))(rows)
    given = list(named(rows, "inputs").values())
    results = {id(step): arrays for step, arrays in evaluate(program, given)[1]}
    for step, place, name in watched:
        difference = of_array(np.asarray(results[id(step)][place]), got[name])
        if difference > TOLERANCE:
            layer = f"the layer {classes(step.scope)}, " if step.scope else ""
            return f"the first to differ is {layer}{step.name} of {step.line or 'a library'}, by {difference:.1e}"
    return "with the sizes of these rows written into the file no layer differs: a symbolic size is wrong"
