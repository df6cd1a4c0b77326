"""Whole programs that are called without XLA, with NumPy arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from accelnet.ops.chain import ChainLayer, encode
from accelnet.ops.halves import Whole, reads
from accelnet.ops.host_call import MOST, HostCall, as_read, num_threads, takes
from accelnet.ops.slices import in_slices


def on_host(whole: Whole, early: Any, leaves: Sequence[Any], structure: Any) -> "HostProgram | None":
    """Return a program that is one chain as a function of NumPy arrays, if it has few of them, of usual types.

    Args:
        whole: The chain.
        early: What is computed early.
        leaves: Inputs of the program, or their shapes.
        structure: Structure of its outputs.
    """
    avals = [aval for _, aval in whole.outputs]
    usual = all(takes(leaf.dtype) for leaf in leaves) and all(takes(aval.dtype) for aval in avals)
    full = all(one.size for one in (*leaves, *avals))
    return HostProgram(whole, early, leaves, structure) if usual and full and len(leaves) + len(avals) <= MOST else None


class HostProgram:
    """A program that is one chain; arguments are those of `on_host`.

    Attributes:
        num_bytes: Bytes of its outputs.
    """

    def __init__(self, whole: Whole, early: Any, leaves: Sequence[Any], structure: Any) -> None:
        given = reads(whole.layers)
        fixed = {ref: np.asarray(value) for ref, value in whole.fixed(early).items()}
        inputs = dict(zip(whole.inputs, leaves, strict=True))
        results = dict(whole.outputs)
        own = [np.asarray(array) for arrays in early[1] for array in arrays]

        def code(layers: Sequence[ChainLayer]) -> np.ndarray:
            return encode(layers, [[array.shape for array in arrays] for arrays in early[1]], given, list(results))

        arrays = [*(inputs[ref] for ref in given if ref not in fixed), *results.values()]
        between, weights = 4 * int(code(whole.layers)[0]), sum(one.nbytes for one in own)
        layers, fixed, slices = in_slices(whole.layers, between, weights, inputs, fixed, [*results], num_threads())
        self._call = HostCall(
            code(layers),
            [*(fixed[ref] if ref in fixed else np.dtype(inputs[ref].dtype) for ref in given), *own],
            [(aval.shape, aval.dtype) for aval in results.values()],
            [one.size * one.dtype.itemsize // slices for one in arrays] if slices > 1 else [],
            slices,
        )
        self._places = [whole.inputs.index(ref) for ref in given if ref not in fixed]
        # A value may be several outputs, in several shapes.
        numbers = {ref: number for number, ref in enumerate(results)}
        self._outputs = [(numbers[ref], aval.shape) for ref, aval in whole.outputs]
        self._unflatten = structure.unflatten
        self.num_bytes = sum(aval.size * aval.dtype.itemsize for aval in results.values())

    def __call__(self, leaves: Sequence[np.ndarray]) -> Any:
        """Compute the outputs for the leaves of inputs."""
        results = self._call([as_read(leaves[place]) for place in self._places])
        if len(results) == len(self._outputs):
            return self._unflatten(results)
        return self._unflatten([results[number].reshape(shape) for number, shape in self._outputs])
