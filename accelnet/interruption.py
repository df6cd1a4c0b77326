"""Signals while there is nothing to save yet: one line and an exit code instead of a traceback."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from accelnet.runtime import prepare


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process at SIGTERM with code 4 and at Ctrl-C with code 130, while a script imports what it needs.

    An exception would not do: it is lost, or made into another one, where it meets a C extension that is just loaded.
    Nothing is changed in a notebook, outside the main thread, where somebody else handles these signals, and once this
    process has begun to train.

    Example:
        >>> with ending_at_once():
        ...     import json
    """
    # A notebook or a prompt goes on after an interrupt.
    is_script = hasattr(sys.modules.get("__main__"), "__file__") and not sys.flags.interactive
    began = prepare.cache_info().currsize > 0
    if not is_script or began or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == default:
            before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: Any) -> None:
    kind, code = ("interrupted", 130) if number == signal.SIGINT else ("preempted: told to end (SIGTERM)", 4)
    with contextlib.suppress(OSError):
        os.write(2, f"{kind} before anything began\n".encode())
    os._exit(code)
