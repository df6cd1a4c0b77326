"""`accelnet doctor`: what of this machine and its packages keeps a training from running, or from running fast."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from accelnet.cli.output import JsonOutput, finish
from accelnet.terminal import rendered

State = Literal["ok", "note", "problem"]
_LEAST_DISK_BYTES = 2 << 30
_SUPPORTED_PYTHON = (3, 11)
_VARIABLES = ("ACCELNET_", "JAX_", "XLA_", "CUDA_VISIBLE", "TPU_", "OMP_NUM_THREADS", "LIBTPU_INIT_ARGS")


class Check(NamedTuple):
    """What was found of one thing.

    Attributes:
        name: What was looked at.
        state: "ok"; "note", what may be meant; "problem", what should be mended.
        found: What there is.
        remedy: What to do about it.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """What the checks look at, so that a test can be another machine.

    Attributes:
        devices: Directory of the system's devices.
        platform: Name of the platform on which jax computes, such as "cpu"; None where it cannot start.
        error: Why it cannot.
        kinds: Kinds of its devices.
        version: Function from the name of a package to its version; None where it is not installed.
        environment: Environment variables.
    """

    devices: Path
    platform: str | None
    error: str
    kinds: tuple[str, ...]
    version: Callable[[str], str | None]
    environment: dict[str, str]


def doctor(output: JsonOutput) -> None:
    """Look for what keeps trainings from running here, or from running fast."""
    checks = examined(this_machine())
    finish(output, table(checks), {"checks": [check._asdict() for check in checks]}, None)
    if any(check.state == "problem" for check in checks):
        raise SystemExit(2)


def examined(machine: Machine) -> list[Check]:
    """Return what was found, one check after the other.

    Example:
        >>> checks = examined(this_machine())
        >>> {"python", "jax", "device", "kernels", "cache", "disk", "clock"} <= {check.name for check in checks}
        True
    """
    return [
        *_python(), *_packages(machine), *_device(machine), *_cores(), *_memory(machine), *_kernels(machine),
        *_cache(), *_disk(), *_clock(), *_variables(machine),
    ]  # fmt: skip


def this_machine() -> Machine:
    """Return this machine; it starts jax's platform."""
    from accelnet.cli.devices import start_platform
    from accelnet.errors import UserError

    platform, error, kinds = None, "", ()
    try:
        start_platform()
        import jax

        platform, kinds = jax.default_backend(), tuple(device.device_kind for device in jax.devices())
    except UserError as found:
        error = str(found)
    return Machine(Path("/dev"), platform, error, kinds, _version, dict(os.environ))


def table(checks: list[Check]) -> str:
    """Return the checks as text; what needs mending comes last, with its remedy."""
    from rich.table import Table

    rows = Table("", "", "", box=None, pad_edge=False, show_header=False)
    order = {"ok": 0, "note": 1, "problem": 2}
    for check in sorted(checks, key=lambda one: order[one.state]):
        mark = {"ok": "ok", "note": "note", "problem": "PROBLEM"}[check.state]
        rows.add_row(mark, check.name, check.found + (f": {check.remedy}" if check.remedy else ""))
    problems = sum(check.state == "problem" for check in checks)
    verdict = "nothing is wrong" if not problems else f"{problems} thing{'s' if problems > 1 else ''} to mend"
    return f"{rendered(rows, folds=True)}\n{verdict}"


def _python() -> Iterator[Check]:
    found = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < _SUPPORTED_PYTHON
    yield Check("python", "problem" if old else "ok", found, "accelnet needs 3.11 or newer" if old else "")


def _packages(machine: Machine) -> Iterator[Check]:
    versions = {name: machine.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")}
    apart = versions["jax"] != versions["jaxlib"]
    yield Check(
        "jax", "problem" if apart else "ok", ", ".join(f"{name} {version}" for name, version in versions.items()),
        f'their versions differ: pip install "jax=={versions["jax"]}" "jaxlib=={versions["jax"]}"' if apart else "",
    )  # fmt: skip
    for line in ("12", "13"):
        plugin = machine.version(f"jax-cuda{line}-plugin")
        if plugin is not None and plugin.split(".")[:3] != str(versions["jax"]).split(".")[:3]:
            remedy = f'pip install "jax[cuda{line}]=={versions["jax"]}"'
            yield Check("CUDA plugin", "problem", f"{plugin}, and jax is {versions['jax']}", remedy)


def _device(machine: Machine) -> Iterator[Check]:
    if machine.platform is None:
        yield Check("device", "problem", machine.error, "see the line above on jax and its plugins")
        return
    kinds = ", ".join(f"{machine.kinds.count(kind)} x {kind}" for kind in dict.fromkeys(machine.kinds))
    yield Check("device", "ok", f"{machine.platform}: {kinds}")
    chosen = "JAX_PLATFORMS is set to " + repr(machine.environment.get("JAX_PLATFORMS"))
    for pattern, what, extra, plugins in (
        ("nvidia[0-9]*", "an NVIDIA GPU", "cuda13", ("jax-cuda12-plugin", "jax-cuda13-plugin")),
        ("accel[0-9]*", "a TPU", "tpu", ("libtpu",)),
        ("vfio/[0-9]*", "a TPU", "tpu", ("libtpu",)),
    ):
        if machine.platform != "cpu" or not any(machine.devices.glob(pattern)):
            continue
        if machine.environment.get("JAX_PLATFORMS"):
            yield Check("accelerator", "note", f"{what} is here, and jax computes on the CPU", f"{chosen}: unset it")
        elif not any(map(machine.version, plugins)):
            remedy = f'pip install "accelnet[{extra}]"'
            yield Check("accelerator", "problem", f"{what} is here, and jax has no plugin for it", remedy)
        else:
            remedy = "the driver may be older than the plugin, or other processes hold it: see nvidia-smi, or tpu-info"
            yield Check("accelerator", "problem", f"{what} is here, and jax computes on the CPU", remedy)


def _cores() -> Iterator[Check]:
    cores, allowed = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = _quota(Path("/sys/fs/cgroup/cpu.max"))
    found = f"{allowed} of {cores} cores" + (f", and time of {quota:.3g} of them" if quota else "")
    slow = quota is not None and quota < allowed - 0.5
    remedy = f"threads wait for each other: taskset -c 0-{max(0, round(quota or 1) - 1)} COMMAND" if slow else ""
    yield Check("cores", "note" if slow else "ok", found, remedy)


def _memory(machine: Machine) -> Iterator[Check]:
    from accelnet.parallel.memory import host_limits
    from accelnet.wording import size

    for limit in host_limits():
        yield Check("memory", "ok", f"{limit.name}: {size(limit.free_bytes)} of {size(limit.most_bytes)} are free")
    share = machine.environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or machine.environment.get(
        "XLA_CLIENT_MEM_FRACTION"
    )
    if machine.platform == "gpu":
        yield Check("memory share", "ok", f"jax takes {float(share or 0.75):.0%} of the GPU's memory at its start")


def _kernels(machine: Machine) -> Iterator[Check]:
    from accelnet.ops.kernels.compiler import find_compiler
    from accelnet.ops.kernels.library import load, origin
    from accelnet.ops.kernels.shipped import shipped_kinds

    if machine.platform not in ("cpu", None):
        yield Check("kernels", "ok", "not needed on this platform")
    elif machine.environment.get("ACCELNET_KERNELS") == "xla":
        yield Check("kernels", "note", "ACCELNET_KERNELS=xla: XLA's operations, which take longer", "unset it")
    elif not shipped_kinds() and find_compiler() is None:
        remedy = "apt-get install g++, set CXX, or pip install ziglang"
        yield Check("kernels", "problem", "no C++ compiler: layers take longer", remedy)
    else:
        start = time.monotonic()
        built = load()
        seconds = time.monotonic() - start
        found = f"{origin()}, loaded in {seconds:.1f} s" if built else "the compiler fails, as the line above says"
        yield Check("kernels", "ok" if built else "problem", found, "" if built else "set CXX to another compiler")


def _cache() -> Iterator[Check]:
    from accelnet.cache import open_private_directory, reason_of

    try:
        directory = open_private_directory("xla")
    except OSError as error:
        yield Check("cache", "problem", reason_of(error), "set XDG_CACHE_HOME to a directory of your own")
        return
    files = [path for path in directory.rglob("*") if path.is_file()]
    yield Check(
        "cache", "ok", f"{directory}: {len(files):,} programs, {sum(p.stat().st_size for p in files) / 1e6:,.0f} MB"
    )


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free
    few = free < _LEAST_DISK_BYTES
    remedy = "checkpoints need room: give another --workdir, or make some" if few else ""
    yield Check("disk", "problem" if few else "ok", f"{free / 1e9:,.1f} GB are free here", remedy)


def _clock() -> Iterator[Check]:
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
        apart = abs(os.stat(file.name).st_mtime - time.time())  # noqa: PTH116, a name
        wrong = apart > 60
        found = f"{apart:,.0f} s apart from that of the disk" if wrong else time.strftime("%Y-%m-%d %H:%M:%S %Z")
        yield Check("clock", "problem" if wrong else "ok", found, "set the clocks by NTP" if wrong else "")
        return
    yield Check("clock", "note", "no file can be written here", "go to a directory of your own")


def _variables(machine: Machine) -> Iterator[Check]:
    names = [name for name in sorted(machine.environment) if name.startswith(_VARIABLES) and name != "ACCELNET_TOKEN"]
    if names:
        yield Check("settings", "ok", " ".join(f"{name}={machine.environment[name]}" for name in names))


def _quota(path: Path) -> float | None:
    """Return how many cores' time the control group has; None where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        most, period = path.read_text().split()
        return None if most == "max" else int(most) / int(period)
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
