"""What every test and doctest runs under. It stands at the root, so that it holds for accelnet/ too."""

import gc
import importlib.metadata
import os
import platform
from pathlib import Path

# ACCELNET_TEST_PLATFORMS=cuda,cpu bash scripts/test.sh tests/ops  runs the operations' tests on a GPU.
os.environ["JAX_PLATFORMS"] = os.environ.get("ACCELNET_TEST_PLATFORMS", "cpu")
# Nearly all of the time is compilation. Without LLVM's optimization that takes half, and without XLA's newer emitters
# of fusions, which go through more passes, another fifth less; later versions of XLA do not know that flag any more.
# Nor is a module cut into parts for threads, of which the tests' processes have none to spare.
# `XLA_FLAGS= bash scripts/test.sh` compiles as users do; .ci/run does so for the tests of resuming.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
)
# Nothing here asks a program which line of Python an operation came from, and lowering without that takes less.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Programs and kernels that earlier runs compiled are used again: a warm run takes a fraction of a cold one. The key is
# what they depend on; $ACCELNET_TEST_CACHE names another directory.
os.environ["XDG_CACHE_HOME"] = str(
    Path(os.environ.get("ACCELNET_TEST_CACHE") or Path(__file__).parent / ".cache")
    / "-".join([platform.python_version(), *[importlib.metadata.version(name) for name in ("jax", "jaxlib")]])
)

import jax
import pytest

from accelnet import runtime

jax.config.update("jax_num_cpu_devices", 8)
if os.environ["JAX_PLATFORMS"] != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")  # not tf32 or bfloat16: references are float32
jax.config.update("jax_numpy_rank_promotion", "raise")
runtime.prepare()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # thousands of small programs


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let .ci/run try a second Python in half of the time."""
    parser.addoption(
        "--once", action="store_true", help="of a test with several sets of parameters, run the first only"
    )


def pytest_collection_finish() -> None:
    """Let Python's collector leave alone what stays until the end: thousands of tests, and all modules."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put first what waits; leave out what only the CPU can show, elsewhere, and further parameters with --once."""
    # The first worker begins with those that wait, and leaves the cores to the others.
    items.sort(key=lambda item: item.get_closest_marker("waits") is None)
    if os.environ["JAX_PLATFORMS"] != "cpu":
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason="looks at the CPU's own program, or at eight CPU devices"))
    if config.getoption("--once"):
        first = {item.nodeid.split("[")[0]: item for item in reversed(items)}
        kept = {id(item) for item in first.values()}
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
        items[:] = [item for item in items if id(item) in kept]
