"""A model as a LiteRT file: for one row at a time, through the converter of TensorFlow."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError
from accelnet.exporting.onnx.export import named
from accelnet.packages import imported

_SIGNATURE = "serving_default"


def to_litert(function: Callable[[Any], dict[str, Any]], row: Any) -> bytes:
    """Write a function as a LiteRT file, for inputs of one shape, since the converter knows no unknown sizes.

    Args:
        function: Traceable by JAX, with its weights inside.
        row: Inputs of one row, arrays [1, ...].

    Returns:
        The bytes of the file, whose signature names inputs and outputs.

    Raises:
        UserError: if the packages are missing, or the converter refuses the model.
    """
    tf = import_tensorflow()
    from jax.experimental import jax2tf

    given = named(row, "inputs")
    structure = jax.tree.structure(row)

    def flat(**inputs: Any) -> dict[str, Any]:
        return function(jax.tree.unflatten(structure, [inputs[name] for name in given]))

    specs = {name: tf.TensorSpec(one.shape, one.dtype, name=name) for name, one in given.items()}
    try:
        with _silence():
            converted = jax2tf.convert(flat, native_serialization_platforms=["cpu"])
            concrete = tf.function(converted, autograph=False).get_concrete_function(**specs)
            converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
            return converter.convert()
    except Exception as error:
        said = str(error).strip().partition("\n")[0][:300]
        raise UserError(f"LiteRT's converter refuses the model: {said}; --to onnx is another way out") from error


def interpreter_of(data: bytes) -> Callable[[Any], dict[str, np.ndarray]]:
    """Open a LiteRT file, and return the function of one row that gives its outputs by name.

    Raises:
        UserError: if the runtime is missing or refuses the file.
    """
    kind = import_litert()
    try:
        with _silence():
            interpreter = kind(model_content=data)
            interpreter.allocate_tensors()
            runner = interpreter.get_signature_runner(_SIGNATURE)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"LiteRT cannot run its own file: {' '.join(str(error).split())[:300]}") from error

    def run(row: Any) -> dict[str, np.ndarray]:
        return dict(runner(**named(row, "inputs")))

    return run


def import_tensorflow() -> Any:
    """Import TensorFlow, which converts.

    Raises:
        UserError: if it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silence():
        return imported("tensorflow", "litert")


def import_litert() -> Any:
    """Import the interpreter of LiteRT.

    Raises:
        UserError: if it is not installed.
    """
    return imported("ai_edge_litert.interpreter", "litert").Interpreter


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what C++ writes to standard error: a page for every operation that the converter does not know."""
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
