"""Evaluate states of a run: the weights that stand for a state, and the metrics of a split."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import numpy as np

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.errors import Interrupted, PreemptedError
from accelnet.experiment import Experiment
from accelnet.parallel.memory import fetched
from accelnet.training.compiled import Program
from accelnet.training.evaluation import num_statistics_batches
from accelnet.training.hosts import Hosts
from accelnet.training.program import Programs
from accelnet.training.progress import Progress
from accelnet.training.rhythm import Pace
from accelnet.training.timing import Timing

State = Any


@dataclass(eq=False)
class Evaluator:
    """Evaluate states with the programs of a run.

    Args:
        experiment: What is trained.
        feed: How batches reach the programs.
        programs: What evaluates a state.
        hosts: Processes of the run.
        display: Where progress is shown.
        timing: Where the time went so far.
        pace: How much one call does.
        save: Function that saves a state when the run is told to end, and returns a sentence about what is kept.
    """

    experiment: Experiment
    feed: AbstractFeed
    programs: Programs
    hosts: Hosts
    display: Progress = field(default_factory=Progress)
    timing: Timing = field(default_factory=Timing)
    pace: Pace = Pace()  # noqa: RUF009, it is frozen
    save: Callable[[State], str] = lambda _: "an evaluation keeps nothing"

    def __post_init__(self) -> None:
        self._weights: tuple[State, Any] | None = None

    @functools.cached_property
    def _nothing_seen(self) -> Any:
        return jax.tree.map(
            lambda empty, like: np.broadcast_to(jax.device_get(empty), like.shape),
            self.experiment.objective.empty(),
            self.programs.abstract_state.metrics,
        )

    def weights(self, state: State) -> Any:
        """Return what a state is evaluated with; computed once for a state."""
        if self._weights is not None and self._weights[0] is state:
            return self._weights[1]
        if self.programs.weights is None:
            return self.programs.trained_weights(state)
        count = num_statistics_batches(self.experiment, self.feed)
        self.compile(self.programs.weights, int(state.step))
        # A feed of its own: the one that trains reads ahead.
        feed = self.feed.with_eval_batch_size(self.feed.eval_batch_size)
        operand = self.timing.measure("input", feed.train_operand, 0, count, int(state.seed))
        weights = self.timing.measure("eval", self.programs.weights, state, operand)
        self._weights = state, weights
        return weights

    def evaluate(self, state: State, split: str) -> dict[str, Any]:
        """Return the metrics of a split, exact over every example; empty if there is no such split."""
        rows = self.experiment.data.splits.get(split, range(0))
        if not len(rows):
            return {}
        weights, values = self.weights(state), {}
        step = int(state.step)
        metrics = self._nothing_seen
        size = self.feed.eval_batch_size
        # Of a loss that is one number for a batch, padding cannot be taken out: the rest is a batch of its own size.
        rest = len(rows) % size if self.experiment.couples_padding else 0
        full = rows[: len(rows) - rest]
        num_batches = -(-len(full) // size)
        most = min(self.feed.max_steps or self.pace.eval_batches, self.pace.eval_batches)
        parts = [
            (self.programs.evaluate, self.feed, full, first, min(most, num_batches - first))
            for first in range(0, num_batches, most)
        ]
        if rest:
            parts.append((*self.programs.evaluate_rest(rest), rows[len(full) :], 0, 1))
        for index, (program, feed, some, first, length) in enumerate(parts):
            self.compile(program, step)
            self.hosts.mark(step, "evaluate")
            if index and self.hosts.agree()[1]:
                self.end(state)
            operand = self.timing.measure("input", feed.eval_operand, some, first, length)
            numbers = [np.int32(n) for n in (first, length, some.start, some.stop)]
            # Not waited for: the next operand is read while the device computes.
            metrics, values = self.timing.measure("eval", program, weights, metrics, operand, *numbers)
        return {name: value.tolist() for name, value in self.timing.measure("eval", fetched, values).items()}

    def compile(self, program: Program, step: int) -> None:
        """Compile a program that is called next; nothing where that is done."""
        if not program.compiles:
            self.display.note(f"compiling {program.name} …")
            self.hosts.mark(step, "compile")
            self.timing.measure("compile", lambda: program.compiled)

    def end(self, state: State) -> NoReturn:
        """Save a state, and end the run as it was told to."""
        kept = self.save(state)
        interrupted = self.hosts.any(self.hosts.preemption.interrupted)
        kind, how = (Interrupted, "Ctrl-C") if interrupted else (PreemptedError, "SIGTERM")
        raise kind(f"told to end ({how}) at step {int(state.step)}: {kept}")
