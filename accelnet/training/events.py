"""What a user lets happen during training, and when training stops before its last step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from accelnet.arguments import flag, function, integer, number, sequence, word
from accelnet.errors import UserError
from accelnet.signature import arguments, name_of
from accelnet.training.rhythm import Every
from accelnet.wording import shown


def rank(value: float | None, lower_is_better: bool) -> float:
    """Return a number that is the smaller the better a value of a metric is; NaN and None are worst.

    Example:
        >>> min([0.5, math.nan, 0.9, None], key=lambda value: rank(value, lower_is_better=False))
        0.9
    """
    if value is None or math.isnan(value):
        return math.inf
    return value if lower_is_better else -value


@dataclass(frozen=True)
class Event:
    """Something of the user's own that happens during training.

    Args:
        when: A rhythm, "start" (before the first step of this process) or "end" (after the last).
        action: Function of the `Moment`; if it returns True, training stops there.

    Raises:
        UserError: if an argument is of another kind.

    Example:
        >>> event = Event(Every(epochs=1), lambda moment: print(moment.step))
    """

    when: Every | Literal["start", "end"]
    action: Callable[["Moment"], Any]

    def __post_init__(self) -> None:
        if not isinstance(self.when, Every):
            if not isinstance(self.when, str):
                raise UserError(f"when of an Event is {shown(self.when)}, expected Every(...), 'start' or 'end'")
            word("when of an Event", self.when, ("start", "end"))
        function("action of an Event", self.action, "a function of a Moment")


def check_events(events: Any) -> tuple[Event, ...]:
    """Return a list of `Event`s as a tuple; what is no list, or has something else in it, raises `UserError`."""
    for event in sequence("events", events):
        if not isinstance(event, Event):
            raise UserError(f"events has {shown(event)} in it, expected Events, as Event(Every(epochs=1), function)")
    return tuple(events)


@dataclass(frozen=True)
class Moment:
    """What an event may look at, and what it may do.

    Attributes:
        step: Updates so far.
        epoch: The same in epochs.
        state: `TrainState`; its buffers are given away at the next step, so copy what you keep.
        rows: Metrics recorded so far.
        actions: Functions of the loop, by the names of the methods below.
    """

    step: int
    epoch: float
    state: Any
    rows: Sequence[dict[str, Any]]
    actions: Mapping[str, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def log(self, **values: float) -> None:
        """Record numbers by name, beside the metrics: a row of its own, with split "event"."""
        self.actions["log"](values)

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        """Return the metrics of a split at this moment, with averaged weights where the optimizer keeps such."""
        return self.actions["evaluate"](split)

    def predict(self, inputs: Any) -> Any:
        """Return the model's outputs of raw inputs, with the weights of this moment, as `Run.predict` does."""
        return self.actions["predict"](inputs)

    def save(self) -> None:
        """Write a checkpoint of this moment; without a work directory, nothing."""
        self.actions["save"]()

    def stop(self) -> None:
        """End the training after this moment."""
        self.actions["stop"]()


def act(event: Event, moment: Moment) -> Any:
    """Let an event happen, and return what its action returns.

    Its exceptions pass as they are, since some are raised on purpose, to give a trial up; a note says where from.
    """
    given, named = arguments("an event", event.action, [moment], {})
    try:
        return event.action(*given, **named)
    except Exception as error:
        error.add_note(f"raised by an event, {name_of(event.action)}, at step {moment.step}")
        raise


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a validation metric has not become better for a number of evaluations.

    Args:
        metric: Name of the metric.
        patience: Number of evaluations without a better value, at least 1.
        min_delta: Difference that counts as better, at least 0.
        mode: "min" or "max"; "auto": the metric's own direction.
        restore_best: End with the weights of the best evaluation, not with the last ones.

    Raises:
        UserError: if a value is out of its range.

    Example:
        >>> rows = [{"split": "validation", "loss": loss} for loss in (3.0, 1.0, 1.5, 1.2)]
        >>> EarlyStopping("loss", patience=2).says_stop(rows, lower_is_better=True)
        True

    Source: Prechelt, "Early Stopping - But When?", 1998, criterion UP.
    """

    metric: str = "loss"
    patience: int = 5
    min_delta: float = 0.0
    mode: Literal["auto", "min", "max"] = "auto"
    restore_best: bool = False

    def __post_init__(self) -> None:
        word("early stopping's metric", self.metric)
        integer("early stopping's patience", self.patience, 1)
        number("early stopping's min_delta", self.min_delta, 0)
        word("early stopping's mode", self.mode, ("auto", "min", "max"))
        flag("early stopping's restore_best", self.restore_best)

    def says_stop(self, rows: Sequence[dict[str, Any]], lower_is_better: bool) -> bool:
        """Decide from the recorded rows alone, so that a resumed run decides the same."""
        lower = lower_is_better if self.mode == "auto" else self.mode == "min"
        values = [rank(row[self.metric], lower) for row in rows if row.get("split") == "validation"]
        best, waited = None, 0
        for value in values:
            if best is None or value < best - self.min_delta:
                best, waited = value, 0
            else:
                waited += 1
        return waited >= self.patience
