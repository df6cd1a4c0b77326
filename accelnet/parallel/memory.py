"""Memory of this process's devices: what there is, what is free, and a message where it does not suffice."""

import contextlib
import ctypes
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelnet.errors import UserError
from accelnet.terminal import say
from accelnet.wording import size

_EXHAUSTED = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "std::bad_alloc")
_ADVICE = (
    "take a smaller model, batch_size or microbatch_size, an optimizer that keeps less, precision='bfloat16', or a "
    "mesh with fsdp over several devices; `plan` tells what a run needs and where it fits"
)


@dataclass(frozen=True)
class Limit:
    """A limit of memory.

    Attributes:
        name: What limits, in words.
        free_bytes: Bytes that this process can take now.
        most_bytes: Bytes that it can hold at the most, whatever others give back.
        most_more_bytes: Bytes that it can take beside what it has, at the most; None where others can give some back.
    """

    name: str
    free_bytes: int
    most_bytes: int
    most_more_bytes: int | None = None


def limits(devices: Sequence[Any]) -> list[Limit]:
    """Return what limits the memory of each of some devices; those of a CPU have the machine's.

    Example:
        >>> import jax
        >>> all(limit.free_bytes > 0 for limit in limits(jax.local_devices()[:1]))
        True
    """
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        most, used = stats["bytes_limit"], stats.get("bytes_in_use", 0)
        return [Limit(f"the memory of {devices[0].device_kind}", most - used, most)]
    return host_limits() if devices[0].platform == "cpu" else []


def host_limits() -> list[Limit]:
    """Return what limits the memory of this process on its machine: on Linux, elsewhere nothing is known."""
    kept = _freed_bytes()  # which the process takes again before it asks for more
    found = []
    memory = _table("/proc/meminfo")
    if {"MemTotal", "MemAvailable"} <= set(memory):
        free = memory["MemAvailable"] + memory.get("SwapFree", 0) + kept
        found.append(Limit("the memory of this machine", free, memory["MemTotal"] + memory.get("SwapTotal", 0)))
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    held = _table("/proc/self/status").get("VmSize")
    if most != resource.RLIM_INFINITY and held is not None:
        more = max(0, most - held) + kept
        found.append(Limit("the limit of this process's address space, ulimit -v", more, most, more))
    swap = memory.get("SwapTotal", 0)
    for most, used in _groups():
        if 0 < most < memory.get("MemTotal", 0):  # no limit is a number beyond any memory
            found.append(Limit("the memory limit of this control group", max(0, most - used) + kept, most + swap))
    return found


def free_bytes(devices: Sequence[Any]) -> int:
    """Return the bytes that a program may use on each of some devices; CPU devices share half of the free memory."""
    free = min((limit.free_bytes for limit in limits(devices)), default=0)
    return free // 2 // len(devices) if devices[0].platform == "cpu" else int(0.9 * free)


def check_memory(what: str, more_bytes: int, total_bytes: int, devices: Sequence[Any]) -> None:
    """Refuse what surely does not fit into memory, and warn of what does not fit into that which is free now.

    Args:
        what: What needs the memory, in words.
        more_bytes: Bytes on each device that it takes beside what is held already.
        total_bytes: The same with what it needs of that.
        devices: Devices of this process that compute.

    Raises:
        UserError: if it cannot fit.
    """
    count = len(devices) if devices[0].platform == "cpu" else 1  # which share one memory
    more, total = more_bytes * count, total_bytes * count
    found = limits(devices)
    for limit in found:
        more_is_less = limit.most_more_bytes is not None and more > limit.most_more_bytes
        if more_is_less or total > limit.most_bytes:
            needed, there = (more, limit.most_more_bytes) if more_is_less else (total, limit.most_bytes)
            raise UserError(f"{what} needs {size(needed)}, and there are {size(there or 0)} ({limit.name}): {_ADVICE}")
    tight = min(found, key=lambda limit: limit.free_bytes, default=None)
    if tight is not None and more > tight.free_bytes:
        say(f"warning: {what} needs {size(more)}, and {size(tight.free_bytes)} are free now ({tight.name})")


def fetched(tree: Any) -> Any:
    """Bring arrays that a program computes to the host, as NumPy arrays.

    Where there was no memory for a result, this raises what XLA says. To read it at once would wait for ever
    (jaxlib 0.10.2, CPU).

    Example:
        >>> import jax.numpy as jnp
        >>> fetched({"a": jnp.ones(2)})["a"].tolist()
        [1.0, 1.0]
    """
    import jax  # not above: the command line's help, which imports this module, does without

    return jax.device_get(jax.block_until_ready(tree))


def check_program(name: str, memory: Any, devices: Sequence[Any]) -> None:
    """Check, by the compiler's own count, that a program can run, as `check_memory` does.

    Args:
        name: Name of the program.
        memory: What `jax.stages.Compiled.memory_analysis` returns; None where the platform does not tell.
        devices: Devices of this process that compute.
    """
    if memory is not None:
        more = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        what = f"a call of the program {name!r}"
        check_memory(what, more, more + memory.argument_size_in_bytes, devices)


@contextlib.contextmanager
def exhaustion_explained() -> Iterator[None]:
    """Turn a failed allocation into one message.

    Example:
        >>> with exhaustion_explained():
        ...     raise MemoryError("Unable to allocate 1.2 TiB")
        Traceback (most recent call last):
        accelnet.errors.UserError: memory is exhausted (Unable to allocate 1.2 TiB): take a smaller model, ...
    """
    try:
        yield
    except Exception as error:
        if not is_exhaustion(error):
            raise
        raise UserError(exhausted(error)) from error


def is_exhaustion(error: BaseException) -> bool:
    """Say whether an exception reports that there is no memory left."""
    inner = getattr(error, "error", error)  # that of a `UserCodeError`
    said = isinstance(inner, RuntimeError) and any(words in str(inner) for words in _EXHAUSTED)
    return isinstance(inner, MemoryError) or said


def exhausted(error: BaseException) -> str:
    """Return the message of an exception that reports that there is no memory left."""
    lines = str(getattr(error, "error", error)).strip().splitlines()
    return f"memory is exhausted ({lines[0][:200] if lines else 'an allocation failed'}): {_ADVICE}"


def _table(path: str) -> dict[str, int]:
    """Read a file of the kernel's with lines such as `MemFree: 12 kB`; empty where there is none."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[name] = int(value.removesuffix(" kB")) << 10
    return found


# Names of limit, use, and of the cache of files that is given back at need.
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _groups_of() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the directories of this process's control groups and those around them, with the names of their files."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = Path("/sys/fs/cgroup"), VERSION_2
        elif "memory" in controllers.split(","):
            root, names = Path("/sys/fs/cgroup/memory"), _VERSION_1
        else:
            continue
        group = root / path.lstrip("/")
        # In a container, the group's own directory can be the root.
        yield from ((folder, names) for folder in (group, *group.parents) if folder.is_relative_to(root))


def _groups() -> Iterator[tuple[int, int]]:
    """Yield limit and use of the control groups of this process."""
    for folder, (most, used, cache) in _groups_of():
        with contextlib.suppress(OSError, ValueError):  # the outermost has no limit, and "max" is no number
            stat = dict(row.split(" ", 1) for row in (folder / "memory.stat").read_text().splitlines())
            most_bytes, used_bytes = (int((folder / name).read_text()) for name in (most, used))
            yield most_bytes, used_bytes - int(stat.get(cache, 0))


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def _freed_bytes() -> int:
    """Return the bytes that this process has freed and glibc keeps; 0 where the library does not tell.

    Source: mallinfo2(3), of glibc 2.33 and later.
    """
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _Mallinfo2
    return int(function().fordblks)
