"""Others' quantization of a trained network: onnxruntime's, PyTorch's, torchao's and Keras's, where they are installed.

onnxruntime takes the file that accelnet writes; PyTorch and Keras build the network from its description, with the
trained weights, and round those layers for which they have a form of few bits: dense and recurrent ones in PyTorch,
dense ones in torchao, dense ones and embeddings in Keras.
"""

import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench_systems import layers as describe


class Peer(NamedTuple):
    """A network in another system.

    Attributes:
        name: System and bits.
        answer: Function from rows, an array of the host, to outputs, one too.
        num_bytes: Bytes of its file, or of its weights where the system's file has more in it.
    """

    name: str
    answer: Callable[[np.ndarray], np.ndarray]
    num_bytes: int


def peers_of(
    onnx: bytes, layers: tuple[Any, ...] | None, weights: describe.Weights, rows: np.ndarray
) -> Iterator[Peer]:
    """Make what the installed systems have of a network, one after the other.

    Args:
        onnx: The network as an ONNX file.
        layers: Its description; None where others cannot build it.
        weights: Its weights by path.
        rows: A batch of inputs, for shapes.
    """
    if _installed("onnxruntime", "onnx"):
        yield from _onnxruntime(onnx)
    if layers is None:
        return
    if _installed("torch"):
        yield from _torch(layers, weights)
    if _installed("keras"):
        yield from _keras(layers, weights, rows)


def _installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


def _onnxruntime(onnx: bytes) -> Iterator[Peer]:
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as directory:
        path, smaller = Path(directory) / "model.onnx", Path(directory) / "int8.onnx"
        path.write_bytes(onnx)
        quantize_dynamic(path, smaller)
        files = {"float32": path.read_bytes(), "int8": smaller.read_bytes()}
    for name, file in files.items():
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = os.cpu_count() or 1
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0].name
        yield Peer(
            f"onnxruntime {name}",
            lambda rows, session=session, given=given: session.run(None, {given: rows})[0],
            len(file),
        )


def _torch(layers: tuple[Any, ...], weights: describe.Weights) -> Iterator[Peer]:
    import torch
    from torch import nn

    from bench_systems.pytorch import network

    def peer(name: str, model: Any) -> Peer:
        held = io.BytesIO()
        torch.save(model.state_dict(), held)

        @torch.inference_mode()
        def answer(rows: np.ndarray) -> np.ndarray:
            return model(torch.from_numpy(rows)).numpy()

        return Peer(name, answer, held.tell())

    plain = network(layers, weights).eval()
    yield peer("torch float32", plain)
    yield peer("torch int8", torch.ao.quantization.quantize_dynamic(plain, {nn.Linear, nn.LSTM, nn.GRU}))
    if _installed("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        smaller = network(layers, weights).eval()
        quantize_(smaller, Int8DynamicActivationInt8WeightConfig())
        yield peer("torchao int8", smaller)


def _keras(layers: tuple[Any, ...], weights: describe.Weights, rows: np.ndarray) -> Iterator[Peer]:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    from bench_systems.keras_fit import build

    for bits in (None, "int8", "int4"):
        model = build(layers, weights, rows)
        if bits is not None:
            model.quantize(bits)
        held = sum(np.asarray(one.value).nbytes for one in model.variables)

        def answer(rows: np.ndarray, model: Any = model) -> np.ndarray:
            return np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(rows)))

        yield Peer(f"keras {bits or 'float32'}", answer, held)
