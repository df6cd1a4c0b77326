"""Memory that the CPU kernels take beside their operands."""

import subprocess
import sys

import pytest

from accelnet.ops import kernels

PROGRAM = """
import jax, jax.numpy as jnp
from accelnet.ops import conv_general_dilated, kernels
from accelnet.hlo import HloModule
from accelnet.planning.compiled.scratch import scratch_bytes

def loss(rhs, lhs):
    out = conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return (out @ jnp.ones((32, 8)) ** 2).sum()

arguments = jnp.ones((3, 3, 16, 32)), jnp.ones((8, 16, 16, 16))
compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
foretold = scratch_bytes(HloModule(compiled.as_text()))
compiled(*arguments)
print(foretold, kernels.most_bytes())
"""


def test_what_the_kernels_take_is_known_before_the_program_runs():
    if not kernels.load():
        pytest.skip("no C++ compiler here, so there are no kernels")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    foretold, taken = map(int, done.stdout.split())
    # Winograd's kernels of 3 x 3 have 16 or 36 numbers in place of 9.
    assert foretold > 16 * 16 * 32 * 4
    assert taken == foretold
