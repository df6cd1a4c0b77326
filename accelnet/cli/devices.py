"""Devices and processes that compute: their options, and the setup that precedes any use of a device."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelnet.cluster.preemption import raise_dropped
from accelnet.errors import UserError
from accelnet.terminal import say

# 1,024 start within a second; 4,096 take twenty.
_MOST_CPU_DEVICES = 1024


@dataclass(frozen=True)
class DeviceOptions:
    """Devices that compute."""

    mesh: str | None = None
    """Grid of devices: data=8 cuts batches, fsdp=8 weights too, model=2 layers; data=2,fsdp=4 combines; auto
    takes all. None: all accelerators, or one CPU device."""
    strategy: Literal["jit", "pmap"] = "jit"
    """One program that XLA partitions, or one that is replicated on every device."""
    cpu_devices: int | None = None
    """Compute on the CPU, as if it were this many devices."""


@dataclass(frozen=True)
class ClusterOptions:
    """Processes that compute together. On TPU pods, Slurm, Open MPI and Kubernetes jax finds them."""

    coordinator: str | None = None
    """host:port of process 0. None: $JAX_COORDINATOR_ADDRESS, or as jax detects it."""
    num_processes: int | None = None
    """Number of processes of the run. None: $JAX_NUM_PROCESSES, or as jax detects it."""
    process_id: int | None = None
    """Number of this process, from 0. None: $JAX_PROCESS_ID, or as jax detects it."""
    hang_timeout: float = 300.0
    """Seconds after which a process that is missing, silent or without progress ends the run."""


def choose_platform(cpu_devices: int | None) -> None:
    """Take the CPU where it is asked for or there is nothing else. No device is touched.

    Args:
        cpu_devices: Number of CPU devices to simulate. None: the platform that jax finds.

    Raises:
        UserError: if the number is out of range, or the devices of this process are chosen already.
    """
    if cpu_devices is not None:
        if not 1 <= cpu_devices <= _MOST_CPU_DEVICES:
            raise UserError(
                f"--cpu-devices is {cpu_devices}, expected 1 to {_MOST_CPU_DEVICES}: they are simulated, on the "
                f"{_num_cores()} cores of this machine"
            )
        import jax

        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices)  # refused after the first computation
        except RuntimeError:
            raise UserError(
                f"--cpu-devices is {cpu_devices}, but this process computes on {jax.local_device_count()} "
                f"{jax.default_backend()} devices already: start a new process"
            ) from None
        jax.config.update("jax_platforms", "cpu")
    elif not os.environ.get("JAX_PLATFORMS") and has_compilers_alone():
        import jax

        jax.config.update("jax_platforms", "cpu")


def start_platform(cpu_devices: int | None = None, *, population: bool = False) -> None:
    """Choose the platform and start it.

    Args:
        cpu_devices: Number of CPU devices to simulate. None: the platform that jax finds.
        population: Whether members of a population are computed: they share nothing, so a CPU is one device per core.

    Raises:
        UserError: as in `choose_platform`, and if the platform is missing.
    """
    choose_platform(cpu_devices)
    if population and cpu_devices is None:
        import jax

        with contextlib.suppress(RuntimeError):  # where devices are in use already, in a notebook for instance
            jax.config.update("jax_num_cpu_devices", _num_cores())
    check_platform()


def start_cpu() -> None:
    """Start the CPU, as one device: what is exported there is compared with runtimes of the CPU.

    A process that computes already goes on with its devices.

    Raises:
        UserError: if the platform is missing.
    """
    import jax

    with contextlib.suppress(RuntimeError):  # after the first computation
        jax.config.update("jax_num_cpu_devices", 1)
        jax.config.update("jax_platforms", "cpu")
    check_platform()


def check_platform(explain: Callable[[BaseException], None] = lambda _: None) -> None:
    """Start the platform on which everything is computed.

    A plugin of jax that cannot start is one line of the error, or a warning where another platform serves.

    Args:
        explain: Function that is called with what jax raised, and does not return where it knows another reason.

    Raises:
        UserError: if the platform is missing.
    """
    import jax

    failures: list[str] = []
    try:
        with _plugin_failures(failures):
            jax.devices()
        raise_dropped()  # jax takes SIGTERM in the middle of a plugin's start for a failure of the plugin
        for failure in failures:
            say(f"warning: a plugin of jax could not start: {failure}")
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin found no device and said so to the log
        raise_dropped()
        explain(error)
        asked = getattr(jax.config, "jax_platforms", None)
        said = failures or str(error).partition(" (set JAX_PLATFORMS")[0].splitlines()
        reason = f" ({said[0]})" if said else ""
        raise UserError(
            f"JAX_PLATFORMS is {asked!r}, and there is no such device or no plugin of jax for it{reason}: set "
            "JAX_PLATFORMS=cpu, or leave it out to take what is there"
            if asked
            else f"jax finds no device{reason}: JAX_PLATFORMS=cpu takes the CPU"
        ) from error


@contextlib.contextmanager
def _plugin_failures(failures: list[str]) -> Iterator[None]:
    """Collect why plugins of jax cannot start, instead of the tracebacks that jax logs."""

    def collect(record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Jax plugin configuration error"):
            return True
        error = record.exc_info[1] if record.exc_info else None
        failures.append(str(error or record.msg).strip().splitlines()[0])
        return False

    logger = logging.getLogger("jax._src.xla_bridge")
    logger.addFilter(collect)
    try:
        yield
    finally:
        logger.removeFilter(collect)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def join_cluster(options: ClusterOptions, workdir: Path | None = None) -> None:
    """Join the other processes of the run, if it has any, and open the devices of all.

    Args:
        options: Options of the processes.
        workdir: Directory for the Python stacks, should one of them be lost. None: they go to standard error.

    Raises:
        UserError: if the timeout is not above 0, or the platform is missing.
        LostProcessError: as in `accelnet.cluster.initialize`.
    """
    if not options.hang_timeout > 0:
        raise UserError(f"--hang-timeout is {options.hang_timeout}, expected seconds above 0")
    from accelnet import cluster
    from accelnet.cluster.preemption import Preemption, end_untrained
    from accelnet.cluster.watch import Watch

    joined = options.coordinator, options.num_processes, options.process_id
    if not cluster.initialize(*joined, timeout_seconds=options.hang_timeout):
        return
    # While devices are opened, each process waits inside jax until all others have said which ones they have.
    with Preemption() as preemption, Watch(options.hang_timeout, workdir, preemption=preemption) as watch:
        watch.mark(0, "compile")
        check_platform(watch.explain)
    if preemption.requested:  # when this process waited in no compiler, nor for one that does
        end_untrained()
    import jax

    if jax.process_index() > 0:
        # The first process speaks for all.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123, until the process ends


def has_compilers_alone(devices: Path = Path("/dev")) -> bool:
    """Say whether this machine has compilers for accelerators, which `plan` needs, and no accelerator.

    JAX would look for the devices all the same, and print a traceback for each platform that has none.

    Args:
        devices: Directory where the system lists devices.
    """
    from importlib.util import find_spec

    if any(any(devices.glob(pattern)) for pattern in ("accel*", "nvidia*", "vfio/*", "kfd", "dxg")):
        return False
    plugins = find_spec("jax_plugins")
    names = {
        path.name for folder in (plugins.submodule_search_locations or () if plugins else ())
        for path in Path(folder).iterdir() if not path.name.startswith("_")
    }  # fmt: skip
    return bool(names or find_spec("libtpu")) and names <= {"xla_cuda12", "xla_cuda13"}
