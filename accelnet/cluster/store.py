"""The store: small values that the processes of a run show each other, kept by process 0.

It is the key-value store of jax's coordination service. All that accelnet needs of jax's private modules for running
on several processes stands here; it is the same in jax 0.10 and 0.12.
"""

import atexit
import contextlib
import ctypes
import functools
import itertools
import json
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax._src import distributed, xla_bridge
from jax._src.lib import _jax  # type: ignore[attr-defined]

from accelnet.cluster import abort

# Only a backstop: `Watch` looks after the processes, and knows more about them.
_HEARTBEAT_SECONDS = 3600
_PREFIX = "accelnet/"
# After the others have said that they end, process 0 gives them this long: jax complains in those that are still there.
_AFTER_SECONDS = 0.5
# How long process 0 waits at a regular end for processes that still work.
_DONE_SECONDS = 3600.0
# Every process shows so often that it lives, and is gone when process 0 has looked so often, and in vain.
_LIFE_SECONDS = 1.0
_LOOK_SECONDS = 0.05
_MOST_LOOKS = 600


@dataclass(frozen=True)
class Store:
    """The store as one process sees it.

    Attributes:
        client: jax's client of the coordination service.
        address: "host:port" of process 0.
    """

    client: Any
    rank: int
    num_processes: int
    address: str

    def set(self, key: str, value: bytes) -> None:
        """Write a value, over an older one."""
        self.client.key_value_set_bytes(_PREFIX + key, value, allow_overwrite=True)

    def entries(self, folder: str) -> dict[str, bytes]:
        """Return the values of a folder, "a/b/", by the rest of their keys."""
        start = len(_PREFIX + folder)
        return {key[start:]: value for key, value in self.client.key_value_dir_get_bytes(_PREFIX + folder)}

    def wait(self, key: str, seconds: float) -> bool:
        """Wait for a key to be written; return whether it was."""
        try:
            self.client.blocking_key_value_get_bytes(_PREFIX + key, int(seconds * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return False
            raise
        return True

    def delete(self, key: str) -> None:
        """Remove a value."""
        self.client.key_value_delete(_PREFIX + key)


@dataclass(frozen=True)
class Ending:
    """Why a process ended before the run did.

    Attributes:
        code: Exit code.
        reason: One line.
        host: Host name.
        common: Whether the reason is one for all processes, and not about this one.

    Example:
        >>> Ending(2, "no such file", "a").said_of(1)
        'rank 1 on a ended: no such file'
    """

    code: int
    reason: str
    host: str
    common: bool = False

    def said_of(self, rank: int) -> str:
        """Return the sentence for the other processes."""
        return self.reason if self.common else f"rank {rank} on {self.host} ended: {self.reason}"


def endings(store: Store) -> dict[int, Ending]:
    """Return the processes that ended before the run did, by rank."""
    return {int(rank): Ending(**json.loads(value)) for rank, value in store.entries("end/").items()}


def tell_ending(store: Store, ending: Ending, *, linger_seconds: float, lost: frozenset[int] = frozenset()) -> None:
    """Tell the others that this process ends and why; what it said before stays.

    Process 0 stays until all but the lost ranks have ended too, `linger_seconds` at most, so that they can read it.
    """
    try:
        said = endings(store)
        if store.rank not in said:
            repeated = ending.reason in [one.said_of(rank) for rank, one in said.items()]
            told = replace(ending, common=ending.common or repeated)
            store.set(f"end/{store.rank}", json.dumps(vars(told)).encode())
        if store.rank == 0:
            _await_others(store, linger_seconds, lost)
            time.sleep(_AFTER_SECONDS)
    except jax.errors.JaxRuntimeError:
        pass  # process 0 is gone: there is nobody to tell


def _await_others(store: Store, seconds: float, lost: frozenset[int] = frozenset()) -> None:
    """Wait until all others are done, have ended or are gone, and so will read nothing more."""
    deadline = time.monotonic() + seconds
    lives, looks = dict[str, bytes | None](), dict[str, int]()
    others = {str(rank) for rank in set(range(store.num_processes)) - lost - {store.rank}}
    while time.monotonic() < deadline:
        now = store.entries("life/")
        # Counted, not timed: where this process stands still, the others cannot show it anything.
        looks = {rank: looks.get(rank, 0) + 1 if now.get(rank) == lives.get(rank) else 0 for rank in others}
        lives = dict(now)
        gone = {rank for rank, times in looks.items() if times >= _MOST_LOOKS}
        if others <= gone | set(store.entries("done/")) | set(store.entries("end/")):
            return
        time.sleep(_LOOK_SECONDS)


def _show_life(store: Store, over: threading.Event) -> None:
    for count in itertools.count():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone
            store.set(f"life/{store.rank}", str(count).encode())
        if over.wait(_LIFE_SECONDS):
            return


def _await_the_end(over: threading.Event, life: threading.Thread) -> None:
    """At a regular end keep process 0 until the others are done: jax's own shutdown was seen to let it go before."""
    store = connected()
    if store is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            store.set(f"done/{store.rank}", b"")
            if store.rank == 0:
                _await_others(store, _DONE_SECONDS)
    over.set()
    life.join(1.0)  # a thread that comes out of C++ while Python ends aborts the process


def connected() -> Store | None:
    """Return the store, or None where the run is one process.

    Example:
        >>> connected() is None
        True
    """
    state = distributed.global_state
    if state.client is None or (state.num_processes or 1) == 1:
        return None
    return Store(state.client, state.process_id, state.num_processes, state.coordinator_address or "")


def is_joined() -> bool:
    """Say whether this process has joined a cluster of any size."""
    return distributed.global_state.client is not None


def devices_are_touched() -> bool:
    """Say whether jax has opened its devices, after which it is too late to join."""
    return xla_bridge.backends_are_initialized()


def join(
    address: str,
    num_processes: int,
    rank: int,
    local_devices: list[int] | None,
    timeout_seconds: float,
    bind_address: str | None = None,
) -> None:
    """Join jax's cluster, whose processes are all known to be there.

    Two things differ from `jax.distributed.initialize` alone. SIGTERM stays with `Preemption`: jax's own service for it
    takes the signal and does nothing that a run could save in. And where process 0 is gone, jax's client ends the
    process with a page of C++; with a callback of ours, which jax 0.10 and 0.12 cannot call, it ends it with three
    lines, and `abort` makes a message and an exit code of that.

    Raises:
        RuntimeError: if a process has gone away since.
    """
    jax.config.update("jax_enable_preemption_service", False)
    if not jax.config.jax_cpu_collectives_implementation:  # type: ignore[attr-defined]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    make_client = _jax.get_distributed_runtime_client
    _jax.get_distributed_runtime_client = functools.partial(
        make_client,
        missed_heartbeat_callback=lambda _: abort.end_without_store(),
        shutdown_on_destruction=False,
    )
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            rank,
            local_device_ids=local_devices,
            coordinator_bind_address=bind_address,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(timeout_seconds)),
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    finally:
        _jax.get_distributed_runtime_client = make_client
    abort.install(address)
    if (store := connected()) is not None:
        over = threading.Event()
        thread = threading.Thread(target=_show_life, args=(store, over), name="accelnet-life", daemon=True)
        thread.start()
        atexit.register(_await_the_end, over, thread)


def abandon(code: int) -> None:
    """Let this process end on its own: no waiting for the others in jax's shutdown, and no failure there."""
    abort.on_lost_store(lambda: abort.end_later(code))
    state = distributed.global_state
    for kept in (state.client, state.service):
        # Their destructors, in whichever order Python's end runs them, abort the process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    state.client = state.service = None
