"""When something happens on the host: at steps, epochs or seconds. A chunk of steps ends there."""

from collections.abc import Mapping
from dataclasses import dataclass

from accelnet.arguments import integer, number
from accelnet.errors import UserError


@dataclass(frozen=True)
class Pace:
    """How much one call of a compiled program does. It changes no bit of a training.

    Args:
        chunk_seconds: Time that a chunk of training steps should take, above 0. A call costs 0.2 ms of dispatch, and
            temporary buffers that are paged in anew: experiments/fashion_cnn.py with --channels 48 96 took about 165 ms
            a step in chunks of 0.5 s and 108 in chunks of 2 s. While a chunk runs, the display stands still.
        eval_batches: Most batches of one call of the evaluation, at least 1. Between two calls the processes learn
            whether one was told to end. A number, not a time: where evaluation is cut changes the rounding of its sums.
    """

    chunk_seconds: float = 2.0
    eval_batches: int = 64

    def __post_init__(self) -> None:
        number("chunk_seconds of Pace", self.chunk_seconds, above=0)
        integer("eval_batches of Pace", self.eval_batches, 1)


@dataclass(frozen=True)
class Every:
    """A rhythm: every so many steps, epochs or seconds. Give exactly one.

    Args:
        steps: Number of steps, at least 1.
        epochs: Number of epochs, above 0; rounded to whole steps, at least one.
        seconds: Wall-clock time, above 0. What happens then depends on the machine's speed, so use steps or epochs for
            what must be the same on every machine.

    Raises:
        UserError: if none or several are given, or one is out of its range.

    Example:
        >>> Every(epochs=0.5).next_step(7, steps_per_epoch=10)
        10
    """

    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise UserError(f"Every got {given or 'nothing'}: give exactly one of steps, epochs, seconds")
        name, value = next(iter(given.items()))
        if name == "steps":
            integer("steps of Every", value, 1)
        else:
            number(f"{name} of Every", value, above=0)

    def next_step(self, step: int, steps_per_epoch: int) -> int | None:
        """Return the first step after `step` at which this happens; None if seconds decide."""
        if self.seconds is not None:
            return None
        if self.steps is not None:
            return (max(step, 0) // self.steps + 1) * self.steps
        assert self.epochs is not None
        if self.epochs * steps_per_epoch <= 1:
            return max(step, 0) + 1
        count = int(max(step, 0) / (self.epochs * steps_per_epoch))
        while round(count * self.epochs * steps_per_epoch) <= max(step, 0):
            count += 1
        return round(count * self.epochs * steps_per_epoch)


@dataclass(frozen=True)
class At:
    """A rhythm of given steps, ascending; 0 is before the first update."""

    steps: tuple[int, ...]
    seconds = None

    def next_step(self, step: int, steps_per_epoch: int) -> int | None:
        """Return the first of the steps after `step`, None after the last."""
        return next((own for own in self.steps if own > step), None)


Rhythm = Every | At


class Agenda:
    """Tell what is due at a step, and how far the next chunk may go.

    Args:
        rhythms: Rhythms by name.
        steps_per_epoch: Steps of an epoch.
        seconds: Time that the run has taken so far.
    """

    def __init__(self, rhythms: Mapping[str, Rhythm], steps_per_epoch: int, seconds: float) -> None:
        self.rhythms = rhythms
        self.steps_per_epoch = steps_per_epoch
        self._last_seconds = dict.fromkeys(rhythms, seconds)

    def steps_left(self, step: int) -> list[int]:
        """Return the numbers of steps after which something happens by count."""
        following = (rhythm.next_step(step, self.steps_per_epoch) for rhythm in self.rhythms.values())
        return [next_step - step for next_step in following if next_step is not None]

    def is_due(self, name: str, step: int, seconds: float) -> bool:
        """Say whether something happens at a step; what happens by the clock counts from here on anew."""
        rhythm = self.rhythms.get(name)
        if rhythm is None:
            return False
        if rhythm.seconds is None:
            return rhythm.next_step(step - 1, self.steps_per_epoch) == step
        if seconds - self._last_seconds[name] < rhythm.seconds:
            return False
        self._last_seconds[name] = seconds
        return True
