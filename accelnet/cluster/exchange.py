"""The exchange: every process hands in a small value and gets those of all, or learns who ended instead."""

import socket
import time
from dataclasses import dataclass

import jax
import numpy as np

from accelnet.cluster import store as stores
from accelnet.cluster.exit import bounded
from accelnet.cluster.store import Ending, Store
from accelnet.errors import DivergenceError, LostProcessError, PreemptedError, UserError

# One process may compile for long before it answers. `Watch` ends a run in which one never will, and much sooner.
_PATIENCE_SECONDS = 3600.0
# How often one that waits looks whether another has ended.
_LOOK_SECONDS = 1.0
# What it may take to tell the others that this process ends; less than `abort` leaves it.
_TELL_SECONDS = 4.0

_ERRORS = {kind.exit_code: kind for kind in (UserError, DivergenceError, PreemptedError, LostProcessError)}


@dataclass
class _Rounds:
    """Number of exchanges that this process has begun; all processes begin the same ones in the same order."""

    begun: int = 0


_rounds = _Rounds()


def rounds_begun() -> int:
    """Return how many exchanges this process has begun, a measure of its progress."""
    return _rounds.begun


def exchange(value: bytes) -> list[bytes]:
    """Collect bytes of any length from every process, as `gather` does arrays.

    Args:
        value: value of this process, at most some 100 KiB.

    Returns:
        The value of each process.

    Raises:
        LostProcessError: if another process does not answer; the error of another that has ended with one.

    Example:
        >>> exchange(b"here")
        [b'here']
    """
    store = stores.connected()
    if store is None:
        return [value]
    this, _rounds.begun = _rounds.begun, _rounds.begun + 1
    try:
        return _exchange(store, this, value)
    except jax.errors.JaxRuntimeError as error:
        why = str(error).partition("\n")[0]
        raise LostProcessError(
            f"process 0, at {store.address}, through which the processes exchange values, does not answer: {why}"
        ) from error


def gather(value: np.ndarray) -> np.ndarray:
    """Collect a small array from every process; all call it in the same order, from the main thread.

    It takes 1 to 2 ms between 2 to 4 processes on one host. It waits for as long as the others need, an hour at
    most: `Watch` says when one will not come any more. No device takes part.

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


def _exchange(store: Store, this: int, value: bytes) -> list[bytes]:
    folder = f"exchange/{this}/"
    store.set(f"{folder}{store.rank}", value)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while len(found := store.entries(folder)) < store.num_processes:
        missing = [rank for rank in range(store.num_processes) if str(rank) not in found]
        if store.wait(f"{folder}{missing[0]}", _LOOK_SECONDS):
            continue
        for rank, ending in stores.endings(store).items():
            raise _ERRORS.get(ending.code, LostProcessError)(ending.said_of(rank))
        if time.monotonic() > deadline:
            names = ", ".join(str(rank) for rank in missing)
            raise LostProcessError(f"no answer within {_PATIENCE_SECONDS:g} s from rank {names}")
    if this:
        # Who is in this round has read all of the one before.
        store.delete(f"exchange/{this - 1}/{store.rank}")
    return [found[str(rank)] for rank in range(store.num_processes)]


def leave(error: BaseException, *, linger_seconds: float = 5.0) -> None:
    """Tell the other processes that this one ends, so that they end with the same code and do not wait for it.

    They learn of it in `gather`, `check_same` and `check_shared_directory`, and through `Watch` wherever they are.
    Afterwards this process can end by itself: jax's shutdown, which would wait for the others, has nothing to do.

    Args:
        error: why it ends. Its `exit_code` is that of the others, 130 for `KeyboardInterrupt`, else 1.
        linger_seconds: longest time that process 0, which holds what the others read, waits for them to end.

    Example:
        >>> leave(UserError("no such file"))  # nobody to tell
    """
    store = stores.connected()
    if store is None:
        return
    lines = str(error).splitlines() or [type(error).__name__]
    ending = Ending(exit_code(error), lines[0], socket.gethostname())
    # While jax's client ends this process, since process 0 is gone, a call of it may never return.
    seconds = _TELL_SECONDS + (linger_seconds if store.rank == 0 else 0.0)
    bounded(lambda: stores.tell_ending(store, ending, linger_seconds=linger_seconds), seconds)
    stores.abandon(ending.code)


def exit_code(error: BaseException) -> int:
    """Return the code with which a process ends for an error.

    Example:
        >>> exit_code(UserError("no such file")), exit_code(KeyError("a")), exit_code(SystemExit(3))
        (2, 1, 3)
    """
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
    # The others cannot go on, even if this one ends without complaint.
    return code if isinstance(code, int) and code else 1
