"""The watch: a run of several processes ends when one of them is gone or hangs, and says which.

One thread exchanges heartbeats with the other processes; another looks at the clock, so that it also notices when the
store does not answer. A main thread that waits inside a collective cannot be woken: these threads end the process.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from accelnet.cluster import abort, exchange, verdict
from accelnet.cluster import store as stores
from accelnet.cluster.exit import bounded, end_process, write_stacks
from accelnet.cluster.heartbeats import Heartbeats
from accelnet.cluster.preemption import Preemption
from accelnet.cluster.store import Ending, Store, tell_ending
from accelnet.cluster.verdict import Verdict
from accelnet.errors import DivergenceError, Interrupted, LostProcessError, PreemptedError, UserError

# Time that a process whose peer has ended has to end by itself, with a message of its own.
_GRACE_SECONDS = 2.0
_LOST, _PREEMPTED, _INTERRUPTED = (kind.exit_code for kind in (LostProcessError, PreemptedError, Interrupted))


class Watch:
    """Watch over the processes of a run; enter it on all of them, within `timeout_seconds` of each other.

    A process that is killed or stopped, or whose main thread makes no progress, ends all others: within
    `timeout_seconds` and a few seconds, with exit code 5, one message on standard error of each that names it, and the
    Python stacks of each in `directory`/stacks/rank-K.txt. A process that was stopped and is continued too late ends
    too, unless all had come to the end of the run before. Where a killed process breaks a collective, `explain` finds
    it within seconds. A phase "compile" has no limit.

    An error that leaves the context on one process ends the others with the same code. Without an error, and with
    `PreemptedError` and `Interrupted`, which all raise at one step, all processes leave the context together.

    SIGTERM during a phase "compile" of this process, or of one that it waits for, ends all processes with code 4, since
    they cannot agree on a step to save. It takes less than a second where this process compiles, two heartbeats more
    where another does, and what `finish` takes, at most `timeout_seconds`; the others follow within 3 seconds and their
    own `finish`. In other phases the loop sees `preemption.requested`. With one process, this is all that the watch
    does.

    Limits: when process 0 is killed, jax's client writes three lines of C++ before the message here. A thread that
    holds Python's lock inside C stops the watch of its process too, and only the others end. When a host dies with
    process 0 on it, the others learn it from its silence alone.

    Args:
        timeout_seconds: time for which a process may be silent, and a main thread without progress, above 0. Longer
            than the longest time between two calls of `mark`.
        directory: directory for the stacks. None: they go to standard error.
        preemption: an open `Preemption`.
        finish: called on a thread of its own before a process ends because another one did, or for SIGTERM: it waits
            for a save that is being written.

    Raises:
        ValueError: if `timeout_seconds` is not positive.

    Example:
        >>> with Watch(300.0) as watch:
        ...     for step in range(3):
        ...         watch.mark(step, "train")
    """

    def __init__(
        self,
        timeout_seconds: float,
        directory: str | Path | None = None,
        *,
        preemption: Preemption | None = None,
        finish: Callable[[], None] | None = None,
    ) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds is {timeout_seconds}, expected more than 0")
        self._timeout_seconds, self._directory = timeout_seconds, None if directory is None else Path(directory)
        self._preemption, self._finish = preemption, finish
        self._interval, self._patience = verdict.patience(timeout_seconds)
        self._beats = Heartbeats(None, self._interval)
        self._store: Store | None = None
        self._threads: list[threading.Thread] = []
        self._silent, self._stop, self._ending = threading.Event(), threading.Event(), threading.Lock()
        self._ticked_at = self._longest_gap = 0.0
        self._alarmed = False
        self._left: int | None = None
        self._asked_at: float | None = None

    def mark(self, step: int, phase: str) -> None:
        """Say that the main thread makes progress; all processes call this in the same order.

        Args:
            step: step of the run.
            phase: what begins now: "compile", which may take long, or "train", "evaluate", "save", "input" and so on.
        """
        self._beats.mark(step, phase)

    def explain(self, error: BaseException) -> None:
        """End this process if an error means that another one is gone; return if the error is this process's own.

        In the first case the message names the other process and the exit code is 5, or its own reason and code where
        it left these. In the second this takes a few seconds.

        Args:
            error: exception that came up here, such as gloo's when a connection closes.
        """
        if self._store is None or self._left is not None:
            return
        self._alarmed = True
        time.sleep(self._patience + 2 * self._interval + 1.0)
        while self._beats.endings:
            time.sleep(1.0)  # the clock's thread ends this process
        # A collective that ran into a time limit of its own comes before ours.
        found = verdict.stalled(self._beats.now(), self._patience) if "timed out" in str(error).lower() else None
        if found is not None and self._beats.rank not in found.ranks:
            self._end_by(found)
        self._alarmed = False

    def leave(self, error: BaseException) -> None:
        """Tell the others that this process ends, so that they end with its code; leaving with an error does so too.

        Args:
            error: why; as for `accelnet.cluster.exchange.leave`.
        """
        if self._store is not None and self._left is None:
            self._left = exchange.exit_code(error)
            exchange.leave(error, linger_seconds=self._linger_seconds(self._left))

    def __enter__(self) -> Self:
        self._store = stores.connected()
        self._beats = Heartbeats(self._store, self._interval)
        self._ticked_at, self._longest_gap = self._beats.read_at, 0.0
        targets = [self._watch_clock] if self._store is not None or self._preemption is not None else []
        if self._store is not None:
            abort.on_lost_store(self._end_without_store)
            targets.append(lambda: self._beats.talk(self._silent))
        self.mark(0, "start")
        self._threads = [threading.Thread(target=target, name="accelnet-watch", daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, PreemptedError | Interrupted):
                self._end_together()
            else:
                if not isinstance(error, UserError | DivergenceError | KeyboardInterrupt | SystemExit):
                    self.explain(error)
                self.leave(error)
        finally:
            self._silent.set()
            for thread in self._threads[1:]:
                thread.join(_GRACE_SECONDS)  # it may hang in a call to process 0
            try:
                if self._store is not None and self._left is None:
                    # The clock still ticks: process 0 may stand still from here on, and never answer.
                    self._store.delete(f"beat/{self._beats.rank}")
                    abort.on_lost_store(None)
            finally:
                self._stop.set()
                for thread in self._threads[:1]:
                    thread.join(_GRACE_SECONDS)

    def _end_together(self) -> None:
        # A beat that stops means that a process is lost: so all stop at once, and none before the last has come.
        self.mark(self._beats.now()[self._beats.rank].step, "end")
        try:
            exchange.exchange(b"")
        except BaseException as error:
            self.leave(error)
            raise

    # The thread that looks at the clock.

    def _watch_clock(self) -> None:
        while not self._stop.wait(min(self._interval, 0.25)):
            now = time.monotonic()
            gap, self._ticked_at = now - self._ticked_at, now
            if self._left is None and self._preemption is not None and self._preemption.requested:
                self._asked_at = self._asked_at or now
                self._end_if_compiling(self._asked_at)
            if self._store is not None:
                self._look(gap)

    def _look(self, gap: float) -> None:
        silence = time.monotonic() - self._beats.read_at
        if max(gap, silence) > self._timeout_seconds and self._is_over():
            return
        if gap > self._timeout_seconds:
            self._end_by(self._own_stop(gap))
        # The longest time for which this process did not look, since it last heard of the others.
        self._longest_gap = gap if silence < gap else max(gap, self._longest_gap)
        if silence > self._timeout_seconds:
            if self._longest_gap > silence / 2:  # it was this process that stood still, not the store
                self._end_by(self._own_stop(silence))
            self._end_by(self._lost_store("it keeps what the processes say of themselves, and has not answered"))
        if self._left is not None:
            return
        if self._beats.endings:
            self._follow(*next(iter(self._beats.endings.items())))
        elif (found := self._verdict()) is not None:
            self._end_by(found)

    def _verdict(self) -> Verdict | None:
        silent = self._beats.silent()
        limit = self._patience if self._alarmed else self._timeout_seconds
        found = verdict.lost(self._beats.last(), silent, len(silent), limit)
        # Where one is silent, the others wait for it: that it is lost will be said in its time.
        heard_all = max(*silent.values(), time.monotonic() - self._beats.read_at) < self._patience
        return found or (verdict.stalled(self._beats.now(), self._timeout_seconds) if heard_all else None)

    def _is_over(self) -> bool:
        """Say whether the others have left the watch with this process, and so have not given it up since."""
        left = list[bool]()
        if self._beats.now()[self._beats.rank].phase == "end":
            bounded(lambda: left.append(self._beats.others_left()), self._patience)
        return any(left)

    def _own_stop(self, seconds: float) -> Verdict:
        return Verdict(
            frozenset(self._beats.silent()),  # there is nobody left to tell
            f"rank {self._beats.rank} on {self._beats.host} was stopped for {seconds:.1f} s, longer than the "
            f"{self._timeout_seconds:g} s that the others wait for it: they have ended",
        )

    def _lost_store(self, why: str) -> Verdict:
        beat = self._beats.last().get(0)
        name, place = ("rank 0", "") if beat is None else (beat.name, f" (last at {beat.place})")
        seconds = time.monotonic() - self._beats.read_at
        return Verdict(frozenset({0}), f"{name} is lost: {why} for {seconds:.1f} s{place}")

    def _end_if_compiling(self, asked_at: float) -> None:
        if not self._compiling(asked_at):
            return
        if self._finish is not None:
            bounded(self._finish, self._timeout_seconds)
        if self._compiling(asked_at) and not self._stop.is_set():
            interrupted = self._preemption is not None and self._preemption.interrupted
            code, kind = (_INTERRUPTED, "interrupted") if interrupted else (_PREEMPTED, "preempted")
            reason = f"told to end ({'Ctrl-C' if interrupted else 'SIGTERM'}) while a program was compiled"
            reason += "; what was saved before stays"
            self._end(code, Ending(code, reason, self._beats.host), f"{kind}: {reason}")

    def _compiling(self, asked_at: float) -> bool:
        # What was heard of the others is older: one that compiled then, or had just begun to, may be long past it.
        heard = {rank: beat.seconds > self._interval for rank, beat in self._beats.last(since=asked_at).items()}
        lasting = heard | {self._beats.rank: True}
        beats = self._beats.now()
        lowest = min(beat.step for beat in beats.values())
        return any(
            beat.phase == "compile" and beat.step == lowest and lasting.get(rank, False) for rank, beat in beats.items()
        )

    def _follow(self, rank: int, ending: Ending) -> None:
        if ending.code != _LOST:
            self._stop.wait(_GRACE_SECONDS)
            if self._finish is not None and self._left is None:
                bounded(self._finish, self._timeout_seconds)
            if self._left is not None or self._stop.is_set():
                return
        text = ending.said_of(rank)
        word = "preempted" if ending.code == PreemptedError.exit_code else "error"
        self._end(ending.code, Ending(ending.code, text, self._beats.host, common=True), f"{word}: {text}")

    # The end.

    def _end_without_store(self) -> None:
        """End this process when the connection to process 0 breaks; on a thread of jax's, which aborts otherwise."""
        if self._left is not None:
            abort.end_later(self._left)
        if self._beats.endings:
            threading.Event().wait()  # the clock's thread knows better, and ends this process
        gap = time.monotonic() - self._ticked_at
        stopped = gap > self._timeout_seconds
        self._end_by(self._own_stop(gap) if stopped else self._lost_store("it ended or was killed; not heard of"))

    def _end_by(self, found: Verdict) -> NoReturn:
        ending = Ending(_LOST, found.reason, self._beats.host, common=True)
        self._end(_LOST, ending, f"error: {found.reason}", found.ranks)

    def _end(self, code: int, ending: Ending, text: str, lost: frozenset[int] = frozenset()) -> NoReturn:
        self._ending.acquire()  # never released: the first thread to come ends the process
        rank = self._beats.rank
        if code == _LOST:
            where = write_stacks(self._directory, rank, ending.reason)
            text = f"{text}. The Python stacks of rank {rank} on {self._beats.host} are {where}"
        store, linger = self._store, self._linger_seconds(code)

        def tell() -> None:
            if store is not None and (0 not in lost or rank == 0):
                tell_ending(store, ending, linger_seconds=linger, lost=lost)

        end_process(code, text, tell, 2.0 + (linger if rank == 0 else 0.0))

    def _linger_seconds(self, code: int) -> float:
        """How long process 0 may have to wait until all others have ended."""
        return 2 * self._interval + 1.0 + (0.0 if code == _LOST else _GRACE_SECONDS + self._timeout_seconds)
