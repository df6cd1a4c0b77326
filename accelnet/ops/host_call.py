"""A chain that is called without XLA: from NumPy arrays to NumPy arrays."""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from accelnet.ops.kernels import library

# Numbers of the types that chains read, as of XLA's FFI.
_TYPES = {"bool": 1, "int8": 2, "int16": 3, "int32": 4, "uint8": 6, "uint16": 7, "float32": 11}
MOST = 6  # arrays that a call has, of `accelnet_chain_call`


def _offset() -> int:
    """Return where in NumPy's objects the pointer to their data lies, 0 if that is not where CPython has it.

    To ask an array takes longer than a small layer.
    """
    probe, behind_head = np.empty(1), object.__basicsize__
    found = ctypes.c_void_p.from_address(id(probe) + behind_head).value
    return behind_head if found == probe.ctypes.data else 0


_OFFSET = _offset()


class HostCall:
    """A chain of the library with its weights; any threads may call it at the same time.

    Args:
        numbers: What tells the chain, as of `chain.encode`.
        arguments: Its arguments: arrays that stay, or dtypes of those that come with each call.
        results: Shapes and dtypes of its results. With the arrays of a call they are at most `MOST`.
        steps: Bytes of a slice of each array of a call and then of each result. The chain is that of a slice.
        slices: How many slices there are, which threads share.

    Example:
        >>> from accelnet.ops import kernels
        >>> if kernels.load():  # one layer, of kind 10: (x - 1) * 2
        ...     vectors = np.array([[[1.0]], [[2.0]]], np.float32)
        ...     code = [0, 1, 10, 3, 0, 0, 2, 3, 1, 0, 1, 2, 1, 1, 0, 2, 2, 1, 1, 1, 1, 0, 2, 3, 1, 0]
        ...     chain = HostCall(np.array(code), [np.dtype("uint8"), *vectors], [((3, 1), np.float32)])
        ...     assert chain([np.array([1, 2, 3], np.uint8)])[0].ravel().tolist() == [0, 2, 4]
    """

    def __init__(
        self,
        numbers: np.ndarray,
        arguments: Sequence[np.ndarray | np.dtype],
        results: Sequence[tuple[Any, Any]],
        steps: Sequence[int] = (),
        slices: int = 1,
    ) -> None:
        native = library.loaded()
        self._chain = None
        self._kept = [as_read(one) if isinstance(one, np.ndarray) else None for one in arguments]
        self._results = [(tuple(shape), np.dtype(dtype)) for shape, dtype in results]
        self._none = [None] * (MOST - len(results) - sum(one is None for one in self._kept))
        dtypes = [one.dtype if isinstance(one, np.ndarray) else one for one in arguments]
        types = (ctypes.c_int64 * len(dtypes))(*(_TYPES[dtype.name] for dtype in dtypes))
        data = (ctypes.c_void_p * len(dtypes))(*(None if one is None else one.ctypes.data for one in self._kept))
        code = (ctypes.c_int64 * len(numbers))(*map(int, numbers))
        self._call, self._free = native.accelnet_chain_call, native.accelnet_chain_free
        self._chain = native.accelnet_chain_make(
            code, len(code), types, data, len(dtypes), len(results), num_threads(),
            (ctypes.c_int64 * len(steps))(*steps), slices,
        )  # fmt: skip

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute the results of arrays, as of `as_read`, of the shapes and dtypes that it was made for."""
        results = [np.empty(shape, dtype) for shape, dtype in self._results]
        if _OFFSET:
            self._call(self._chain, _OFFSET, *map(id, arrays), *map(id, results), *self._none)
        else:
            places = [one.ctypes.data for one in (*arrays, *results)]
            self._call(self._chain, 0, *places, *self._none)
        return results

    def __del__(self) -> None:
        if self._chain is not None:
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
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def num_threads() -> int:
    """Return how many threads XLA's CPU client has.

    Example:
        >>> num_threads() >= 1
        True
    """
    for name in ("PJRT_NPROC", "NPROC"):
        if (given := os.environ.get(name, "")).isdigit() and int(given) > 0:
            return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
