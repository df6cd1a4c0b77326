"""What the C library does with the memory that a program frees.

A compiled program on the CPU allocates its buffers anew on every call. glibc gives blocks above 128 KiB back to the
kernel as soon as they are freed, so every call pays for fresh pages: half of the time of a CNN's inference. In a
training chunk the buffers stay, and nothing changes.
"""

import ctypes
import os
import sys

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT_BYTES = 2**30
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks below 1 GiB for the next call, instead of giving them back to the kernel.

    `import accelnet` does so, unless ACCELNET_MALLOC is "system". The process then holds what it once needed. The
    inference of 256 images of 28x28 by a CNN with 32 and 64 channels took 18 to 26 ms with it and 37 to 45 without, in
    three turns of two processes (two cores, AMD EPYC; `scripts/bench.py --cases cnn_inference_256` times it).

    Returns:
        True if it was done: on Linux with glibc, and where neither ACCELNET_MALLOC=system nor one of glibc's own
        settings (GLIBC_TUNABLES, MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_) says otherwise.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, ACCELNET_MALLOC="system"):
        ...     keep_freed_memory()
        False

    Source: mallopt(3).
    """
    own = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    if os.environ.get("ACCELNET_MALLOC") == "system" or not sys.platform.startswith("linux"):
        return False
    if any(name in os.environ for name in own) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
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


keep_freed_memory()  # on import, so that it comes before the first program's buffers
