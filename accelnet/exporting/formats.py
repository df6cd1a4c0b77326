"""The formats of an export: how each is written, and how it is run."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from accelnet.artifact.load import load
from accelnet.artifact.schema import described_arrays
from accelnet.artifact.tensors import pack, unpack
from accelnet.errors import UserError
from accelnet.exporting.fresh import FreshProcess
from accelnet.exporting.layers import Function, first_difference
from accelnet.exporting.source import Answers, ExportedModel
from accelnet.exporting.stablehlo import BYTECODE, FILES, PROGRAM, to_stablehlo
from accelnet.exporting.turns import timer
from accelnet.json_file import plain_value
from accelnet.packages import imported

# What writes ONNX and LiteRT is imported where it is needed, so that `import accelnet` stays fast.
ARTIFACT, ONNX, LITERT = "model.accelnet", "model.onnx", "model.tflite"
TENSORS, SHAPES = "model.safetensors", "model.safetensors.json"

Contents = dict[str, bytes]
Times = Callable[[int], list[float]]


@dataclass(frozen=True)
class Running:
    """Hold an export in its own runtime.

    Attributes:
        answers: Function of encoded inputs [B, ...] that returns the answers by name.
        timed: Function of such inputs that returns the function of a number of calls, which makes them and returns the
            seconds of each. None: there is nothing to time.
        batch: Rows that it takes at once. None: any number.
        any_steps: Whether it takes any number of steps where the model does.
    """

    answers: Callable[[Any], Answers]
    timed: Callable[[Any], Times] | None
    batch: int | None = None
    any_steps: bool = True


@dataclass(frozen=True)
class Format:
    """Describe a format.

    Attributes:
        files: Names of the files.
        write: Function of a source that returns the contents of the files by name.
        runtime: Function that names the runtime that checks them, and raises UserError where a package is missing.
        running: Function of the folder of the files and the source, a context that gives the export `Running`.
        layer: Function of a source and inputs, as many rows as it takes at once, that names the first layer which
            differs. None: it computes by the model's own program, and has no layers of its own.
    """

    files: tuple[str, ...]
    write: Callable[[ExportedModel], Contents]
    runtime: Callable[[], str]
    running: Callable[[Path, ExportedModel], AbstractContextManager[Running]]
    layer: Callable[[ExportedModel, Any], str] | None = None


def _write_artifact(source: ExportedModel) -> Contents:
    return {ARTIFACT: source.model.path.read_bytes()}


@contextlib.contextmanager
def _artifact(folder: Path, source: ExportedModel) -> Iterator[Running]:
    model = load(folder / ARTIFACT)
    yield _in_process(model.answers, source)


def _write_tensors(source: ExportedModel) -> Contents:
    shapes = {name: described_arrays(one) for name, one in sorted(source.model.weights.items())}
    return {TENSORS: pack(source.model.weights), SHAPES: _json(shapes)}


@contextlib.contextmanager
def _tensors(folder: Path, source: ExportedModel) -> Iterator[Running]:
    """Compute with the weights as they are read back, by the package safetensors where it is installed."""
    content = (folder / TENSORS).read_bytes()
    weights = unpack(content)
    with contextlib.suppress(ImportError):
        from safetensors.numpy import load as read

        weights = {**weights, **{name: one for name, one in read(content).items() if name in weights}}
    for name, one in source.model.weights.items():
        if weights[name].dtype != one.dtype or weights[name].tobytes() != one.tobytes():
            raise UserError(f"the weight {name} is not what was written into {TENSORS}")
    yield Running(lambda inputs: {k: np.asarray(one) for k, one in source.call(weights, inputs).items()}, None)


def _write_stablehlo(source: ExportedModel) -> Contents:
    files = to_stablehlo(source.model.exported())
    return {name: one if isinstance(one, bytes) else _json(one) for name, one in files.items()} | _write_tensors(source)


@contextlib.contextmanager
def _stablehlo(folder: Path, source: ExportedModel) -> Iterator[Running]:
    with FreshProcess(folder / PROGRAM, folder / BYTECODE, folder / TENSORS) as process:

        def timed(inputs: Any) -> Times:
            def run(calls: int) -> list[float]:
                process.take(inputs)
                return process.time(calls)

            return run

        yield Running(process, timed, source.model.schema["batch"])


def _stablehlo_layer(source: ExportedModel, inputs: Any) -> str:
    def run(watched: Function, rows: Any) -> Answers:
        shapes = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype), rows)
        exported = export.export(jax.jit(lambda _, inputs: watched(inputs)))({}, shapes)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name, content in {**to_stablehlo(exported), TENSORS: pack({})}.items():
                if isinstance(content, bytes):
                    (folder / name).write_bytes(content)
            with FreshProcess(folder / PROGRAM, folder / BYTECODE, folder / TENSORS) as process:
                return process(rows)

    return first_difference(source.closed(), inputs, run, source.tolerance)


def _write_onnx(source: ExportedModel) -> Contents:
    from accelnet.exporting.onnx import to_onnx

    return {ONNX: to_onnx(source.closed(), source.shapes, metadata=told_of(source))}


def told_of(source: ExportedModel) -> dict[str, str]:
    """Return what an ONNX file says of its model: texts by name, values as JSON.

    Args:
        source: The model.
    """
    model = source.model
    fitted = model.schema["fitted"]
    values = {
        "experiment": model.config["experiment"],
        "accelnet": model.config["versions"]["accelnet"],
        "step": model.metrics["step"],
        "kind": model.schema["kind"],
        "class_names": fitted.get("class_names", ()),
        "target": fitted.get("target"),
        "schema": model.schema,
        "metrics": model.metrics["metrics"],
    }
    texts = {name: plain_value(one) for name, one in values.items() if one not in (None, ())}
    return {name: one if isinstance(one, str) else json.dumps(one) for name, one in texts.items()}


@contextlib.contextmanager
def _onnx(folder: Path, source: ExportedModel) -> Iterator[Running]:
    from accelnet.exporting.onnx.check import session_of

    yield _in_process(session_of((folder / ONNX).read_bytes()), source)


def _onnx_layer(source: ExportedModel, inputs: Any) -> str:
    from accelnet.exporting.onnx.check import first_difference_of

    return first_difference_of(source.closed(), inputs, source.tolerance)


def _write_litert(source: ExportedModel) -> Contents:
    from accelnet.exporting.litert import to_litert

    return {LITERT: to_litert(source.closed(), jax.tree.map(lambda one: one[:1], source.rows))}


@contextlib.contextmanager
def _litert(folder: Path, _source: ExportedModel) -> Iterator[Running]:
    from accelnet.exporting.litert import interpreter_of

    run = interpreter_of((folder / LITERT).read_bytes())
    yield Running(run, lambda inputs: timer(partial(run, inputs)), batch=1, any_steps=False)


def _litert_layer(source: ExportedModel, inputs: Any) -> str:
    from accelnet.exporting.litert import interpreter_of, to_litert

    def run(watched: Function, row: Any) -> Answers:
        return interpreter_of(to_litert(watched, row))(row)

    return first_difference(source.closed(), inputs, run, source.tolerance)


def _in_process(run: Callable[[Any], Answers], source: ExportedModel) -> Running:
    return Running(run, lambda inputs: timer(partial(run, inputs)), source.model.schema["batch"])


def _onnx_runtime() -> str:
    imported("onnx", "onnx")
    return f"onnxruntime {imported('onnxruntime', 'onnx').__version__}"


def _litert_runtime() -> str:
    from accelnet.exporting.litert import import_litert, import_tensorflow

    import_tensorflow()
    import_litert()
    return f"LiteRT {metadata.version('ai-edge-litert')}"


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


FORMATS = {
    "artifact": Format((ARTIFACT,), _write_artifact, lambda: f"accelnet {metadata.version('accelnet')}", _artifact),
    "onnx": Format((ONNX,), _write_onnx, _onnx_runtime, _onnx, _onnx_layer),
    "stablehlo": Format(
        (*FILES, TENSORS, SHAPES),
        _write_stablehlo,
        lambda: f"a process with jax {jax.__version__} alone",
        _stablehlo,
        _stablehlo_layer,
    ),
    "safetensors": Format((TENSORS, SHAPES), _write_tensors, lambda: "reading them back", _tensors),
    "litert": Format((LITERT,), _write_litert, _litert_runtime, _litert, _litert_layer),
}
_SAVED_MODEL = "TensorFlow 2.21 reads programs for any number of rows of jax 0.10, not of jax 0.12: take onnx or litert"
REFUSED = {
    "savedmodel": _SAVED_MODEL,
    "saved_model": _SAVED_MODEL,
    "tensorflow": _SAVED_MODEL,
    "tflite": "it is called litert here",
    "torch": "take onnx, or safetensors for the weights alone",
    "torchscript": "take onnx, or safetensors for the weights alone",
    "pickle": "nothing here writes what runs code when it is read: take safetensors",
}
