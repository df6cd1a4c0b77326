"""A chain that is called without XLA: from NumPy arrays to NumPy arrays, in a microsecond or two beside its layers."""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from accelnet.ops.kernels import library

# Numbers of the types that chains read, as of XLA's FFI.
_TYPES = {"bool": 1, "int8": 2, "int16": 3, "int32": 4, "uint8": 6, "uint16": 7, "float32": 11}


class HostCall:
    """A chain of the library with its weights; any threads may call it at the same time.

    Args:
        numbers: What tells the chain, as of `chain.encode`.
        arguments: Its arguments: arrays that stay, or dtypes of those that come with each call.
        results: Shapes and dtypes of its results.

    Example:
        >>> from accelnet.ops import kernels
        >>> if kernels.load():  # one layer, of kind 10: (x - 1) * 2
        ...     vectors = np.array([[[1.0]], [[2.0]]], np.float32)
        ...     code = [0, 1, 10, 3, 0, 0, 2, 3, 1, 0, 1, 2, 1, 1, 0, 2, 2, 1, 1, 1, 1, 0, 2, 3, 1, 0]
        ...     chain = HostCall(np.array(code), [np.dtype("uint8"), *vectors], [((3, 1), np.float32)])
        ...     assert chain(np.array([1, 2, 3], np.uint8))[0].ravel().tolist() == [0, 2, 4]
    """

    def __init__(
        self, numbers: np.ndarray, arguments: Sequence[np.ndarray | np.dtype], results: Sequence[tuple[Any, Any]]
    ) -> None:
        native = library.loaded()
        numbers = np.ascontiguousarray(numbers, np.int64)
        self._kept = [np.ascontiguousarray(one) if isinstance(one, np.ndarray) else None for one in arguments]
        self._results = [(tuple(shape), np.dtype(dtype)) for shape, dtype in results]
        dtypes = [one.dtype if isinstance(one, np.ndarray) else one for one in arguments]
        count = sum(one is None for one in self._kept) + len(results)
        self._pointers, self._call, self._free = ctypes.c_void_p * count, native.accelnet_chain_call, None
        types = (ctypes.c_int64 * len(dtypes))(*(_TYPES[dtype.name] for dtype in dtypes))
        data = (ctypes.c_void_p * len(dtypes))(*(None if one is None else one.ctypes.data for one in self._kept))
        pointer = numbers.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
        made = native.accelnet_chain_make(
            pointer, len(numbers), types, data, len(dtypes), len(results), _num_threads()
        )
        self._chain, self._free = made, native.accelnet_chain_free

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Compute the results of arrays, of the shapes and dtypes that it was made for, C-contiguous and aligned."""
        results = [np.empty(shape, dtype) for shape, dtype in self._results]
        self._call(
            self._chain, self._pointers(*[one.ctypes.data for one in arrays], *[one.ctypes.data for one in results])
        )
        return results

    def __del__(self) -> None:
        if self._free is not None:
            self._free(self._chain)


def takes(dtype: Any) -> bool:
    """Say whether chains read numbers of a type as they lie in a NumPy array, and JAX does not make others of them.

    Example:
        >>> takes(np.dtype("float32")), takes(np.dtype(">f4")), takes(np.dtype("int64"))
        (True, False, False)
    """
    return dtype.name in _TYPES and dtype.isnative


def as_read(array: np.ndarray) -> np.ndarray:
    """Return an array as chains read it: without gaps, where processors expect its numbers.

    Example:
        >>> as_read(np.arange(6).reshape(2, 3).T).flags.c_contiguous
        True
    """
    return array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")


def _num_threads() -> int:
    """Return how many threads XLA's CPU client has."""
    for name in ("PJRT_NPROC", "NPROC"):
        if (given := os.environ.get(name, "")).isdigit() and int(given) > 0:
            return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
