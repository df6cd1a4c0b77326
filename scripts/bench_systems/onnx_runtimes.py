"""Runtimes of ONNX files, on the file that accelnet writes of the network: onnxruntime and OpenVINO, as they come."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bench_systems.cases import Arrays, Case, forward_loss
from bench_systems.system import System, timed


def make(case: Case, system: str, arrays: Arrays) -> System:
    """Make the system.

    Raises:
        NotImplementedError: for cases that train.
    """
    if case.kind != "inference":
        raise NotImplementedError("it runs networks, and trains none")
    assert arrays.onnx is not None
    predict = {"onnxruntime": _onnxruntime, "openvino": _openvino}[system](arrays.onnx.tobytes())

    def step(number: int) -> np.ndarray:
        return predict(arrays.inputs[number % len(arrays.inputs)])

    def losses(num_steps: int) -> list[float]:
        return [forward_loss(case, step(n), arrays.targets[n]) for n in range(num_steps)]

    return System(losses, timed(step))


def _onnxruntime(file: bytes) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {"inputs": inputs})[0]


def _openvino(file: bytes) -> Callable[[np.ndarray], Any]:
    import openvino

    # An AVX-512 processor with bfloat16 would otherwise compute in that.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(openvino.Core().read_model(file), "CPU", options)
    request = compiled.create_infer_request()
    return lambda inputs: next(iter(request.infer({"inputs": inputs}, share_inputs=True, share_outputs=True).values()))
