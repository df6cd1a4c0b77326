"""How a run shows that it runs: a bar, lines in a log, or nothing. One interface."""

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from accelnet.terminal import Stream, visible

# A log is read afterwards, by people who do not want a line per chunk.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Show nothing. `make_progress` picks the kind that suits the place.

    Example:
        >>> with Progress() as progress:
        ...     progress.update(10, loss=0.5, examples_per_second=1e4)
    """

    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        """Say where the run is.

        Args:
            step: Updates so far, in the whole run.
            loss: Last training loss; None leaves the one shown.
            examples_per_second: Last rate; None leaves the one shown.
        """

    def note(self, text: str) -> None:
        """Show a line of text that stays."""

    def close(self) -> None:
        """Show the end. May be called twice."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Position:
    """Where a run is, in words."""

    def __init__(self, total_steps: int, clock: Callable[[], float]) -> None:
        self.total_steps, self.clock = total_steps, clock
        # The first update, not the start: compiling comes before it, and a resumed run does not start at 0.
        self._first: tuple[int, float] | None = None
        self._loss: float | None = None
        self._rate: float | None = None

    def move(self, step: int, loss: float | None, rate: float | None) -> tuple[float, list[str]]:
        """Return the time, and "loss 2", "1,234 examples/s" and "0:15 left", as far as known."""
        self._loss = self._loss if loss is None else loss
        self._rate = self._rate if rate is None else rate
        now = self.clock()
        self._first = self._first or (step, now)
        done, left = step - self._first[0], self.total_steps - step
        words = [] if self._loss is None else [f"loss {self._loss:.4g}"]
        if self._rate is not None:
            words.append(f"{self._rate:,.{0 if self._rate >= 10 else 2}f} examples/s")
        if done > 0 and left > 0:
            words.append(f"{_clock_time((now - self._first[1]) / done * left)} left")
        return now, words


class LineProgress(Progress):
    """Write a line at the first update, every ten seconds and at the end: for logs and pipes.

    Args:
        description: Name of what runs.
        total_steps: Steps of the whole run.
        stream: Where the lines go. None: standard error.
        clock: Function that tells the time, in seconds.

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
        self._description = description
        self._stream = Stream("stderr" if stream is None else stream)
        self._position = _Position(total_steps, clock)
        self._written = -float("inf")
        self._unwritten: str | None = None

    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        now, words = self._position.move(step, loss, examples_per_second)
        total = self._position.total_steps
        where = f"{self._description}: step {step:,} of {total:,} ({100 * step / max(total, 1):.0f} %)"
        self._unwritten = ", ".join([where, *words])
        if now - self._written >= _SECONDS_BETWEEN_LINES:
            self._written = now
            self.close()

    def note(self, text: str) -> None:
        self._stream.write(visible(text) + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._unwritten is not None:
            self.note(self._unwritten)
            self._unwritten = None


class BarProgress(Progress):
    """Draw a bar that moves: for terminals and notebooks.

    Args:
        description: Name of what runs.
        total_steps: Steps of the whole run.
        stream: Where the bar is drawn. None: standard error.

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
        _, words = self._position.move(step, loss, examples_per_second)
        self._bar.set_postfix_str(", ".join(words), refresh=False)
        self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        self._bar.write(visible(text), file=self._stream)

    def close(self) -> None:
        if not self._bar.disable:
            self._bar.refresh()
        self._bar.close()


def make_progress(description: str, total_steps: int, *, show: bool = True) -> Progress:
    """Return a bar in a terminal or notebook, else lines every ten seconds; without `show`, nothing is shown.

    Example:
        >>> make_progress("digits", 100, show=False).update(50, loss=1.0)
    """
    if not show:
        return Progress()
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
