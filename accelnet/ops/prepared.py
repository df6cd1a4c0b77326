"""Programs of weights that stay: what the weights alone decide is computed once, and the rest is a program of its own.

A layer's kernel is laid out for the processor, or transformed for Winograd's products, each time that a program is
called; for one row that takes longer than the products. The same holds for what normalization makes of its statistics.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from accelnet.ops.halves import split
from accelnet.ops.host_program import HostProgram, on_host
from accelnet.ops.program import flatten
from accelnet.ops.staying_weights import weights_stay


class _Compiled(NamedTuple):
    """The program of one shape of inputs.

    Attributes:
        late: Function from what is computed early and the inputs to the outputs.
        early: What is computed early.
        host: The same for NumPy arrays, without XLA, where there is one.
    """

    late: Any
    early: Any
    host: HostProgram | None


class Prepared:
    """A function of weights and inputs, of which the weights are given once; called with the inputs.

    Each shape of the inputs is compiled when it is first met, to the CPU's program with kernels, which must be there.

    Args:
        function: Function of weights and inputs, trees of arrays.
        weights: The weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from accelnet.ops import kernels
        >>> if kernels.load():
        ...     double = Prepared(lambda weights, x: x @ (2 * weights), jnp.eye(3))
        ...     assert double(jnp.ones((1, 3))).tolist() == [[2.0, 2.0, 2.0]]
    """

    def __init__(self, function: Callable[[Any, Any], Any], weights: Any) -> None:
        self._function, self._weights = function, weights
        self._programs: dict[Any, _Compiled] = {}
        self._kept: dict[Any, Array] = {}

    def __call__(self, inputs: Any) -> Any:
        """Compute the outputs for inputs, a tree of arrays.

        Where all layers are one chain and all inputs NumPy arrays, it is called without XLA, and outputs are NumPy
        arrays, too.
        """
        if type(inputs) is np.ndarray:
            found = self._programs.get((inputs.shape, inputs.dtype))
            if found is not None and found.host is not None:
                return found.host((inputs,))
        leaves, program = self._of(inputs)
        if program.host is not None and all(type(leaf) is np.ndarray for leaf in leaves):
            return program.host(leaves)
        return program.late(program.early, inputs)

    @property
    def num_programs(self) -> int:
        """How many programs there are, one per shape of the inputs."""
        return len(self._programs)

    def num_bytes(self, inputs: Any) -> int:
        """Count the memory of a call: prepared weights, inputs, outputs and what lies between, without the kernels'.

        Args:
            inputs: Inputs of the call, or their shapes.
        """
        leaves, program = self._of(inputs)
        if program.host is not None:
            weights = sum(leaf.nbytes for leaf in jax.tree.leaves(program.early))
            return weights + sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) + program.host.num_bytes
        memory: Any = program.late.lower(program.early, inputs).compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    def _of(self, inputs: Any) -> tuple[list[Any], _Compiled]:
        if isinstance(inputs, np.ndarray | jax.Array):
            leaves, key = [inputs], (inputs.shape, inputs.dtype)
        else:
            leaves, structure = jax.tree.flatten(inputs)
            key = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._made(inputs)
        return leaves, program

    def _made(self, inputs: Any) -> _Compiled:
        with weights_stay():
            closed, shapes = jax.make_jaxpr(self._function, return_shape=True)(self._weights, inputs)
        structure = jax.tree.structure(shapes)
        halves = split(flatten(closed, with_kernels=True), len(jax.tree.leaves(self._weights)))
        early = jax.tree.map(self._once, jax.jit(halves.early)(*jax.tree.leaves(self._weights)))

        @jax.jit
        def late(early: Any, inputs: Any) -> Any:
            return structure.unflatten(halves.late(early, jax.tree.leaves(inputs)))

        host = None if halves.whole is None else on_host(halves.whole, early, jax.tree.leaves(inputs), structure)
        return _Compiled(late, early, host)

    def _once(self, array: Array) -> Array:
        """Return the array that is kept of those that are alike: programs of other shapes prepare the same."""
        key = (array.shape, array.dtype, hashlib.blake2b(np.asarray(array).tobytes()).digest())
        return self._kept.setdefault(key, array)
