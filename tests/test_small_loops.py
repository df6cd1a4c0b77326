"""A loop over little data is one function of the program, unless the user says otherwise."""

import os
import subprocess
import sys

from accelnet.small_loops import OPTION

CODE = """
import accelnet, jax, jax.numpy as jnp

def loop(x):
    return jax.lax.fori_loop(0, 100, lambda i, x: jnp.sin(x) * 0.5 + jnp.sum(x) + i, x)

print(jax.jit(loop).lower(jnp.ones(300)).compile().as_text().count("xla_cpu_small_call"))
"""


def small_loops(**environment):
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", CODE]
    return int(subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout)


def test_small_loops_become_functions_and_other_flags_stay():
    assert small_loops() == 1
    assert small_loops(XLA_FLAGS="--xla_cpu_enable_fast_math=false") == 1


def test_the_users_own_choice_stays():
    assert small_loops(XLA_FLAGS=f"--xla_backend_extra_options={OPTION}=1024") == 0
