"""Joining: a process becomes one of a run's."""

import time

from accelnet.cluster import store as stores
from accelnet.cluster.detection import membership
from accelnet.cluster.rendezvous import bind_address, meet
from accelnet.errors import LostProcessError, UserError


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: float = 300,
) -> bool:
    """Join the cluster that this process belongs to; call it before anything touches a device.

    The arguments count, or else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or else what jax knows
    of TPU pods, Slurm, Open MPI and indexed jobs of Kubernetes. Without any of them, and in a run of one process,
    nothing happens. On the CPU, gloo exchanges the arrays. Calling it again does nothing.

    A secret in ACCELNET_TOKEN, the same in all, keeps strangers out of the start: see `rendezvous.meet`.

    jax's own check that the processes are alive is set to an hour: use `Watch`.

    Args:
        coordinator: "host:port" of process 0, the same for all.
        num_processes: number of processes of the run.
        process_id: number of this process, from 0. All three are given, or none.
        timeout_seconds: time to wait for the other processes, above 0.

    Returns:
        Whether the run has several processes.

    Raises:
        LostProcessError: on every process that came, if one did not come in time (it is named) or went away again; if
            process 0 cannot be reached.
        UserError: if two have the same id or they disagree on how many they are; if values are missing or out of range;
            if the port of process 0 is in use; if a device was touched already.

    Example:
        >>> initialize()
        False
    """
    if stores.is_joined():
        return stores.connected() is not None
    me = membership(coordinator, num_processes, process_id, timeout_seconds)
    if me is None or me.num_processes == 1:
        return False
    if stores.devices_are_touched():
        raise UserError(
            "the process joins a cluster after jax has opened its devices, which it then cannot share: call "
            "accelnet's initialize before anything else, and create no arrays when modules are imported"
        )
    deadline = time.monotonic() + timeout_seconds
    meet(me.address, me.num_processes, me.process_id, timeout_seconds=timeout_seconds)
    try:
        stores.join(
            me.address,
            me.num_processes,
            me.process_id,
            me.local_devices,
            max(5.0, deadline - time.monotonic()),
            bind_address(me.address),
        )
    except RuntimeError as error:
        raise LostProcessError(
            f"a process ended while the {me.num_processes} of the run were joining: {error}"
        ) from error
    return True
