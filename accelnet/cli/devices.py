"""Which devices and processes compute: the options, and what they set up before anything touches a device."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelnet.errors import UserError


@dataclass(frozen=True)
class DeviceOptions:
    """Which devices compute."""

    mesh: str | None = None
    """The devices as a grid: data=8 cuts batches, fsdp=8 weights too, model=2 layers; data=2,fsdp=4 combines; auto
    takes all. None: all accelerators, or one CPU device."""
    strategy: Literal["jit", "pmap"] = "jit"
    """One program that XLA partitions, or one that is replicated on every device."""
    cpu_devices: int | None = None
    """Compute on the CPU, as if it were so many devices."""


@dataclass(frozen=True)
class ClusterOptions:
    """Which processes compute together. On TPU pods, Slurm, Open MPI and Kubernetes jax knows it."""

    coordinator: str | None = None
    """host:port of process 0; None: of JAX_COORDINATOR_ADDRESS, or as jax detects it."""
    num_processes: int | None = None
    """Of the run; None: of JAX_NUM_PROCESSES, or as jax detects it."""
    process_id: int | None = None
    """Of this process, from 0; None: of JAX_PROCESS_ID, or as jax detects it."""
    hang_timeout: float = 300.0
    """Seconds after which a process that is missing, silent or without progress ends them all."""


def choose_platform(cpu_devices: int | None) -> None:
    """Take the CPU, as so many devices, where that is asked for or nothing else is there.

    Raises:
        UserError: if the number is below 1.
    """
    if cpu_devices is not None:
        if cpu_devices < 1:
            raise UserError(f"--cpu-devices is {cpu_devices}, expected at least 1")
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    elif not os.environ.get("JAX_PLATFORMS") and has_compilers_alone():
        import jax

        jax.config.update("jax_platforms", "cpu")


def choose_population_devices(cpu_devices: int | None) -> None:
    """Take all accelerators, else one CPU device per core: members share nothing, so each device keeps to itself.

    Raises:
        UserError: if the number is below 1.
    """
    choose_platform(cpu_devices)
    if cpu_devices is None:
        import jax

        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def join_cluster(options: ClusterOptions) -> None:
    """Join the other processes of the run, if it has any.

    Raises:
        UserError: if the timeout is not above 0.
    """
    if not options.hang_timeout > 0:
        raise UserError(f"--hang-timeout is {options.hang_timeout}, expected seconds above 0")
    from accelnet.parallel import cluster

    joined = options.coordinator, options.num_processes, options.process_id
    if cluster.initialize(*joined, timeout_seconds=options.hang_timeout):
        import jax

        if jax.process_index() > 0:
            # The first process speaks for all.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123, until the process ends


def has_compilers_alone(devices: Path = Path("/dev")) -> bool:
    """Say whether this machine has compilers for accelerators, as `plan` wants them, and no accelerator.

    JAX would look for the devices all the same, and print a traceback for each platform that has none.

    Args:
        devices: where the system lists devices.
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
