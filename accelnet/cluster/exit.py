"""The exit of a process whose main thread cannot be asked: stacks, one message, and the code."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from accelnet.cluster.abort import write_error
from accelnet.terminal import Stream


def end_process(code: int, text: str, tell: Callable[[], None], tell_seconds: float) -> NoReturn:
    """End this process from any thread, whatever the main thread does: a message, `tell` for the others, the code."""
    bounded(_flush, 1.0)
    write_error(text)
    bounded(tell, tell_seconds)
    os._exit(code)


def bounded(action: Callable[[], object], seconds: float) -> None:
    """Run a function for some time at most; a longer one goes on, and is not waited for."""
    thread = threading.Thread(target=action, name="accelnet-bounded", daemon=True)
    thread.start()
    thread.join(seconds)


def _flush() -> None:
    # A stuck thread may hold the lock of a stream.
    for stream in (sys.stdout, sys.stderr):
        Stream(stream).flush()


def write_stacks(directory: Path | None, rank: int, reason: str) -> str:
    """Write a reason and the Python stacks of all threads into stacks/rank-K.txt of a directory; return where they are.

    Without a directory, or where it cannot be written in, they go to standard error.

    Example:
        >>> import tempfile
        >>> write_stacks(Path(tempfile.mkdtemp()), 0, "no progress")
        'in .../stacks/rank-0.txt'
    """
    if directory is not None:
        path = directory / "stacks" / f"rank-{rank}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{reason}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            write_error(f"{path} cannot be written: {error}")
        else:
            return f"in {path}"
    faulthandler.dump_traceback(2, all_threads=True)
    return "above"
