"""Settings of this process: where compiled programs are kept, what happens to freed memory, how small loops compile."""

import ctypes
import functools
import os
import sys
from pathlib import Path

from accelnet.cache import private_directory

ENVIRONMENT_VARIABLE = "ACCELNET_RUNTIME"
SMALL_LOOPS = "xla_cpu_small_while_loop_byte_threshold"
# XLA's own is 1 KiB. The XOR network's step takes 0.24 us from 8 KiB on and 1.16 below; MLPs from 4-8-3 to 64-128-10
# took as long with 1 KiB as with 1 GiB (two cores, AMD EPYC, jax 0.10.2): their products stay kernels either way.
_SMALL_BYTES = 1 << 15
# Constants of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT_BYTES = 2**30
_NEVER = 2**31 - 1
# Below this, reading from the disk is not faster than compiling.
_MIN_COMPILE_SECONDS = 0.1


@functools.cache
def prepare() -> dict[str, bool]:
    """Set this process up, once. `main`, `fit`, `evaluate` and every compilation of a run call it.

    XLA reads its flags when the first program of the process is compiled: call it before, where a notebook trains
    networks as small as that of XOR, whose step then takes a fifth of the time. Nothing else depends on when it is
    called. `ACCELNET_RUNTIME=plain` leaves everything as it is.

    Returns:
        What was set: "compilation_cache", "freed_memory" and "small_loops".

    Example:
        >>> sorted(prepare())
        ['compilation_cache', 'freed_memory', 'small_loops']
    """
    settings = {
        "compilation_cache": enable_compilation_cache, "freed_memory": keep_freed_memory,
        "small_loops": compile_small_loops,
    }  # fmt: skip
    if os.environ.get(ENVIRONMENT_VARIABLE) == "plain":
        return dict.fromkeys(settings, False)
    return {name: bool(setting()) for name, setting in settings.items()}


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs in a directory that only the user can enter (mode 0700).

    Whatever is set already is left alone: `JAX_COMPILATION_CACHE_DIR` names another directory, and
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

    Returns:
        The directory, or None where the cache is off, not possible, or the user's own choice.

    Example:
        >>> directory = enable_compilation_cache()
    """
    import jax

    values = jax.config.values
    if values["jax_compilation_cache_dir"] is not None or not values["jax_enable_compilation_cache"]:
        return None
    directory = private_directory("xla")
    if directory is None:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    return directory


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks below 1 GiB for the next call, instead of giving them back to the kernel.

    A compiled program on the CPU allocates its buffers anew on every call. glibc gives blocks above 128 KiB back as
    soon as they are freed, so every call pays for fresh pages: half of the time of a CNN's inference. In a training
    chunk the buffers stay, and nothing changes. The process then holds what it once needed. The inference of 256 images
    of 28x28 by a CNN with 32 and 64 channels took 18 to 26 ms with it and 37 to 45 without, in three turns of two
    processes (two cores, AMD EPYC; `scripts/bench.py --cases cnn_inference_256` times it).

    Returns:
        True if it was done: on Linux with glibc, and where none of glibc's own settings (GLIBC_TUNABLES,
        MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_) says otherwise.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, MALLOC_TRIM_THRESHOLD_="1048576"):
        ...     keep_freed_memory()
        False

    Source: mallopt(3).
    """
    own = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    if not sys.platform.startswith("linux") or any(name in os.environ for name in own):
        return False
    library = ctypes.CDLL(None)
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {_M_MMAP_THRESHOLD: _LARGEST_KEPT_BYTES, _M_TRIM_THRESHOLD: _NEVER}
    return all(library.mallopt(name, value) == 1 for name, value in settings.items())


def return_freed_memory() -> None:
    """Give freed memory back to the kernel, once: after a compilation, which leaves 100 to 200 MB behind.

    Example:
        >>> return_freed_memory()

    Source: malloc_trim(3).
    """
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def compile_small_loops() -> bool:
    """Have XLA's CPU compiler make one function of every loop that touches less than 32 KiB in a turn.

    A kernel costs more to start than a tiny network's operations take: 60 of them make a step of the XOR network. The
    option is added to XLA_FLAGS, which processes that this one starts inherit.

    Returns:
        True if the option was added; False where XLA_FLAGS sets it or another one of its kind already.
        `XLA_FLAGS=--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1024` is XLA's own choice.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, XLA_FLAGS=f"--xla_backend_extra_options={SMALL_LOOPS}=1024"):
        ...     compile_small_loops()
        False
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_extra_options" in flags:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_extra_options={SMALL_LOOPS}={_SMALL_BYTES}".strip()
    return True
