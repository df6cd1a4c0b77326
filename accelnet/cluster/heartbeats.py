"""Heartbeats: every process writes what it does into the store of process 0, and reads what the others do."""

import json
import socket
import threading
import time
from dataclasses import replace

import jax

from accelnet.cluster import exchange
from accelnet.cluster.store import Ending, Store, endings
from accelnet.cluster.verdict import Beat


class Heartbeats:
    """The last beat of each process, this one's included.

    Args:
        store: store of the run, None for a process on its own.
        interval: seconds between two beats.

    Attributes:
        read_at: Time at which the others' beats were last read, `time.monotonic()`.
        endings: Reasons of the other processes that have ended, by rank.

    Example:
        >>> beats = Heartbeats(None, 1.0)
        >>> beats.mark(3, "train")
        >>> beats.now()[0].place
        'step 3, phase train'
    """

    def __init__(self, store: Store | None, interval: float) -> None:
        self.host, self.rank = socket.gethostname(), 0 if store is None else store.rank
        self.endings: dict[int, Ending] = {}
        self.read_at, self._read_from = time.monotonic(), 0.0
        self._store, self._interval = store, interval
        self._marked = (0, "start", 0, self.read_at)  # step, phase, marks, when
        ranks = range(1 if store is None else store.num_processes)
        # The beat, when it was read, and a time before which it was not written.
        self._heard: dict[int, tuple[Beat | None, float, float]] = dict.fromkeys(ranks, (None, self.read_at, 0.0))

    def mark(self, step: int, phase: str) -> None:
        """Note that the main thread makes progress."""
        self._marked = (step, phase, self._marked[2] + 1, time.monotonic())

    def talk(self, stop: threading.Event) -> None:
        """Write and read beats until the event is set."""
        assert self._store is not None
        count = 0
        while not stop.is_set():
            try:
                self._store.set(f"beat/{self.rank}", json.dumps(vars(self._own(count))).encode())
                reading_from = time.monotonic()
                beats = [Beat(**json.loads(value)) for value in self._store.entries("beat/").values()]
                said = endings(self._store)
            except jax.errors.JaxRuntimeError:
                pass  # the clock's thread sees that nothing was read
            else:
                now = time.monotonic()
                for beat in beats:
                    old = self._heard[beat.rank][0]
                    if old is None or old.count != beat.count:
                        self._heard[beat.rank] = (beat, now, self._read_from)
                self.read_at, self._read_from = now, reading_from
                self.endings = {rank: ending for rank, ending in said.items() if rank != self.rank}
            count += 1
            stop.wait(self._interval)

    def now(self) -> dict[int, Beat]:
        """Return the beats of the processes that were ever heard of, their seconds as of now."""
        now, own = time.monotonic(), self._own(0)
        return {
            rank: replace(beat, seconds=beat.seconds + now - at)
            for rank, (beat, at, _) in self._heard.items()
            if beat is not None
        } | {self.rank: own}

    def last(self, *, since: float = 0.0) -> dict[int, Beat]:
        """Return the beats as they were read: those that were surely written after a time, `time.monotonic()`."""
        return {rank: beat for rank, (beat, _, after) in self._heard.items() if beat is not None and after >= since}

    def silent(self) -> dict[int, float]:
        """Return for how many seconds each process has not been heard of, as of the last reading."""
        return {rank: 0.0 if rank == self.rank else self.read_at - at for rank, (_, at, _) in self._heard.items()}

    def others_left(self) -> bool:
        """Ask the store whether all other processes have left the watch regularly; no, where it does not answer."""
        assert self._store is not None
        try:
            return set(self._store.entries("beat/")) <= {str(self.rank)}
        except jax.errors.JaxRuntimeError:
            return False

    def _own(self, count: int) -> Beat:
        step, phase, marks, when = self._marked
        # Who has begun one more exchange is further, and waits there for the others.
        marks += exchange.rounds_begun()
        return Beat(self.rank, self.host, step, phase, marks, time.monotonic() - when, count)
