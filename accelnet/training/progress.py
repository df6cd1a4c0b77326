"""How a run shows that it runs: a bar, lines in a log, or nothing. One interface."""

import importlib.util
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TextIO

from accelnet.terminal import Stream, visible

# A log is read afterwards, by people who do not want a line per chunk.
_SECONDS_BETWEEN_LINES = 10.0


class Progress(ABC):
    """Show how far a run is. `make_progress` picks the way that suits the place.

    Example:
        >>> with SilentProgress() as progress:
        ...     progress.update(10, loss=0.5, examples_per_second=1e4)
    """

    @abstractmethod
    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        """Say where the run is.

        Args:
            step: updates done so far, in the whole run.
            loss: the last training loss; None leaves the one shown.
            examples_per_second: the last rate; None leaves the one shown.
        """

    @abstractmethod
    def note(self, text: str) -> None:
        """Show a line of text that stays."""

    @abstractmethod
    def close(self) -> None:
        """Show the end. May be called twice."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class SilentProgress(Progress):
    """Show nothing.

    Example:
        >>> SilentProgress().note("unheard")
    """

    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Position:
    """Where a run is, in words."""

    def __init__(self, total_steps: int, clock: Callable[[], float]) -> None:
        self._total_steps, self._clock = total_steps, clock
        # The first update, not the start: compiling comes before it, and a resumed run does not start at 0.
        self._first: tuple[int, float] | None = None
        self._loss: float | None = None
        self._rate: float | None = None

    def move(self, step: int, loss: float | None, rate: float | None) -> list[str]:
        """Return "loss 2", "1,234 examples/s" and "0:15 left", as far as known."""
        self._loss = self._loss if loss is None else loss
        self._rate = self._rate if rate is None else rate
        now = self._clock()
        self._first = self._first or (step, now)
        done, left = step - self._first[0], self._total_steps - step
        words = [] if self._loss is None else [f"loss {self._loss:.4g}"]
        if self._rate is not None:
            words.append(f"{self._rate:,.{0 if self._rate >= 10 else 2}f} examples/s")
        if done > 0 and left > 0:
            words.append(f"{_clock_time((now - self._first[1]) / done * left)} left")
        return words


class LineProgress(Progress):
    """Write a line at the first update, every ten seconds and at the end: for logs and pipes.

    Args:
        description: what runs.
        total_steps: of the whole run.
        stream: where to; None for standard error.
        clock: tells the time, in seconds.

    Example:
        >>> progress = LineProgress("digits", 200, stream=sys.stdout, clock=iter([0.0, 20.0]).__next__)
        >>> progress.update(1, loss=2.5)
        digits: step 1 of 200 (0 %), loss 2.5
        >>> progress.update(51, loss=2.0, examples_per_second=1234.5)
        digits: step 51 of 200 (26 %), loss 2, 1,234 examples/s, 1:00 left
    """

    def __init__(
        self,
        description: str,
        total_steps: int,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total_steps = description, total_steps
        self._stream = Stream("stderr" if stream is None else stream)
        self._clock, self._written = clock, -float("inf")
        self._position, self._now = _Position(total_steps, lambda: self._now), 0.0
        self._unwritten: str | None = None

    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        """Say where the run is; most calls write nothing."""
        self._now = self._clock()
        share = 100 * step / max(self._total_steps, 1)
        where = f"{self._description}: step {step:,} of {self._total_steps:,} ({share:.0f} %)"
        self._unwritten = ", ".join([where, *self._position.move(step, loss, examples_per_second)])
        if self._now - self._written >= _SECONDS_BETWEEN_LINES:
            self._written = self._now
            self._flush()

    def note(self, text: str) -> None:
        """Write the text as a line of its own."""
        self._stream.write(visible(text) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Write the last state, if no line has told it."""
        self._flush()

    def _flush(self) -> None:
        if self._unwritten is not None:
            self.note(self._unwritten)
            self._unwritten = None


class BarProgress(Progress):
    """Draw a bar that moves: for terminals and notebooks.

    Args:
        description: what runs.
        total_steps: of the whole run.
        stream: where to; None for standard error.

    Example:
        >>> import io
        >>> stream = io.StringIO()
        >>> with BarProgress("digits", 200, stream=stream) as progress:
        ...     progress.update(200, loss=2.0, examples_per_second=1234.5)
        >>> "digits: 100%" in stream.getvalue(), "loss 2, 1,234 examples/s" in stream.getvalue()
        (True, True)
    """

    def __init__(self, description: str, total_steps: int, *, stream: TextIO | None = None) -> None:
        self._stream = Stream("stderr" if stream is None else stream)
        self._position = _Position(total_steps, time.monotonic)
        self._bar = _bar_class()(
            total=total_steps,
            desc=visible(description),
            file=self._stream,
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {elapsed}{postfix}",
        )

    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        """Move the bar; it is redrawn ten times a second at most."""
        words = self._position.move(step, loss, examples_per_second)
        self._bar.set_postfix_str(", ".join(words), refresh=False)
        self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Write the text above the bar."""
        self._bar.write(visible(text), file=self._stream)

    def close(self) -> None:
        """Draw the bar a last time and leave it."""
        if not self._bar.disable:
            self._bar.refresh()
        self._bar.close()


def make_progress(description: str, total_steps: int, *, show: bool = True) -> Progress:
    """Return a bar in a terminal or notebook, else lines every ten seconds.

    Args:
        description: what runs, in a word or two.
        total_steps: of the whole run, those before a resume too.
        show: False for one that shows nothing.

    Example:
        >>> make_progress("digits", 100, show=False).update(50, loss=1.0)
    """
    if not show:
        return SilentProgress()
    if Stream("stderr").isatty() or _in_notebook():
        return BarProgress(description, total_steps)
    return LineProgress(description, total_steps)


def _in_notebook() -> bool:
    return "ipykernel.zmqshell" in sys.modules


def _bar_class() -> Any:
    if _in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.auto import tqdm
    else:  # tqdm.auto would warn that ipywidgets are missing
        from tqdm import tqdm
    return tqdm


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
