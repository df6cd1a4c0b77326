"""The end of a process whose process 0 is gone: a message and exit code 5 in place of jax's abort.

jax's client aborts the process within milliseconds when the connection to process 0 breaks. Python cannot handle
SIGABRT, whose handlers it runs later, when there is no later. A C handler runs at once, on the thread that aborts.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from accelnet.characters import visible

_c_library = ctypes.CDLL(None)
_c_library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_c_library.signal.restype = ctypes.c_void_p
_EXIT_SECONDS = 10.0


@dataclass
class _Known:
    """What a signal handler has to know: where process 0 listens, and what to call when it is gone."""

    address: str = ""
    hook: Callable[[], None] | None = None


_known = _Known()


def install(address: str) -> None:
    """Handle the aborts of this process from now on, to its end, where process 0 at "host:port" does not answer.

    An abort for another reason, while process 0 answers, stays what it is.
    """
    _known.address = address
    _c_library.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))
    # Process 0 may end a moment before the others, when all is done: seen on two busy cores as a code of 5.
    atexit.register(_hold_aborts)


def on_lost_store(hook: Callable[[], None] | None) -> None:
    """Have a function called, on a thread of jax's, when process 0 is gone; None for a message and exit code 5."""
    _known.hook = hook


def _hold_aborts() -> None:
    """Hold up a thread that aborts while Python ends, when no thread can call Python any more."""
    # sleep() as the handler gets the number of the signal: six seconds, after which the abort goes on.
    _c_library.signal(signal.SIGABRT, ctypes.cast(_c_library.sleep, ctypes.c_void_p))


def end_later(code: int) -> NoReturn:
    """Hold up the thread that aborts for as long as the main thread may need to end the process."""
    time.sleep(_EXIT_SECONDS)
    os._exit(code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    # abort() calls this in the middle of nothing else, so Python may run. Returning lets it go on.
    if not _answers(_known.address):
        end_without_store()


def _answers(address: str) -> bool:
    # Not through jax's client: one of its own threads stands here.
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2) as connection:
            # A process that is being killed may still accept. A service greets; one that is stopped says nothing.
            return bool(connection.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def end_without_store() -> NoReturn:
    """End this process, since process 0 is gone."""
    if _known.hook is not None:
        _known.hook()
    why = "ended, was killed or is cut off; no process can go on without it"
    write_error(f"error: rank 0 of the run, at {_known.address}, {why}")
    os._exit(5)


def write_error(text: str) -> None:
    """Write a line to standard error, past the locks of Python's own stream, which a stuck thread may hold."""
    if sys.stderr is None:  # descriptor 2 may be a file by now
        return
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        descriptor = 2
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{visible(text)}\n".encode())
