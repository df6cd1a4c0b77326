"""What every test and doctest runs under. It stands at the root, so that it holds for accelnet/ too."""

import atexit
import os
import shutil
import tempfile

# ACCELNET_TEST_PLATFORMS=cuda,cpu bash scripts/test.sh tests/ops  runs the operations' tests on a GPU.
os.environ["JAX_PLATFORMS"] = os.environ.get("ACCELNET_TEST_PLATFORMS", "cpu")
# Nearly all of the time is compilation, and LLVM's optimization is most of that: without it the suite takes 8 minutes
# and not 15. `XLA_FLAGS= bash scripts/test.sh` compiles as users do; .ci/run does so for the tests of resuming.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Workers of pytest-xdist inherit the directory of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="accelnet-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = _cache

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
if os.environ["JAX_PLATFORMS"] != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")  # not tf32 or bfloat16: references are float32
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let .ci/run try a second Python in half of the time."""
    parser.addoption(
        "--once", action="store_true", help="of a test with several sets of parameters, run the first only"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the CPU can show, where the tests run elsewhere, and further parameters with --once."""
    if os.environ["JAX_PLATFORMS"] != "cpu":
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason="looks at the CPU's own program, or at eight CPU devices"))
    if config.getoption("--once"):
        first = {item.nodeid.split("[")[0]: item for item in reversed(items)}
        kept = {id(item) for item in first.values()}
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
        items[:] = [item for item in items if id(item) in kept]
