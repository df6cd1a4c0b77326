"""Compare an ONNX file, run in onnxruntime, with the function that it was written from."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError
from accelnet.exporting.difference import TOLERANCES, Difference, compare
from accelnet.exporting.layers import first_difference
from accelnet.exporting.onnx.export import named, to_onnx
from accelnet.packages import imported

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
            f"expected at most {TOLERANCE:.0e}; {first_difference_of(function, rows)}"
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


def first_difference_of(function: Callable[[Any], Any], rows: Any, tolerance: float = TOLERANCE) -> str:
    """Name the first operation whose results differ, in a file that gives all of them."""

    def run(watched: Callable[[Any], Any], rows: Any) -> dict[str, np.ndarray]:
        shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), rows)
        return session_of(to_onnx(watched, shapes))(rows)

    return first_difference(function, rows, run, tolerance)
