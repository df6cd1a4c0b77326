"""What every test and doctest runs under. It stands at the root, so that it holds for accelnet/ too."""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Workers of pytest-xdist inherit the directory of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="accelnet-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = _cache

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
