"""Detection: which cluster this process belongs to, from the environment or from what jax knows."""

import os
from dataclasses import dataclass
from typing import Any

import jax
from jax._src import clusters

from accelnet.cluster.rendezvous import split_address
from accelnet.errors import UserError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclass(frozen=True)
class Membership:
    """Which process of which run this is.

    Attributes:
        address: "host:port" of process 0.
        local_devices: Devices that it may use, None for all (or those in JAX_LOCAL_DEVICE_IDS).
    """

    address: str
    num_processes: int
    process_id: int
    local_devices: list[int] | None = None


def membership(
    address: str | None, num_processes: int | None, process_id: int | None, timeout_seconds: float
) -> Membership | None:
    """Find out which process of which run this is.

    Args:
        address: "host:port" of process 0.
        num_processes: number of processes of the run.
        process_id: number of this process. All three are given, or none; then the environment
            counts, and then jax's guess.
        timeout_seconds: time that jax may wait for the name of process 0's host to be known.

    Returns:
        The `Membership`, None for a process on its own.

    Raises:
        UserError: if something is missing or out of range.

    Example:
        >>> membership("localhost:8476", 4, 1, 300).process_id
        1
        >>> membership(None, None, None, 300) is None
        True
    """
    given = {"coordinator": address, "num_processes": num_processes, "process_id": process_id}
    if any(value is not None for value in given.values()):
        return _checked(given)
    variables = {name: os.environ.get(name) or None for name in _VARIABLES}
    if any(value is not None for value in variables.values()):
        return _checked(variables)
    return _detected(timeout_seconds)


def _checked(values: dict[str, Any]) -> Membership:
    if missing := [name for name, value in values.items() if value is None]:
        present = [f"{name}={value}" for name, value in values.items() if value is not None]
        raise UserError(
            f"there is {', '.join(present)}, but no {', '.join(missing)}: a process of a cluster needs all of "
            f"{', '.join(values)}, and a process on its own none"
        )
    (_, address), (_, num_processes), (id_name, process_id) = values.items()
    numbers = [_integer(name, value) for name, value in list(values.items())[1:]]
    split_address(address)
    if numbers[0] < 1 or not 0 <= numbers[1] < numbers[0]:
        raise UserError(
            f"{id_name} is {process_id} in a run of {num_processes} processes, expected 0 to {max(numbers[0] - 1, 0)}"
        )
    return Membership(address, numbers[0], numbers[1])


def _integer(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name} is {value!r}, expected a whole number") from None


def _detected(timeout_seconds: float) -> Membership | None:
    try:
        found = next(
            (kind for kind in clusters.ClusterEnv._cluster_types if _may_be(kind) and kind.is_env_present()), None
        )
        if found is None or (num_processes := found.get_process_count()) == 1:
            return None
        address = found.get_coordinator_address(
            timeout_secs=max(1, int(timeout_seconds)),
            override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
        )
        # A launcher starts one process for each GPU of a host. A TPU's process has all of its own.
        local = None if "tpu" in found.name or os.environ.get("JAX_LOCAL_DEVICE_IDS") else found.get_local_process_id()
        return Membership(address, num_processes, found.get_process_id(), None if local is None else [local])
    except RuntimeError as error:
        # jax says here what the cluster lacks, such as rights in Kubernetes.
        raise UserError(f"this looks like a process of a cluster that jax knows, but: {error}") from None


def _may_be(kind: Any) -> bool:
    """Leave out what a process on its own would be taken for, or would ask a server that is not there."""
    if kind.opt_in_only_method:
        return False
    if "tpu" in kind.name:
        platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
        return not platforms or "tpu" in platforms
    if kind.__name__ == "K8sCluster":
        # Any program in Kubernetes has the other variables too, a notebook server for one.
        return "JOB_COMPLETION_INDEX" in os.environ
    return True
