"""Compare an ONNX file, run in onnxruntime, with the function that it was written from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError
from accelnet.exporting.onnx.export import finish, input_values, named, traced
from accelnet.exporting.onnx.graph import Value
from accelnet.exporting.onnx.model import serialize
from accelnet.exporting.onnx.program import Step, evaluate
from accelnet.exporting.onnx.writer import write

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """Measure how far an exported model is from the original.

    Attributes:
        outputs: Largest difference of each output, as a share of its largest number.
        num_rows: Rows that were compared.
    """

    outputs: Mapping[str, float]
    num_rows: int

    @property
    def largest(self) -> float:
        """The largest of the outputs' differences."""
        return max(self.outputs.values())


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
    given = {name: np.asarray(array) for name, array in named(rows, "inputs").items()}
    got = dict(zip(expected, run(data, given, list(expected)), strict=True))
    found = Difference(
        {name: _difference(got[name], array) for name, array in expected.items()}, len(next(iter(given.values())))
    )
    worst = max(found.outputs, key=lambda name: found.outputs[name])
    if found.largest > TOLERANCE:
        raise UserError(
            f"the ONNX file differs from the model: {worst} by {found.largest:.1e} of its largest number, "
            f"expected at most {TOLERANCE:.0e}; {first_difference(function, rows)}"
        )
    return found


def run(data: bytes, inputs: Mapping[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    """Run an ONNX file in onnxruntime on the CPU.

    Raises:
        UserError: If onnxruntime is missing or refuses the file or the inputs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"checking needs the package onnxruntime ({error}): pip install 'accelnet[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        results: Any = session.run(outputs, dict(inputs))
        return results
    except Exception as error:
        raise UserError(f"onnxruntime cannot run the ONNX file: {' '.join(str(error).split())}") from error


def first_difference(function: Callable[[Any], Any], rows: Any) -> str:
    """Name the first operation whose results differ, by running every one of them in both ways."""
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), rows)
    graph, program, names = traced(function, shapes)
    watched: list[tuple[Step, int, Value, str]] = []

    def observe(step: Step, results: list[Value]) -> None:
        for place, value in enumerate(results):
            if value.constant is None and np.dtype(value.dtype).kind == "f":
                name = graph.add("Identity", graph.tensor(value))
                graph.outputs.append((name, value.dtype, value.shape))
                watched.append((step, place, value, name))

    finish(graph, names, write(program, input_values(graph), graph, observe))
    given = {name: np.asarray(array) for name, array in named(rows, "inputs").items()}
    got = dict(
        zip([name for *_, name in watched], run(serialize(graph, {}), given, [w[-1] for w in watched]), strict=True)
    )
    results = {id(step): arrays for step, arrays in evaluate(program, list(given.values()))[1]}
    for step, place, _, name in watched:
        difference = _difference(got[name], np.asarray(results[id(step)][place]))
        if difference > TOLERANCE:
            layer = f"the layer {step.scope}, " if step.scope else ""
            return f"the first to differ is {layer}{step.name} of {step.line or 'a library'}, by {difference:.1e}"
    return "with the sizes of these rows written into the file no layer differs: a symbolic size is wrong"


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest number, infinity where one alone is not finite."""
    if got.shape != expected.shape:
        return np.inf
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    if not expected.size:
        return 0.0
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return np.inf
    largest = np.abs(expected[finite]).max(initial=0.0)
    differences = np.abs(got[finite] - expected[finite]).max(initial=0.0)
    return float(differences / largest) if largest else float(differences)
