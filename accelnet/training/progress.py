"""How a run shows that it runs: a bar, lines in a log, a curve in a notebook, or nothing. One interface."""

import contextlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from accelnet.characters import visible
from accelnet.report.charts import ACROSS, Line, linear_axis, lines, value_axis
from accelnet.report.document import piece
from accelnet.report.markup import Markup, tag
from accelnet.report.numbers import short
from accelnet.terminal import Stream
from accelnet.training.position import Position

# A log is read afterwards, by people who do not want a line per chunk.
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_PICTURES = 0.5
_MOST_POINTS = 200  # of a curve in a notebook


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

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """Say what an evaluation of the validation split gave.

        Args:
            step: Updates so far.
            values: Metrics by name, numbers; of the members of a population, lists of numbers.
        """

    def note(self, text: str) -> None:
        """Show a line of text that stays."""

    def close(self) -> None:
        """Show the end. May be called twice."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class PartOfProgress(Progress):
    """Show the steps of one part on the display of the whole, which stays open for the others.

    Args:
        display: Display of the whole.
        start: Steps of the whole before this part.
        factor: Steps of the whole that one of this part is.
        num_trainings: Number of trainings that go on at once: a rate in examples per second is that of one of them.

    Example:
        >>> PartOfProgress(make_progress("digits", 100, show=False), start=50, factor=0.5).update(20)
    """

    def __init__(self, display: Progress, start: int, factor: float = 1.0, num_trainings: int = 1) -> None:
        self._display, self._start, self._factor, self._num_trainings = display, start, factor, num_trainings

    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        rate = None if examples_per_second is None else examples_per_second * self._num_trainings
        self._display.update(self._start + round(step * self._factor), loss, rate)

    def note(self, text: str) -> None:
        self._display.note(text)


class _Shown(Progress, ABC):
    """What all displays share: a name, a position, and how it is told."""

    def __init__(self, description: str, position: Position) -> None:
        self._description, self._position = visible(description), position

    def update(self, step: int, loss: float | None = None, examples_per_second: float | None = None) -> None:
        self._position.move(step, loss, examples_per_second)
        self._draw()

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        self._position.evaluated(step, values)

    @abstractmethod
    def _draw(self) -> None:
        """Show the position."""


class LineProgress(_Shown):
    """Write a line at the first update, every ten seconds and at the end: for logs and pipes.

    Args:
        description: Name of what runs.
        position: Where it is.
        stream: Where the lines go. None: standard error.

    Example:
        >>> position = Position(200, clock=iter([0.0, 20.0]).__next__)
        >>> progress = LineProgress("digits", position, stream=sys.stdout)
        >>> progress.update(1, loss=2.5)
        digits: 0 % · step 1/200 · loss 2.5
        >>> progress.update(51, loss=2.0, examples_per_second=1234.5)
        digits: 26 % · step 51/200 · loss 2 · 1.2k/s · 1:00 left
    """

    def __init__(self, description: str, position: Position, *, stream: TextIO | None = None) -> None:
        super().__init__(description, position)
        self._stream = Stream("stderr" if stream is None else stream)
        self._written = -float("inf")
        self._is_new = False

    def _draw(self) -> None:
        self._is_new = True
        if self._position.now - self._written >= _SECONDS_BETWEEN_LINES:
            self._written = self._position.now
            self.close()

    def note(self, text: str) -> None:
        self._stream.write(visible(text) + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._is_new:
            share = 100 * self._position.step / max(self._position.total_steps, 1)
            separator = _separator(self._stream)
            self.note(f"{self._description}: {share:.0f} %{separator}{self._position.line(200, separator)}")
            self._is_new = False


class BarProgress(_Shown):
    """Draw a bar that moves, and behind it what is known, as far as it fits: for terminals.

    Args:
        description: Name of what runs.
        position: Where it is.
        stream: Where the bar is drawn. None: standard error.

    Example:
        >>> import io
        >>> stream = io.StringIO()
        >>> with BarProgress("digits", Position(200), stream=stream) as progress:
        ...     progress.update(200, loss=2.0, examples_per_second=1234.5)
        >>> "digits: 100%" in stream.getvalue(), "step 200/200 · loss 2" in stream.getvalue()
        (True, True)
    """

    def __init__(self, description: str, position: Position, *, stream: TextIO | None = None) -> None:
        from tqdm import tqdm

        super().__init__(description, position)
        self._stream = Stream("stderr" if stream is None else stream)
        self._bar = tqdm(
            total=position.total_steps,
            desc=self._description,
            file=self._stream,
            ncols=self._stream.columns - 1,
        )

    def _draw(self) -> None:
        columns = self._bar.ncols = self._stream.columns - 1  # people change the size of their windows
        bar, used = ("|{bar}| {elapsed}", 26) if columns >= _BAR_COLUMNS else ("", 8)
        self._bar.bar_format = "{desc}: {percentage:3.0f}%" + bar + "{postfix}"
        room = columns - len(self._description) - used
        self._bar.set_postfix_str(self._position.line(max(room, 20), _separator(self._stream)), refresh=False)
        self._bar.update(self._position.step - self._bar.n)

    def note(self, text: str) -> None:
        self._bar.write(visible(text), file=self._stream)

    def close(self) -> None:
        if not self._bar.disable:
            self._bar.refresh()
        self._bar.close()


class NotebookProgress(_Shown):
    """Draw the losses while they come, with what is known in a line below: for notebooks.

    Args:
        description: Name of what runs.
        position: Where it is.

    Example:
        >>> NotebookProgress("digits", Position(200)).picture()[:28]
        '<div class="accelnet"><style'
    """

    def __init__(self, description: str, position: Position) -> None:
        super().__init__(description, position)
        self._notes: list[str] = []
        self._handle: Any = None
        self._drawn = -float("inf")

    def _draw(self) -> None:
        if time.monotonic() - self._drawn >= _SECONDS_BETWEEN_PICTURES:
            self.close()

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._show()

    def close(self) -> None:
        self._notes = [note for note in self._notes if not note.endswith("…")]  # what was under way is done
        self._show()

    def _show(self) -> None:
        from IPython import display

        self._drawn = time.monotonic()
        shown = display.HTML(self.picture())
        if self._handle is None:
            self._handle = display.display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def picture(self) -> str:
        """Return the curve, the line and the notes as HTML."""
        position = self._position
        thinned = position.losses[:: -(-len(position.losses) // _MOST_POINTS) or 1]
        evaluations: Line = ("c1", f"validation {position.metric}", position.evaluations)
        beside = position.metric == "loss"
        charts = [_chart("Loss", position, [("c0", "training loss", thinned), *([evaluations] if beside else [])])]
        charts += [] if beside else [_chart(f"Validation {position.metric}", position, [evaluations])]
        notes = [tag("p", note) for note in self._notes]
        told = f"{self._description}: {position.line(200)}"
        return piece(tag("div", *charts, class_="grid"), tag("p", told), *notes)


_BAR_COLUMNS = 100  # that a terminal needs, for a bar beside the words


def _chart(title: str, position: Position, series: list[Line]) -> Markup:
    """Draw the lines that have points; nothing before there are any."""
    made = [(kind, name, points) for kind, name, points in series if len(points)]
    if not made:
        return Markup()
    values = [value for _, _, points in made for _, value in points]
    x = linear_axis("step", [0, position.total_steps], short, ACROSS)
    return lines(title, x, value_axis(values) if title == "Loss" else linear_axis("", values, short), made)


def _separator(stream: Stream) -> str:
    with contextlib.suppress(UnicodeEncodeError):
        return " · ".encode(stream.encoding).decode(stream.encoding)
    return ", "


def make_progress(
    description: str,
    total_steps: int,
    *,
    show: bool = True,
    steps_per_epoch: int | None = None,
    metric: str = "loss",
    lower_is_better: bool | None = True,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Return the display that suits the place: a curve in a notebook, a bar in a terminal, else lines.

    Args:
        description: Name of what runs.
        total_steps: Steps of the whole run.
        show: Whether anything is shown.
        steps_per_epoch: As of `Position`, like `metric`, `lower_is_better` and `clock`.
        metric: Validation metric.
        lower_is_better: Its direction.
        clock: Function that tells the time.

    Example:
        >>> make_progress("digits", 100, show=False).update(50, loss=1.0)
    """
    if not show:
        return Progress()
    position = Position(total_steps, steps_per_epoch, metric, lower_is_better, clock)
    if _in_notebook():
        return NotebookProgress(description, position)
    kind = BarProgress if Stream("stderr").isatty() else LineProgress
    return kind(description, position)


def _in_notebook() -> bool:
    return "ipykernel.zmqshell" in sys.modules
