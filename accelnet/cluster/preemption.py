"""Preemption: a machine that is about to be taken away says so with SIGTERM."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from accelnet.errors import PreemptedError


def _do_nothing(*_: Any) -> None: ...


def _ignore_for_good() -> None:
    # Python gives up its own handlers before it has ended; an ignored signal stays ignored.
    if signal.getsignal(signal.SIGTERM) is _do_nothing:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


# What a handler raised. Python drops an exception that comes up in a callback, such as one of jax's at every garbage
# collection: then `raise_dropped` raises it at the next occasion.
_raised: list[BaseException] = []


def raise_dropped() -> None:
    """Raise what Ctrl-C or SIGTERM raised, if this process is here nevertheless."""
    if _raised:
        raise _raised[0]


def _raise(error: BaseException) -> NoReturn:
    _raised.append(error)
    raise error


def leave_others(error: BaseException) -> None:
    """Tell the other processes of the run, if this one may have any, so that they do not wait for it.

    Example:
        >>> leave_others(KeyboardInterrupt())
    """
    exchange = sys.modules.get("accelnet.cluster.exchange")
    if exchange is not None:
        exchange.leave(error)


def end_untrained(*_: Any) -> NoReturn:
    """End because SIGTERM came where no training goes on, and tell the other processes.

    Raises:
        PreemptedError: always.

    Example:
        >>> with told_to_end():
        ...     end_untrained()
        Traceback (most recent call last):
        accelnet.errors.PreemptedError: told to end (SIGTERM) while nothing was trained; what was saved before stays
    """
    error = PreemptedError("told to end (SIGTERM) while nothing was trained; what was saved before stays")
    leave_others(error)
    _raise(error)


def _interrupt(_: int, frame: FrameType | None) -> None:
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        _raised.append(KeyboardInterrupt())  # there it would be lost, with ten lines of traceback
    else:
        _raise(KeyboardInterrupt())


_INTERRUPTS = (signal.default_int_handler, _interrupt)


@contextlib.contextmanager
def told_to_end() -> Iterator[None]:
    """Turn SIGTERM into a `PreemptedError` where no training goes on that could be saved, and Ctrl-C into an interrupt.

    Example:
        >>> with told_to_end():
        ...     signal.raise_signal(signal.SIGTERM)
        Traceback (most recent call last):
        accelnet.errors.PreemptedError: told to end (SIGTERM) while nothing was trained; what was saved before stays
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = ((signal.SIGTERM, signal.SIG_DFL, end_untrained), (signal.SIGINT, signal.default_int_handler, _interrupt))
    before = {}
    for number, default, handler in ours:
        if signal.getsignal(number) in (default, _do_nothing):
            before[number] = default
            signal.signal(number, handler)
    try:
        yield
        raise_dropped()
    except PreemptedError:
        if signal.SIGTERM in before:
            before[signal.SIGTERM] = _do_nothing
            atexit.register(_ignore_for_good)
        raise
    except Exception as error:
        if _raised:  # and the import of a C extension made something else of it
            raise _raised[0] from error
        raise
    finally:
        _raised.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


class Preemption:
    """Turn SIGTERM, and the first Ctrl-C of a training that can be saved, into a flag, as long as the context is open.

    The flag is set at once, also while the main thread is inside a compiled program or the compiler, where Python's own
    handlers have to wait: the signal is written to a pipe, which a thread reads. A handler of before comes back at the
    end; but where there was none and a `PreemptedError` leaves the context, SIGTERM does nothing more, since the
    process is ending already. Processes that it starts do not inherit this. Outside the main thread, where Python lets
    nobody handle signals, all of this does nothing and the flag stays unset.

    Attributes:
        requested: Whether SIGTERM or Ctrl-C came.
        interrupted: Whether it was Ctrl-C.
        defers_interrupts: Whether the first Ctrl-C is a flag and not a KeyboardInterrupt; the second never is.

    Example:
        >>> with Preemption() as preemption:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     preemption.requested
        True
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.defers_interrupts = False
        self._flag = threading.Event()
        self._thread: threading.Thread | None = None
        self._old_handler: Any = None
        self._old_interrupt: Any = None
        self._old_wakeup = -1
        self._pipe = (-1, -1)

    @property
    def requested(self) -> bool:
        return self._flag.is_set()

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        raise_dropped()
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._thread = threading.Thread(target=self._read, name="accelnet-preemption", daemon=True)
        self._thread.start()
        self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGTERM, lambda *_: self._flag.set())
        if self._old_handler is _do_nothing:  # the process did not end, after all
            self._old_handler = signal.SIG_DFL
        self._old_interrupt = signal.getsignal(signal.SIGINT)
        if self._old_interrupt in _INTERRUPTS:  # what others made of Ctrl-C stays theirs
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted or not self.defers_interrupts:
            _interrupt(number, frame)
            return
        self.interrupted = True
        self._flag.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        # None stands for a handler that Python did not install, and cannot bring back.
        handler = signal.SIG_DFL if self._old_handler is None else self._old_handler
        if isinstance(error, PreemptedError) and handler in (signal.SIG_DFL, end_untrained):
            # Another process was told first: this one's own SIGTERM, on its way, would make 143 of the exit code.
            handler = _do_nothing
            atexit.register(_ignore_for_good)
        signal.signal(signal.SIGTERM, handler)
        if self._old_interrupt in _INTERRUPTS:
            signal.signal(signal.SIGINT, self._old_interrupt)
        _raised.clear()
        signal.set_wakeup_fd(self._old_wakeup, warn_on_full_buffer=False)
        os.write(self._pipe[1], b"\0")  # no signal has the number 0
        self._thread.join()
        self._thread = None
        for end in self._pipe:
            os.close(end)

    def _read(self) -> None:
        while 0 not in (signals := os.read(self._pipe[0], 256)):
            if signal.SIGTERM in signals:
                self._flag.set()
            if self._old_wakeup != -1:
                # Whoever had asked for the signals may not read them any more.
                with contextlib.suppress(OSError):
                    os.write(self._old_wakeup, signals)
