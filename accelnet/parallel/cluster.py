"""The cluster: the processes of a run join, compare what they run, and exchange small values between chunks."""

import json
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.errors import UserError
from accelnet.parallel import store as stores
from accelnet.parallel.detection import membership
from accelnet.parallel.exchange import exchange
from accelnet.parallel.fingerprint import code_fingerprint
from accelnet.parallel.rendezvous import meet

__all__ = ["check_same", "check_shared_directory", "code_fingerprint", "gather", "initialize"]

# Directory entries on a network file system may be this old.
_SHARED_SECONDS = 10.0


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: float = 300,
) -> bool:
    """Join the cluster that this process belongs to; call it before anything touches a device.

    What is given counts, or else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or else what jax knows
    of TPU pods, Slurm, Open MPI and indexed jobs of Kubernetes. Without any of them, and in a run of one process,
    nothing happens. On the CPU, gloo is what exchanges arrays. To call it again does nothing.

    jax's own look after the processes is put off to an hour: use `watch`.

    Args:
        coordinator: "host:port" of process 0, the same for all.
        num_processes: of the run.
        process_id: of this process, from 0. All three are given, or none.
        timeout_seconds: how long to wait for the other processes, above 0.

    Returns:
        Whether the run has several processes.

    Raises:
        UserError: on every process that came, if one did not come in time (it is named), two have the same id or they
            disagree on how many they are; if values are missing or out of range; if process 0 cannot be reached, or its
            port is in use; if a device was touched already.

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
            me.address, me.num_processes, me.process_id, me.local_devices, max(5.0, deadline - time.monotonic())
        )
    except RuntimeError as error:
        raise UserError(f"a process ended while the {me.num_processes} of the run were joining: {error}") from error
    return True


def gather(value: np.ndarray) -> np.ndarray:
    """Collect a small array from every process; all call it in the same order, from the main thread.

    It takes 1 to 2 ms between 2 to 4 processes on one host. It waits for as long as the others need, an hour at
    most: it is `watch` that says when one will not come any more. No device takes part.

    Args:
        value: array of the same shape and dtype on every process.

    Returns:
        Array of shape [num_processes, *shape].

    Raises:
        ValueError: on every process, if shapes or dtypes differ.
        LostProcessError: if another process does not answer; the error of another that has ended with one.

    Example:
        >>> gather(np.array([1.0, 2.0])).shape
        (1, 2)
    """
    value = np.asarray(value)
    header = f"{value.dtype.str} {list(value.shape)}\n".encode()
    parts = [part.partition(b"\n") for part in exchange(header + value.tobytes())]
    headers = [part[0].decode() for part in parts]
    if len(set(headers)) > 1:
        raise ValueError(f"the processes gather arrays that differ: {', '.join(headers)}")
    return np.stack([np.frombuffer(part[2], value.dtype).reshape(value.shape) for part in parts])


def check_same(values: Mapping[str, str]) -> None:
    """Check that all processes have the same values, such as their code and configuration.

    Args:
        values: strings by name.

    Raises:
        UserError: on every process, with the names that differ, the values, and the ranks and hosts of those whose
            value is not that of most.

    Example:
        >>> check_same(code_fingerprint())
    """
    mine = {"host": socket.gethostname(), "values": dict(values)}
    all_hosts, all_values = _decoded(exchange(json.dumps(mine).encode()))
    differences = []
    for name in sorted(set().union(*all_values)):
        found = [one.get(name, "absent") for one in all_values]
        # On a tie, the value of the lower rank.
        common = Counter(found).most_common(1)[0][0]
        odd = [
            f"{found[rank]} on rank {rank} ({all_hosts[rank]})" for rank in range(len(found)) if found[rank] != common
        ]
        if odd:
            count = f"the other {len(found) - len(odd)}" if len(found) - len(odd) > 1 else "the other"
            differences.append(f"{name} is {_shown(odd)}, and {common} on {count}")
    if differences:
        raise UserError(
            f"the processes do not run the same: {'; '.join(differences)}. Start all of them from the same files, with "
            "the same packages and the same arguments"
        )


def _decoded(texts: Iterable[bytes]) -> tuple[list[str], list[dict[str, str]]]:
    parts = [json.loads(text) for text in texts]
    return [part["host"] for part in parts], [part["values"] for part in parts]


def _shown(items: list[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")


def check_shared_directory(path: str | Path) -> None:
    """Check that a directory is the same one on all hosts, by a file that process 0 writes there for a moment.

    Args:
        path: of the directory; process 0 makes it if needed.

    Raises:
        UserError: on every process, with the hosts that do not see the file within 10 seconds, or with what kept
            process 0 from writing it.

    Example:
        >>> import tempfile
        >>> check_shared_directory(tempfile.gettempdir())
    """
    store = stores.connected()
    if store is None:
        return
    token = Path(path) / f".accelnet-shared-{secrets.token_hex(8)}"
    problem = _attempt(lambda: _write_token(token)) if store.rank == 0 else ""
    name, problem = json.loads(exchange(json.dumps([token.name, problem]).encode())[0])
    if problem:
        raise UserError(f"process 0 cannot write in {path}: {problem}. Give a directory that all hosts share")
    try:
        seen = _appears(Path(path) / name)
        hosts, seen_by = _decoded(exchange(json.dumps({"host": socket.gethostname(), "values": seen}).encode()))
    finally:
        if store.rank == 0:
            token.unlink(missing_ok=True)
    blind = [f"{host} (rank {rank})" for rank, host in enumerate(hosts) if not seen_by[rank]]
    if blind:
        raise UserError(
            f"{path} is not the same directory on all hosts: what process 0 on {hosts[0]} writes there is not seen on "
            f"{_shown(blind)}. Give a directory on a file system that all hosts share"
        )


def _attempt(action: Callable[[], Any]) -> str:
    try:
        action()
    except OSError as error:
        return str(error)
    return ""


def _write_token(token: Path) -> None:
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text("accelnet looks whether all hosts see this file\n")


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _SHARED_SECONDS
    while time.monotonic() < deadline:
        try:
            # To list a directory has a network file system look again.
            if path.name in (entry.name for entry in path.parent.iterdir()):
                return True
        except OSError:
            pass  # not there yet, or never
        time.sleep(0.1)
    return False
