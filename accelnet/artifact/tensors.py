"""Weights in the format of safetensors: a header in JSON, and the bytes of the arrays one after the other."""

import json
import math
from collections.abc import Mapping

import jax
import numpy as np

from accelnet.errors import UserError

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_DTYPES = {short: name for name, short in _NAMES.items()}


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as the content of a safetensors file.

    Args:
        arrays: Arrays by name.

    Raises:
        UserError: if the format has no name for a type.

    Example:
        >>> unpack(pack({"b": np.ones(2, np.float32), "a": np.array(3)}))
        {'a': array(3), 'b': array([1., 1.], dtype=float32)}

    Source: the format as described at https://huggingface.co/docs/safetensors.
    """
    header, parts, start = {}, [], 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.name not in _NAMES:
            raise UserError(f"the weight {name} has dtype {array.dtype}, expected one of {', '.join(_NAMES)}")
        content = np.ascontiguousarray(array).tobytes()
        place = [start, start + len(content)]
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
        parts.append(content)
        start += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file; they are views of its content and cannot be written to.

    Args:
        content: What `pack` gives.

    Raises:
        ValueError: if it is something else.

    Example:
        >>> unpack(b"")
        Traceback (most recent call last):
        ValueError: it is no safetensors file
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header, start = json.loads(content[8 : 8 + size]), 8 + size
        header.pop("__metadata__", None)
        found = {}
        for name, one in header.items():
            begin, end = one["data_offsets"]
            dtype = np.dtype(jax.numpy.dtype(_DTYPES[one["dtype"]]))
            if not 0 <= begin <= end or end - begin != math.prod(one["shape"]) * dtype.itemsize:
                raise ValueError(name)
            found[name] = np.frombuffer(content[start + begin : start + end], dtype).reshape(one["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("it is no safetensors file") from None
    return found
