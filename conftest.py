"""What every test and doctest runs under. It stands at the root, so that it holds for accelnet/ too."""

import atexit
import os
import shutil
import tempfile

# ACCELNET_TEST_PLATFORM=cuda bash scripts/test.sh tests/ops  runs the operations' tests on a GPU.
_platform = os.environ.get("ACCELNET_TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = _platform if _platform == "cpu" else f"{_platform},cpu"
# Nearly all of the time is compilation, and LLVM's optimization is most of that: without it the suite takes 8 minutes
# and not 15. `XLA_FLAGS= bash scripts/test.sh` compiles as users do; .ci/run does so for the tests of resuming.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Workers of pytest-xdist inherit the directory of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="accelnet-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = _cache

import jax

jax.config.update("jax_num_cpu_devices", 8)
if _platform != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")  # not tf32 or bfloat16: references are float32
jax.config.update("jax_numpy_rank_promotion", "raise")
