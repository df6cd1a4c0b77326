"""What every test and doctest runs under. It stands at the root, so that it holds for accelnet/ too."""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
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
jax.config.update("jax_numpy_rank_promotion", "raise")
