"""When something happens on the host: at steps, epochs or seconds. A chunk of steps ends there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accelnet.errors import UserError

# Metrics of which less is more; of all others, more.
_LOWER_IS_BETTER = ("loss", "error", "perplexity", "bits")


def is_lower_better(metric: str) -> bool:
    """Say whether less of a metric is better, by its name.

    Example:
        >>> is_lower_better("bits_per_character"), is_lower_better("accuracy")
        (True, False)
    """
    return any(word in metric for word in _LOWER_IS_BETTER)


@dataclass(frozen=True)
class Every:
    """A rhythm: every so many steps, epochs or seconds. Give exactly one.

    Args:
        steps: at least 1.
        epochs: above 0; rounded to whole steps, at least one.
        seconds: of wall-clock time, above 0. What happens then depends on the machine's speed, so use steps
            or epochs for what must be the same on every machine.

    Raises:
        UserError: if none or several are given, or one is out of its range.

    Example:
        >>> Every(epochs=0.5).next_step(7, steps_per_epoch=10)
        10

    Source: original.
    """

    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise UserError(f"Every got {given or 'nothing'}: give exactly one of steps, epochs, seconds")
        name, value = next(iter(given.items()))
        if not value > 0:
            raise UserError(f"Every got {name}={value}, expected a number above 0")

    def next_step(self, step: int, steps_per_epoch: int) -> int | None:
        """Return the first step after `step` at which this happens; None if seconds decide."""
        if self.seconds is not None:
            return None
        if self.steps is not None:
            return (step // self.steps + 1) * self.steps
        assert self.epochs is not None
        if self.epochs * steps_per_epoch <= 1:
            return step + 1
        count = int(step / (self.epochs * steps_per_epoch))
        while round(count * self.epochs * steps_per_epoch) <= step:
            count += 1
        return round(count * self.epochs * steps_per_epoch)


@dataclass(frozen=True)
class Event:
    """Something of the user's own that happens during training.

    Args:
        every: when.
        action: a function of the `Moment`; if it returns True, training stops there.

    Example:
        >>> event = Event(Every(epochs=1), lambda moment: print(moment.step))

    Source: original.
    """

    every: Every
    action: Callable[["Moment"], Any]


@dataclass(frozen=True)
class Moment:
    """What an event may look at.

    Attributes:
        step: updates so far.
        epoch: the same in epochs.
        state: the `TrainState`; its buffers are given away at the next step, so copy what you keep.
        rows: the metrics recorded so far.
    """

    step: int
    epoch: float
    state: Any
    rows: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a validation metric has not become better for a number of evaluations.

    Args:
        metric: name of the metric.
        patience: evaluations without a better value, at least 1.
        min_delta: how much better counts as better, at least 0.
        mode: "min" or "max"; "auto" by the metric's name.

    Raises:
        UserError: if a value is out of its range.

    Example:
        >>> rows = [{"split": "validation", "loss": loss} for loss in (3.0, 1.0, 1.5, 1.2)]
        >>> EarlyStopping("loss", patience=2).says_stop(rows)
        True

    Source: Prechelt, "Early Stopping - But When?", 1998, criterion UP.
    """

    metric: str = "loss"
    patience: int = 5
    min_delta: float = 0.0
    mode: Literal["auto", "min", "max"] = "auto"

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"early stopping's patience is {self.patience}, expected at least 1")
        if not self.min_delta >= 0:
            raise UserError(f"early stopping's min_delta is {self.min_delta}, expected at least 0")
        if self.mode not in ("auto", "min", "max"):
            raise UserError(f"early stopping's mode is {self.mode!r}, expected auto, min or max")

    def says_stop(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Decide from the recorded rows alone, so that a resumed run decides the same."""
        lower = is_lower_better(self.metric) if self.mode == "auto" else self.mode == "min"
        best, waited = None, 0
        for row in rows:
            if row.get("split") != "validation":
                continue
            value = math.inf if row[self.metric] is None else row[self.metric] if lower else -row[self.metric]
            if best is None or value < best - self.min_delta:
                best, waited = value, 0
            else:
                waited += 1
        return waited >= self.patience
