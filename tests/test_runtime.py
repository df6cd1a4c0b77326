"""Settings of the process: made when something is trained, never by an import, and the user's own stay."""

import os
import subprocess
import sys

import pytest

from accelnet.cache import UNFINISHED
from accelnet.runtime import SMALL_LOOPS

FAULTS = """
import resource
import numpy as np
from accelnet import runtime

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

made = runtime.prepare()["freed_memory"]
for _ in range(2):
    np.ones(1 << 22)  # 32 MiB
before = faults()
for _ in range(10):
    np.ones(1 << 22)
print(made, faults() - before)
"""
LOOP = """
import jax, jax.numpy as jnp
from accelnet import runtime

runtime.prepare()

def loop(x):
    return jax.lax.fori_loop(0, 100, lambda i, x: jnp.sin(x) * 0.5 + jnp.sum(x) + i, x)

print(jax.jit(loop).lower(jnp.ones(300)).compile().as_text().count("xla_cpu_small_call"))
"""
IMPORT = """
import os
import accelnet, jax
print("xla_backend_extra_options" in os.environ.get("XLA_FLAGS", ""), jax.config.jax_compilation_cache_dir)
"""
CACHE = """
import jax
from accelnet import runtime
print(runtime.enable_compilation_cache(), jax.config.jax_compilation_cache_dir)
"""
COMMAND = """
import gc
from accelnet.cli.entry import guarded

def prepared(args):
    print(gc.isenabled())
    return lambda: None

guarded(prepared, ARGS, str)
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
WRITE = """
import os, pathlib, signal, sys
import jax
from accelnet import runtime

runtime.prepare()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
if sys.argv[1:] == ["die"]:
    pathlib.Path.replace = os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
jax.jit(lambda x: x + 1)(1.0)
"""


def output(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout.split()


def test_an_import_changes_nothing():
    assert output(IMPORT) == ["False", "None"]


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="glibc"
)
def test_memory_is_kept_and_three_variables_turn_that_off():
    made, faults = output(FAULTS)
    assert made == "True" and int(faults) < 1_000
    tunable = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}
    made, faults_of_system = output(FAULTS, ACCELNET_RUNTIME="plain", **tunable)
    assert made == "False" and int(faults_of_system) > 10 * max(int(faults), 1)
    assert output(FAULTS, GLIBC_TUNABLES="glibc.malloc.hugetlb=1")[0] == "False"
    assert output(FAULTS, MALLOC_TRIM_THRESHOLD_="1048576")[0] == "False"


def test_small_loops_become_functions_and_other_flags_stay():
    assert output(LOOP) == ["1"]
    assert output(LOOP, XLA_FLAGS="--xla_cpu_enable_fast_math=false") == ["1"]


def test_the_users_own_choice_stays():
    assert output(LOOP, XLA_FLAGS=f"--xla_backend_extra_options={SMALL_LOOPS}=1024") == ["0"]


def test_the_compilation_cache_is_the_users_own(tmp_path):
    directory = tmp_path / "accelnet" / "xla"
    assert output(CACHE, XDG_CACHE_HOME=str(tmp_path)) == [str(directory)] * 2
    assert directory.stat().st_mode & 0o777 == 0o700
    mine = str(tmp_path / "mine")
    assert output(CACHE, JAX_COMPILATION_CACHE_DIR=mine) == ["None", mine]


def test_a_process_that_dies_while_it_keeps_a_program_leaves_no_half_of_it(tmp_path):
    directory = tmp_path / "accelnet" / "xla"
    for args, code, kept in ((["die"], -9, False), ([], 0, True), ([], 0, True)):
        command = [sys.executable, "-W", "error", "-c", WRITE, *args]
        env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert any(path.name.endswith("-cache") for path in directory.iterdir()) == kept
        assert any(path.name.startswith(UNFINISHED) for path in directory.iterdir())  # for an hour


def test_a_commands_imports_are_not_searched_for_garbage_and_other_calls_change_nothing():
    assert output(COMMAND.replace("ARGS", "None")) == ["False", "True", "True"]
    assert output(COMMAND.replace("ARGS", "[]")) == ["True", "True", "False"]
