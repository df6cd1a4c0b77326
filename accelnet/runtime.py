"""Settings of this process: where compiled programs are kept, memory, how small loops compile."""

import atexit
import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelnet.cache import close_to_others, private_directory, write_private

ENVIRONMENT_VARIABLE = "ACCELNET_RUNTIME"
SMALL_LOOPS = "xla_cpu_small_while_loop_byte_threshold"
# XLA's default is 1 KiB. The XOR network's step takes 0.24 us from 8 KiB on and 1.16 below; MLPs from 4-8-3 to
# 64-128-10 took as long with 1 KiB as with 1 GiB (two cores, AMD EPYC, jax 0.10.2): their products stay kernels.
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

    XLA reads its flags when the first program of the process is compiled. A notebook that trains networks as small as
    that of XOR calls it before: a step then takes a fifth of the time. Nothing else depends on when it is called.
    `ACCELNET_RUNTIME=plain` leaves everything as it is.

    Returns:
        Whether each of "compilation_cache", "freed_memory" and "small_loops" was set.

    Example:
        >>> sorted(prepare())
        ['compilation_cache', 'freed_memory', 'small_loops']
    """
    settings = {
        "compilation_cache": enable_compilation_cache, "freed_memory": keep_freed_memory,
        "small_loops": compile_small_loops,
    }  # fmt: skip
    plain = os.environ.get(ENVIRONMENT_VARIABLE) == "plain"
    return {name: not plain and bool(setting()) for name, setting in settings.items()}


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs in a directory that only the user can enter, with programs that nobody else has put there.

    What the user has set stays: `JAX_COMPILATION_CACHE_DIR` names another directory, and
    `JAX_ENABLE_COMPILATION_CACHE=false` switches the cache off.

    Returns:
        The directory, or None where the cache is off, not possible, or set by the user.

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
    _write_programs_whole(directory)
    atexit.register(close_to_others, directory)
    return directory


def _write_programs_whole(directory: Path) -> None:
    """Give a program its name in the cache when all of it is written.

    jax writes under that name from the start. If the process is killed meanwhile, a part stays, which jax never
    replaces: every later process reads it, warns, and compiles anew. So does one that reads while another writes.
    """
    try:
        from jax._src import lru_cache  # the same in jax 0.10 and 0.12
    except ImportError:
        return  # of another version: programs are written as jax does it

    put = lru_cache.LRUCache.put

    def put_whole(cache: Any, key: str, value: bytes) -> None:
        path = directory / f"{key}{lru_cache._CACHE_SUFFIX}"
        if cache.eviction_enabled or Path(cache.path) != directory:
            put(cache, key, value)
        elif not path.exists():
            write_private(path, value)

    lru_cache.LRUCache.put = put_whole  # type: ignore[method-assign]


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks below 1 GiB for the next call, instead of giving them back to the kernel.

    A compiled program on the CPU allocates its buffers anew on every call. glibc gives blocks above 128 KiB back as
    soon as they are freed, so every call pays for fresh pages: half of the time of a CNN's inference (256 images of
    28x28, 32 and 64 channels: 18 to 26 ms with this setting and 37 to 45 without, three turns of two processes on two
    cores of an AMD EPYC; `scripts/bench.py --cases cnn_inference_256`). In a training chunk the buffers stay, and
    nothing changes. The process keeps the memory that it once needed.

    Returns:
        Whether it was done: on Linux with glibc, unless one of glibc's own settings (GLIBC_TUNABLES,
        MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_) is set.

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


@contextlib.contextmanager
def imports_uncollected() -> Iterator[None]:
    """Look for no garbage among what a command imports: not meanwhile, not later, and not when the process ends.

    Modules stay, and those of jax are many: Python's collector would go through all of them again and again, and once
    more at the end. This is for a process that runs one command: what is garbage in the block is never freed.

    Example:
        >>> with imports_uncollected():
        ...     import json

    Source: gc.freeze, documentation of Python.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.freeze)
        if was_enabled:
            gc.enable()


def compile_small_loops() -> bool:
    """Let XLA's CPU compiler make one function of every loop that touches less than 32 KiB in a turn.

    Starting a kernel takes longer than a tiny network's operations, and a step of the XOR network has 60 kernels. The
    option is added to XLA_FLAGS, which child processes inherit.

    Returns:
        Whether the option was added; False where XLA_FLAGS has it or another backend option already.
        `XLA_FLAGS=--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1024` keeps XLA's default.

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
