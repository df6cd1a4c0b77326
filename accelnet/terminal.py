"""Standard output and standard error. Nothing else in accelnet prints.

A stream may be absent, closed, full, or a pipe without a reader, and its encoding may lack most characters. None of
this ends a training: text that cannot be shown is dropped. The exit code of a command tells when results are lost.

Text comes from files and names that others may have made, so no character of it steers a terminal: `say`, `show` and
`StatusLine` escape all that could (`visible`), and `Stream`, through which a command sends all that it or a library
prints, lets only colours and the moves of progress bars pass.
"""

import contextlib
import errno
import functools
import os
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from accelnet.characters import drawn, encodable, visible
from accelnet.narrow_tables import narrowed

# There is no reader: the pipe's other end, the terminal or the descriptor is gone.
_UNREAD = (errno.EPIPE, errno.EIO, errno.EBADF)
_RENEW = "\r\033[K"  # back to the start of the line, and wipe it


class Stream:
    r"""Write to a text stream that may fail, without ever failing.

    Args:
        stream: A stream; None to drop everything; or "stdout" or "stderr", the stream of `sys` at the time of writing.

    Attributes:
        lost: Error that kept written text from its destination, such as a full disk. None: there was none; a missing
            reader does not count.

    Example:
        >>> length = Stream("stdout").write("1 µs\n")
        1 µs
    """

    def __init__(self, stream: Any) -> None:
        self._stream: Any = stream
        self.lost: OSError | None = None

    @property
    def _target(self) -> Any:
        return getattr(sys, self._stream) if isinstance(self._stream, str) else self._stream

    @property
    def encoding(self) -> str:
        """Name of the encoding."""
        return getattr(self._target, "encoding", None) or "utf-8"

    @property
    def columns(self) -> int:
        """Width of the terminal, 80 where there is none."""
        try:
            return os.get_terminal_size(self._target.fileno()).columns or 80
        except (AttributeError, OSError, ValueError):
            return shutil.get_terminal_size().columns

    def isatty(self) -> bool:
        """Say whether the stream is a terminal."""
        try:
            return bool(self._target.isatty())
        except (AttributeError, OSError, ValueError):
            return False

    def write(self, text: str) -> int:
        """Write text, with plain replacements for the characters that the encoding lacks; return its length."""
        self._guarded("write", encodable(drawn(text), self.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Write what is buffered."""
        self._guarded("flush")

    def _guarded(self, method: str, *args: str) -> None:
        target = self._target
        if target is None:
            return
        try:
            getattr(target, method)(*args)
        except ValueError:
            if not getattr(target, "closed", False):
                raise
        except BlockingIOError as error:
            self.lost = error
        except OSError as error:
            if error.errno not in _UNREAD:
                self.lost = error
            _drop(target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def say(text: str, *, end: str = "\n") -> None:
    """Write a message to standard error.

    Example:
        >>> say("compiling")
    """
    _ERROR.write(visible(text) + end)
    _ERROR.flush()


@functools.cache
def say_once(text: str) -> None:
    """Write a message to standard error, the first time only.

    Example:
        >>> say_once("nothing is kept")
    """
    say(text)


def show(text: object = "") -> None:
    """Write a line of results to standard output.

    Example:
        >>> show("accuracy 0.5")
        accuracy 0.5
    """
    _OUTPUT.write(visible(str(text)) + "\n")


def columns(elsewhere: int = 100) -> int:
    """Return the width of what is shown: $COLUMNS, or else the terminal's.

    Args:
        elsewhere: Width of a file or a pipe.

    Example:
        >>> columns() >= 40
        True
    """
    asked = os.environ.get("COLUMNS", "")
    known = int(asked) if asked.isdecimal() else 0
    return max(known or (_OUTPUT.columns if _OUTPUT.isatty() else elsewhere), 40)


def folded(text: str) -> str:
    """Return prose in lines as wide as the terminal, and of at most 100 characters.

    Example:
        >>> folded("a b")
        'a b'
    """
    return "\n".join(textwrap.fill(line, min(columns(), 100), break_on_hyphens=False) for line in text.splitlines())


def rendered(renderable: Any, width: int = 100, *, drop: Sequence[str] = (), folds: bool = False) -> str:
    """Return a table of rich as text without empty lines. What looks like markup in it is text.

    A table that is wider than the terminal loses columns, and its last line names them; no row is folded.

    Args:
        renderable: Object that rich can draw.
        width: Width in a file or a pipe, where there is no terminal.
        drop: Headers of the columns that go first. After these the last goes first, and the first column stays.
        folds: Whether long cells are folded instead: for prose.

    Example:
        >>> from rich.table import Table
        >>> table = Table("name", box=None, pad_edge=False)
        >>> table.add_row("[red]")
        >>> rendered(table).split()
        ['name', '[red]']
    """
    import io

    from rich.console import Console
    from rich.table import Table

    console = Console(
        file=io.StringIO(), width=columns(width), color_system=None, legacy_windows=False, markup=False, emoji=False,
        highlight=False,
    )  # fmt: skip
    gone: list[str] = []
    if isinstance(renderable, Table) and not folds:
        renderable, gone = narrowed(renderable, console, drop)
    with console.capture() as capture:
        console.print(renderable)
    lines = [line.rstrip() for line in visible(capture.get()).splitlines() if line.strip()]
    note = f"left out at {console.width} columns: {'; '.join(filter(None, gone))}" if gone else ""
    return "\n".join([*lines, *textwrap.wrap(note, console.width, subsequent_indent="  ")])


class StatusLine:
    """Show what is being done: one line on standard error that is renewed.

    Where that is not a terminal, a line is written at most every 2 seconds.

    Args:
        show: Whether anything is shown.
        after_seconds: Time that passes before anything is shown, for what mostly takes none.

    Example:
        >>> StatusLine(show=False)("compiling")
    """

    def __init__(self, show: bool, after_seconds: float = 0.0) -> None:
        self._show, self._is_terminal = show, show and _ERROR.isatty()
        self._start = self._last = time.monotonic()
        self._after = after_seconds

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self._start < self._after:
            return
        line = f"{now - self._start:4.0f} s  {visible(text)}"
        if self._is_terminal:
            self._write(_RENEW + line.replace("\n", " ")[: _ERROR.columns])
        elif self._show and now - self._last >= 2:
            self._last = now
            self._write(line + "\n")

    def close(self) -> None:
        """Wipe the line."""
        if self._is_terminal:
            self._write(_RENEW)

    def _write(self, text: str) -> None:
        _ERROR.write(text)
        _ERROR.flush()


@contextlib.contextmanager
def guarded_streams() -> Iterator[Stream]:
    """Send all that this process prints, the user's code included, through a `Stream`; yield that of standard output.

    Example:
        >>> with guarded_streams() as output:
        ...     print("1 µs")
        1 µs
        >>> output.lost is None
        True
    """
    _fill_closed_descriptors()
    output: Any = Stream(sys.stdout)
    error: Any = Stream(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            yield output
        finally:
            output.flush()
            error.flush()


def say_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write an exception that nobody caught to standard error, as Python does; for `sys.excepthook`.

    Example:
        >>> say_uncaught(KeyError, KeyError("a"), None)
    """
    say("".join(traceback.format_exception(kind, error, trace)), end="")


def _drop(stream: Any) -> None:
    """Drop a stream's buffer and all that follows, since Python flushes it once more at exit."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(descriptor, stream.fileno())
        finally:
            os.close(descriptor)


def _fill_closed_descriptors() -> None:
    """Open closed standard descriptors; else the next file gets the number, and XLA's messages."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


_OUTPUT, _ERROR = Stream("stdout"), Stream("stderr")
