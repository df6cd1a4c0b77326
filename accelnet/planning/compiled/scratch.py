"""Memory that accelnet's own CPU kernels take beside their operands, of which the compiler knows nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.hlo import HloModule, Instruction
from accelnet.ops import kernels
from accelnet.planning.compiled.ops import call_of


def scratch_bytes(module: HloModule) -> int:
    """Run every kernel that a program calls once, on zeros, and return what they took.

    Kernels keep their memory for the next call, so that what all together have had at most is what a program has.

    Args:
        module: Program, compiled for this machine's CPU.

    Returns:
        Bytes that the kernels of this process have had at most, in other programs too.

    Example:
        >>> compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile()
        >>> scratch_bytes(HloModule(compiled.as_text())) == kernels.most_bytes()
        True
    """
    calls = {
        (call_of(computation, instruction), _numbers(instruction))
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.target in kernels.TARGETS
    }
    for call, numbers in calls:
        results = [jax.ShapeDtypeStruct(dims, jnp.dtype(dtype)) for dtype, dims in call.results]
        operands = [jnp.zeros(dims, dtype) for dtype, dims in call.operands]
        run = jax.ffi.ffi_call(call.target, results)
        jax.block_until_ready(run(*operands, numbers=np.array(numbers, np.int64)))
    return kernels.most_bytes()


def _numbers(instruction: Instruction) -> tuple[int, ...]:
    """Read the settings of a kernel: "dense<[1, 2]> : tensor<2xi64>", "dense<1> : ..." for equal ones, or "dense<>"."""
    found = re.search(r"numbers = dense<\[?([-\d, ]*)\]?> : tensor<(\d+)xi64>", instruction.attributes)
    if found is None:
        return ()
    numbers = tuple(int(number) for number in re.findall(r"-?\d+", found[1]))
    return numbers if len(numbers) == int(found[2]) else numbers * int(found[2])
