"""Where a run is, in words."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


@dataclass(eq=False)
class Position:
    """Keep what is known of a run on its way, and say it in one line.

    Args:
        total_steps: Steps of the whole run.
        steps_per_epoch: Steps of a pass over the training rows. None: there are no epochs to count.
        metric: Validation metric that is shown beside the loss, with the best it has been.
        lower_is_better: Direction of that metric. None: it has none, and nothing is best.
        clock: Function that tells the time, in seconds.

    Example:
        >>> position = Position(200, 50, "accuracy", False, clock=iter([0.0, 20.0]).__next__)
        >>> position.move(1, loss=2.5)
        >>> position.evaluated(50, {"loss": 1.9, "accuracy": 0.4})
        >>> position.move(51, loss=2.0, rate=1234.5)
        >>> position.line(100)
        'epoch 2/4 · loss 2 · val loss 1.9 · val accuracy 0.4 (best 0.4, epoch 1) · 1.2k/s · 1:00 left'
        >>> position.line(60)
        'epoch 2/4 · loss 2 · val loss 1.9 · val accuracy 0.4'
    """

    total_steps: int
    steps_per_epoch: int | None = None
    metric: str = "loss"
    lower_is_better: bool | None = True
    clock: Callable[[], float] = time.monotonic
    step: int = 0
    now: float = -np.inf
    losses: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    # The first update, not the start: compiling comes before it, and a resumed run does not start at 0.
    _first: tuple[int, float] | None = None
    _rate: float | None = None
    _validation_loss: float | None = None

    def move(self, step: int, loss: float | None = None, rate: float | None = None) -> None:
        """Note that the run is at a step, with its training loss and rate in examples per second, where known."""
        self.step, self.now = step, self.clock()
        self._first = self._first or (step, self.now)
        self._rate = self._rate if rate is None else rate
        if loss is not None:
            self.losses.append((step, loss))

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """Note the validation metrics of a step; of the members of a population, their medians."""
        self._validation_loss = _number(values.get("loss"))
        found = _number(values.get(self.metric))
        if found is not None:
            self.evaluations.append((step, found))

    def best(self) -> tuple[int, float] | None:
        """Return the step and the value of the best evaluation; None where there is none."""
        if not self.evaluations or self.lower_is_better is None:
            return None
        pick = min if self.lower_is_better else max
        return pick(self.evaluations, key=lambda found: found[1])

    def words(self) -> list[tuple[str, str]]:
        """Return what is known, each with its kind, in the order in which it is read."""
        found = [("where", self._where(self.step))]
        if self.losses:
            found.append(("loss", f"loss {self.losses[-1][1]:.4g}"))
        if self._validation_loss is not None and self.metric != "loss":
            found.append(("validation loss", f"val loss {self._validation_loss:.4g}"))
        if self.evaluations:
            found.append(("metric", f"val {self.metric} {self.evaluations[-1][1]:.4g}"))
        if (best := self.best()) is not None:
            found.append(("best", f"(best {best[1]:.4g}, {self._short(best[0])})"))
        if self._rate is not None:
            found.append(("rate", f"{_short_number(self._rate)}/s"))
        done, left = (self.step - self._first[0], self.total_steps - self.step) if self._first else (0, 0)
        if self._first and done > 0 and left > 0:
            found.append(("left", f"{_clock_time((self.now - self._first[1]) / done * left)} left"))
        return found

    def line(self, columns: int, separator: str = " · ") -> str:
        """Return the words in at most that many characters, without the least wanted ones where they do not fit."""
        words = self.words()
        for unwanted in ("", "rate", "best", "left", "validation loss", "where"):
            words = [(kind, word) for kind, word in words if kind != unwanted]
            line = "".join((" " if kind == "best" else separator) + word for kind, word in words)[len(separator) :]
            if len(line) <= columns:
                break
        return line[:columns]

    def _where(self, step: int) -> str:
        if self.steps_per_epoch is None or self.total_steps <= self.steps_per_epoch:
            return f"step {step:,}/{self.total_steps:,}"
        return f"{self._short(step)}/{-(-self.total_steps // self.steps_per_epoch):,}"

    def _short(self, step: int) -> str:
        if self.steps_per_epoch is None or self.total_steps <= self.steps_per_epoch:
            return f"step {step:,}"
        return f"epoch {max(1, -(-step // self.steps_per_epoch)):,}"


class _Unit(NamedTuple):
    size: float
    name: str


def _short_number(value: float) -> str:
    for unit in (_Unit(1e9, "G"), _Unit(1e6, "M"), _Unit(1e3, "k")):
        if value >= unit.size:
            return f"{value / unit.size:.{0 if value >= 10 * unit.size else 1}f}{unit.name}"
    return f"{value:.{0 if value >= 10 else 2}f}"


def _number(values: Any) -> float | None:
    """Return a number, or the median of several, of those that are finite; None where there is none."""
    found = np.ravel(np.asarray([] if values is None else values, np.float64))
    found = found[np.isfinite(found)]
    return float(np.median(found)) if found.size else None


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
