"""The loop: chunks of steps, and what happens between them on the host."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from accelnet.arguments import word
from accelnet.data.abstract_feed import AbstractFeed
from accelnet.errors import DivergenceError, UserError
from accelnet.experiment import Experiment
from accelnet.parallel.memory import fetched
from accelnet.tracking.tracker import Tracking
from accelnet.training.evaluation import Weights
from accelnet.training.evaluator import Evaluator
from accelnet.training.events import Event, Moment, act
from accelnet.training.hosts import Hosts
from accelnet.training.program import Programs
from accelnet.training.progress import Progress
from accelnet.training.record import ROW_FIELDS
from accelnet.training.rhythm import Agenda, Every, Pace, Rhythm
from accelnet.training.run import Run
from accelnet.training.spikes import Spikes
from accelnet.training.timing import Timing
from accelnet.training.workdir import Workdir

State = Any


@dataclass(eq=False)
class Loop:
    """Train a state to the last step, and evaluate it on the way.

    One run and the members of a population go through the same loop: `programs` advance and evaluate a state, whose
    values (losses, metrics) are numbers of the one or arrays of the others.

    Args:
        experiment: What is trained.
        feed: How batches reach the programs.
        programs: What advances and evaluates a state.
        work: Where rows and checkpoints go.
        hosts: Processes of the run.
        display: Where progress is shown.
        timing: Where the time went so far.
        rhythms: When to log, save and evaluate.
        events: Events of the user.
        watched: Split that is evaluated on the way.
        pace: How much one call does.
        tracking: What else is told what is recorded.
    """

    experiment: Experiment
    feed: AbstractFeed
    programs: Programs
    work: Workdir
    hosts: Hosts
    display: Progress
    timing: Timing
    rhythms: Mapping[str, Rhythm]
    events: Sequence[Event] = ()
    watched: str = "validation"
    pace: Pace = Pace()  # noqa: RUF009, it is frozen
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        self.steps_per_epoch = self.experiment.order.steps_per_epoch
        # Seconds of the run on the first process: what happens by the clock must happen on all at the same step.
        (self.seconds,), _ = self.hosts.agree(self.timing.total)
        by_count = {f"event {index}": one.when for index, one in enumerate(self.events) if isinstance(one.when, Every)}
        self.agenda = Agenda({**self.rhythms, **by_count}, self.steps_per_epoch, self.seconds)
        self.step = 0
        self._stopped, self._spikes = False, Spikes(self.display.note)
        self.evaluator = Evaluator(
            self.experiment, self.feed, self.programs, self.hosts, self.display, self.timing, self.pace,
            save=self._save_at_end,
        )  # fmt: skip

    def train(self, state: State) -> State:
        """Run chunks until the last step, or until an event says stop."""
        self.step = step = int(state.step)
        seed = int(state.seed)
        total, seconds_per_step = self.experiment.total_steps, None
        self._occur(state, "start")
        if self._owes_evaluation():
            self._validate(state)
        stop = self._stopped or self._says_stop()
        if stop or step == total:
            return self._ended(state)
        self.evaluator.compile(self.programs.train, step)
        length = self._chunk_length(step, None)
        operand = self.timing.measure("input", self.feed.train_operand, step, length, seed)
        while step < total and not stop:
            self.hosts.mark(step, "train")
            start = time.perf_counter()
            reset = np.bool_(self.work.is_logged(step))
            state, report = self.programs.train(state, operand, np.int32(length), reset)
            # Not waited for yet: what the next chunk needs is read while the device computes this one.
            done, step = length, step + length
            length = self._chunk_length(step, seconds_per_step)
            read_seconds, operand = self._read(step, length, seed)
            hidden = not report["loss"].is_ready()
            report = fetched(report)
            seconds = time.perf_counter() - start - (0.0 if hidden else read_seconds)
            self.timing.seconds["train"] += seconds
            self.timing.seconds["input"] += 0.0 if hidden else read_seconds
            self._check(state, report["failure"])
            self.step = step
            self.hosts.preemption.defers_interrupts = True  # from here on there is something to save
            (seconds_per_step, self.seconds), told = self.hosts.agree(seconds / done, self.timing.total)
            rate = self.experiment.order.batch_size / seconds_per_step
            self.display.update(step, _median(report["loss"]), rate)
            stop = self._happen(state, report, rate, told)
        self._save(state, None)
        return self._ended(state)

    def _ended(self, state: State) -> State:
        """Let what happens at the end happen, and return the state that the run ends with."""
        stopping = self.experiment.early_stopping
        if stopping is not None and stopping.restore_best:
            best = self.work.best(self.programs.abstract_state)
            state = state if best is None else best
            self.step = int(state.step)
        self._occur(state, "end")
        return state

    def _read(self, step: int, length: int, seed: int) -> tuple[float, Any]:
        start = time.perf_counter()
        operand = self.feed.train_operand(step, length, seed) if length else None
        return time.perf_counter() - start, operand

    def _chunk_length(self, step: int, seconds_per_step: float | None) -> int:
        limits = [self.experiment.total_steps - step, *self.agenda.steps_left(step)]
        # The first chunk is one step, to learn how long a step takes.
        limits.append(max(1, int(self.pace.chunk_seconds / seconds_per_step)) if seconds_per_step else 1)
        if self.feed.max_steps is not None:
            limits.append(self.feed.max_steps)
        return min(limits)

    def _check(self, state: State, failure: Any) -> None:
        if failure is None or not failure.happened:
            return
        step = int(state.step)
        what = failure.explain(f"at step {step} (epoch {step / self.steps_per_epoch:.2f})")
        raise DivergenceError(
            f"{what}. {self.work.last_good()}. Lower the learning rate, clip the gradients "
            "(optax.clip_by_global_norm), or look at the data of that step"
        )

    def log(self, split: str, values: Mapping[str, Any]) -> None:
        """Record metrics of a split at this step."""
        row = {"step": self.step, "epoch": self.step / self.steps_per_epoch, "seconds": self.seconds, "split": split}
        self.work.log(self._spikes.marked(self.work.rows, {**row, **values}))
        self.tracking.log(self.work.rows[-1])

    def _is_due(self, name: str) -> bool:
        return self.agenda.is_due(name, self.step, self.seconds)

    def _happen(self, state: State, report: Any, rate: float, told: bool) -> bool:
        """Log, evaluate, save and the user's events, in this order; say whether to stop."""
        at_end = self.step == self.experiment.total_steps
        due = {name: self._is_due(name) for name in self.agenda.rhythms}
        if due["log"] or at_end:
            # None where no part of the optimizer's state shows a rate, or several groups have one each.
            extra = {"learning_rate": None, "examples_per_second": rate, **report["rates"]}
            self.log("train", {**report["metrics"], **extra})
        if told:
            self.evaluator.end(state)
        stop = False
        if "eval" in due and (due["eval"] or at_end):
            self._validate(state)
            stop = self._says_stop()
        if due["save"]:  # a run's evaluation has saved this step already, a population's has not
            self._save(state, None)
        for index, event in enumerate(self.events):
            if due.get(f"event {index}"):
                self._act(state, event)
        return self.hosts.any(self._stopped) or stop

    def _occur(self, state: State, when: str) -> None:
        for event in self.events:
            if event.when == when:
                self._act(state, event)

    def _act(self, state: State, event: Event) -> None:
        def log(values: Mapping[str, float]) -> None:
            if known := sorted(set(values) & set(ROW_FIELDS)):
                raise UserError(f"an event logs {', '.join(known)}: these names are taken, give others")
            self.log("event", {name: float(value) for name, value in values.items()})

        def predict(inputs: Any) -> Any:
            weights = self.evaluator.weights(state)
            if not isinstance(weights, Weights):
                raise UserError("an event of a population cannot predict: its members have no one model")
            return Run(self.experiment, state, {}, self.work.rows, {}, weights).predict(inputs)

        def of_split(split: str) -> dict[str, float]:
            word("the split of Moment.evaluate", split, tuple(self.experiment.data.splits))
            return self.evaluator.evaluate(state, split)

        actions: dict[str, Callable[..., Any]] = {
            "log": log, "predict": predict, "evaluate": of_split, "save": partial(self._save, state, None),
            "stop": partial(setattr, self, "_stopped", True),
        }  # fmt: skip
        moment = Moment(self.step, self.step / self.steps_per_epoch, state, self.work.rows, actions)
        stop = bool(act(event, moment))  # which may set it itself
        self._stopped |= stop

    def _validate(self, state: State) -> None:
        validation = self.evaluator.evaluate(state, self.watched)
        self.log("validation", validation)
        self.display.evaluated(self.step, validation)
        self._save(state, validation)

    def _owes_evaluation(self) -> bool:
        """Say whether the run was told to end between a step and its evaluation."""
        if "eval" not in self.rhythms or self.rhythms["eval"].seconds is not None:
            return False
        due = self._is_due("eval") or self.step == self.experiment.total_steps
        return due and not any(row["step"] == self.step and row["split"] == "validation" for row in self.work.rows)

    def _says_stop(self) -> bool:
        stopping = self.experiment.early_stopping
        if stopping is None:
            return False
        return stopping.says_stop(self.work.rows, self.experiment.objective.lower_is_better(stopping.metric))

    def _save(self, state: State, validation: dict[str, float] | None) -> None:
        self.hosts.mark(self.step, "save")
        seconds = self.timing.seconds | {"total": self.timing.total}
        self.timing.measure("checkpoint", self.work.save, state, seconds, validation)

    def _save_at_end(self, state: State) -> str:
        self._save(state, None)
        self.timing.measure("checkpoint", self.work.wait)
        return self.work.saved_as()


def _median(losses: Any) -> float:
    """Return the loss, or the median of those members that have not failed."""
    finite = np.ravel(losses)[np.isfinite(np.ravel(losses))]
    return float(np.median(finite)) if finite.size else float("nan")
