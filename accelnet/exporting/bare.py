"""A process that runs an exported StableHLO program with jax and NumPy alone, and times it.

    python bare.py PROGRAM BYTECODE WEIGHTS

PROGRAM is jax's own file, whose bytecode is replaced by that of BYTECODE. A line of standard input asks for something,
as JSON, and a line of standard output answers: {"inputs": FILE, "outputs": FILE} computes, {"calls": N} computes the
same N times and tells the seconds of each.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    types = {"BOOL": "bool", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    kinds = {"F": "float", "I": "int", "U": "uint"}
    found = {}
    for name, one in json.loads(content[8 : 8 + size]).items():
        dtype = types.get(one["dtype"]) or kinds[one["dtype"][0]] + one["dtype"][1:]
        begin, end = (8 + size + place for place in one["data_offsets"])
        found[name] = np.frombuffer(content[begin:end], jax.numpy.dtype(dtype)).reshape(one["shape"])
    return found


def unflattened(arrays: Any) -> Any:
    """Return what "a/b" names as a dict of dicts; one array that is named "" stands alone."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *outer, last = path.split("/")
        place = tree
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = array
    return tree.get("", tree)


def storable(array: Any) -> np.ndarray:
    """Return an array in a type that NumPy's files have: bfloat16 as float32."""
    return np.asarray(array, np.float32) if array.dtype == jax.numpy.bfloat16 else np.asarray(array)


def main(program: str, bytecode: str, weights: str) -> None:
    """Answer requests until there are no more."""
    assert "accelnet" not in sys.modules
    exported = export.deserialize(bytearray(Path(program).read_bytes()))
    exported = dataclasses.replace(exported, mlir_module_serialized=Path(bytecode).read_bytes())
    named = jax.device_put(read_arrays(Path(weights).read_bytes()))
    call = jax.jit(exported.call)
    inputs: Any = None
    replies = os.fdopen(sys.stdout.fileno(), "wb", buffering=0)
    for line in sys.stdin:
        request = json.loads(line)
        if "inputs" in request:
            with np.load(request["inputs"], allow_pickle=False) as stored:
                inputs = unflattened({name: stored[name] for name in stored.files})
            answers = {name: storable(one) for name, one in jax.device_get(call(named, inputs)).items()}
            np.savez(request["outputs"], allow_pickle=False, **answers)
        seconds = []
        for _ in range(request.get("calls", 0)):
            start = time.perf_counter()
            jax.device_get(call(named, inputs))
            seconds.append(time.perf_counter() - start)
        replies.write(json.dumps({"seconds": seconds}).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
