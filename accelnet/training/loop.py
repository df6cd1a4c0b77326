"""The loop: chunks of steps, and what happens on the host between them."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from accelnet import runtime
from accelnet.arguments import number, path, word
from accelnet.data.feed import AbstractFeed
from accelnet.errors import DivergenceError, PreemptedError, UserError
from accelnet.experiment import Experiment
from accelnet.optim import hyperparams, with_hyperparams
from accelnet.parallel.layout import Strategy
from accelnet.terminal import say
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.compiled import Program
from accelnet.training.evaluation import Weights, num_statistics_batches
from accelnet.training.events import Event, Every, Moment, act, rank
from accelnet.training.hosts import Hosts, together
from accelnet.training.initial import initial_arrays
from accelnet.training.program import Programs, prepare
from accelnet.training.progress import Progress, make_progress
from accelnet.training.record import ROW_FIELDS, plain_value
from accelnet.training.result import Timing, make_result
from accelnet.training.run import Run
from accelnet.training.state import TrainState
from accelnet.training.workdir import DiskWorkdir, Restored, Workdir, read_fitted

# A call costs 0.2 ms of dispatch, and temporary buffers paged in anew: experiments/fashion_cnn.py with --channels 48 96
# took about 165 ms a step in chunks of 0.5 s and 108 in chunks of 2 s. Much longer, and the display looks dead.
_CHUNK_SECONDS = 2.0
_LOGS_PER_RUN = 100
_EVALUATIONS_PER_RUN = 50
_SAVE_SECONDS = 300.0
# Between two signs of life of a process there are a chunk of steps, some batches of evaluation, a save.
HANG_SECONDS = 300.0
# Between two calls the processes learn whether one was told to end. A number, not a time: where evaluation is cut
# changes the rounding of its sums.
_EVAL_BATCHES = 64


def fit(
    experiment: Experiment,
    *,
    workdir: str | Path | None = None,
    resume: bool = False,
    allow_change: bool = False,
    events: Sequence[Event] = (),
    progress: bool = True,
    mesh: str | Mesh | None = None,
    strategy: Strategy = "jit",
    hang_timeout: float = HANG_SECONDS,
) -> Run:
    """Train an experiment to its end.

    Args:
        experiment: what is trained.
        workdir: where the run keeps its configuration, checkpoints, metrics, curves and result. None: nowhere.
        resume: go on where the run in `workdir` stopped; from the start if there is nothing yet.
        allow_change: resume although the configuration changed; the new one counts from here on.
        events: the user's own, beside those of the experiment.
        progress: show a progress display on standard error.
        mesh: the devices: "data=8", "data=2,fsdp=4", "data=4,model=2", "auto", or a `jax.sharding.Mesh`. None: all
            accelerators, or one CPU device. The losses are those of one device, to float32 rounding.
        strategy: "jit" for one partitioned program, "pmap" for a replicated one.
        hang_timeout: seconds after which a process of several that is silent, or makes no progress, ends them all.

    Returns:
        The finished `Run`.

    Raises:
        UserError: for a mistake in the configuration, the work directory or its disk.
        DivergenceError: if the loss became NaN or infinite.
        PreemptedError: after SIGTERM to any process, when the state is saved.

    Example:
        >>> import numpy as np, accelnet as an
        >>> data = an.data.from_arrays(np.eye(20, 2, dtype=np.float32), np.arange(20) % 2, num_classes=2)
        >>> run = fit(
        ...     Experiment(
        ...         data=data,
        ...         model=lambda rngs: an.models.MLP(2, (4,), 2, rngs=rngs),
        ...         batch_size=4,
        ...         steps=3,
        ...         optimizer=an.optim.adam(1e-2),
        ...         objective=an.objectives.softmax_cross_entropy(),
        ...     ),
        ...     progress=False,
        ... )
        >>> run.step, sorted(run.metrics)
        (3, ['test', 'train', 'validation'])

    """
    timing = Timing()
    runtime.prepare()
    if events:
        experiment = experiment.replace(events=(*experiment.events, *events))
    number("hang_timeout", hang_timeout, above=0)
    if workdir is not None:
        workdir = path("workdir", workdir).absolute()  # an event may change the current directory
    work, display, feed = Workdir(), None, None

    def finish() -> None:
        work.wait()

    with together(workdir, hang_timeout, finish) as hosts:
        try:
            if workdir is not None and resume:
                experiment = _refitted(experiment, hosts.on_first(lambda: read_fitted(workdir)))
            feed, programs = prepare(experiment, mesh, strategy)
            hosts.check(experiment.description() | {"mesh": str(mesh), "strategy": strategy}, workdir)
            work = _open_workdir(experiment, workdir, hosts, resume=resume, allow_change=allow_change)
            hosts.mark(0, "compile")
            restored = work.open(programs.abstract_state)
            if restored is None:
                start = programs.starting_from(initial_arrays(experiment, programs.abstract_state))
                state = timing.measure("compile", start, np.uint32(experiment.seed))
            else:
                state = _changed(restored, programs, experiment)
                timing = Timing({name: restored.seconds[name] for name in timing.seconds}, restored.seconds["total"])
            display = make_progress(experiment.name, experiment.total_steps, show=progress and hosts.is_first)
            if experiment.order.whole_batches:
                display.note(_dropped(experiment))
            loop = _Loop(experiment, feed, programs, work, hosts, display, timing)
            state = loop.train(state)
            metrics = loop.evaluate_at_end(state)
            loop.log_final(metrics)
            timing.measure("checkpoint", work.wait)
            result = make_result(experiment, state, metrics, timing, programs.compiles, work.path)
            run = Run(experiment, state, metrics, work.rows, result, loop.weights(state), loop.find_best())
            work.finish(run.result)
            return run
        finally:
            if display is not None:
                display.close()
            work.close()
            if feed is not None:
                feed.close()


def evaluate(
    experiment: Experiment,
    workdir: str | Path,
    *,
    best: bool = False,
    splits: Sequence[str] | None = None,
    mesh: str | Mesh | None = None,
    strategy: Strategy = "jit",
    hang_timeout: float = HANG_SECONDS,
) -> Run:
    """Evaluate the weights of a run that is in a work directory.

    What was fitted to the training rows there, such as means and deviations, is applied to the data of `experiment`.

    Args:
        experiment: that was trained there.
        workdir: of the run.
        best: take the checkpoint with the best validation metric, not the newest.
        splits: to evaluate. None: all; an empty list loads the weights alone.
        mesh: as of `fit`; it need not be that of the training.
        strategy: as of `fit`.
        hang_timeout: as of `fit`.

    Returns:
        The `Run` as it was at the checkpoint. Its result is empty.

    Raises:
        UserError: if there is no checkpoint, or it does not fit the experiment.
    """
    runtime.prepare()
    with together(None, hang_timeout) as hosts:
        checkpoints = Checkpoints(
            workdir, hosts=hosts, best_metric=experiment.best_metric, lower_is_better=experiment.best_is_lower,
            note=say, read_only=True,
        )  # fmt: skip
        feed = None
        try:
            experiment = _refitted(experiment, hosts.on_first(lambda: read_fitted(workdir)))
            feed, programs = prepare(experiment, mesh, strategy)
            hosts.mark(0, "compile")
            found = checkpoints.restore(programs.abstract_state, checkpoints.best_step() if best else None)
            if found is None:
                raise UserError(f"{workdir} holds no checkpoint yet: train in it first")
            state, record = found
            display = make_progress(experiment.name, 1, show=False)
            loop = _Loop(experiment, feed, programs, Workdir(), hosts, display, Timing())
            wanted = experiment.data.splits if splits is None else splits
            metrics = {split: loop.evaluate(state, split) for split in wanted}
            return Run(experiment, state, metrics, list(record["rows"]), {}, loop.weights(state))
        finally:
            checkpoints.close()
            if feed is not None:
                feed.close()


def _refitted(experiment: Experiment, fitted: Any) -> Experiment:
    """Return the experiment with what an earlier run fitted to its training rows."""
    if not fitted or fitted == plain_value(experiment.data.fitted):
        return experiment
    return experiment.replace(data=experiment.data.refitted(fitted))


def _dropped(experiment: Experiment) -> str:
    left = experiment.order.num_examples % experiment.order.batch_size
    return (
        f"the loss is one number for a batch: the last {left} examples of each epoch, which fill no batch, are left "
        "out (other ones in each epoch)"
    )


def _open_workdir(
    experiment: Experiment, path: str | Path | None, hosts: Hosts, *, resume: bool, allow_change: bool
) -> Workdir:
    if path is None:
        if resume:
            raise UserError("resume=True needs a workdir, the directory of the run to go on with")
        return Workdir()
    return DiskWorkdir(path, experiment, hosts, resume=resume, allow_change=allow_change, note=say)


def _changed(restored: Restored, programs: Programs, experiment: Experiment) -> TrainState:
    """Let a changed seed and learning rate (or decay, or momentum) count: the old ones are in the state."""
    if not set(restored.changed) - {"steps", "epochs"}:
        return restored.state
    fresh = programs.init(np.uint32(experiment.seed))
    opt_state = with_hyperparams(restored.state.opt_state, **hyperparams(fresh.opt_state))
    return restored.state.replace(opt_state=opt_state, seed=fresh.seed)


class _Loop:
    """One run's loop; the state goes through it, all else stays."""

    def __init__(
        self,
        experiment: Experiment,
        feed: AbstractFeed,
        programs: Programs,
        work: Workdir,
        hosts: Hosts,
        display: Progress,
        timing: Timing,
    ) -> None:
        self.experiment = experiment
        self.feed = feed
        self.programs = programs
        self.work = work
        self.hosts = hosts
        self.display = display
        self.timing = timing
        self.events = [event for event in experiment.events if isinstance(event.when, Every)]
        self.steps_per_epoch = experiment.order.steps_per_epoch
        self.rhythms = _rhythms(experiment, self.events)
        self.step = 0
        self._stopped = False
        self._weights: tuple[TrainState, Weights] | None = None
        self._best: tuple[float, Any] | None = None
        # Seconds of the run on the first process: what happens by the clock must happen on all at the same step.
        (self.seconds,), _ = hosts.agree(timing.total)
        self.last_seconds = dict.fromkeys(self.rhythms, self.seconds)

    def train(self, state: TrainState) -> TrainState:
        """Run chunks until the last step, or until an event says stop."""
        self.step = step = int(state.step)
        seed = int(state.seed)
        total, seconds_per_step = self.experiment.total_steps, None
        self._occur(state, "start")
        if self._owes_evaluation(step):
            self._validate(state)
        stop = self._stopped or self._says_stop()
        if stop or step == total:
            return self._ended(state)
        self._compile(self.programs.train)
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
            report = jax.device_get(report)
            seconds = time.perf_counter() - start - (0.0 if hidden else read_seconds)
            self.timing.seconds["train"] += seconds
            self.timing.seconds["input"] += 0.0 if hidden else read_seconds
            self._check(state, report["failure"])
            self.step = step
            self.hosts.preemption.defers_interrupts = True  # from here on there is something to save
            (seconds_per_step, self.seconds), told = self.hosts.agree(seconds / done, self.timing.total)
            rate = self.experiment.order.batch_size / seconds_per_step
            self.display.update(step, float(report["loss"]), rate)
            stop = self._happen(state, report, rate, told)
        self._save(state, None)
        return self._ended(state)

    def _ended(self, state: TrainState) -> TrainState:
        """Let what happens at the end happen, and return the state that the run ends with."""
        stopping = self.experiment.early_stopping
        if stopping is not None and stopping.restore_best:
            best = self._restored_best()
            state = state if best is None else best
            self.step = int(state.step)
        self._occur(state, "end")
        return state

    def _read(self, step: int, length: int, seed: int) -> tuple[float, Any]:
        start = time.perf_counter()
        operand = self.feed.train_operand(step, length, seed) if length else None
        return time.perf_counter() - start, operand

    def weights(self, state: TrainState) -> Weights:
        """Return what a state is evaluated with; computed once for a state."""
        if self._weights is not None and self._weights[0] is state:
            return self._weights[1]
        if self.programs.weights is None:
            return Weights(state.params, state.frozen, state.model_state, state.step)
        count = num_statistics_batches(self.experiment, self.feed)
        self._compile(self.programs.weights)
        # A feed of its own: the one that trains reads ahead.
        feed = self.feed.with_eval_batch_size(self.feed.eval_batch_size)
        operand = self.timing.measure("input", feed.train_operand, 0, count, int(state.seed))
        weights = self.timing.measure("eval", self.programs.weights, state, operand)
        self._weights = state, weights
        return weights

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """Return the metrics of a split, exact over every example; empty if there is no such split."""
        rows = self.experiment.data.splits.get(split, range(0))
        if not len(rows):
            return {}
        weights, metrics = self.weights(state), jax.device_get(self.experiment.objective.empty())
        size, values = self.feed.eval_batch_size, {}
        # Of a loss that is one number for a batch, padding cannot be taken out: the rest is a batch of its own size.
        rest = len(rows) % size if self.experiment.couples_padding else 0
        full = rows[: len(rows) - rest]
        num_batches = -(-len(full) // size)
        most = min(self.feed.max_steps or _EVAL_BATCHES, _EVAL_BATCHES)
        parts = [
            (self.programs.evaluate, self.feed, full, first, min(most, num_batches - first))
            for first in range(0, num_batches, most)
        ]
        if rest:
            parts.append((*self.programs.evaluate_rest(rest), rows[len(full) :], 0, 1))
        for index, (program, feed, some, first, length) in enumerate(parts):
            self._compile(program)
            self.hosts.mark(self.step, "evaluate")
            if index and self.hosts.agree()[1]:
                self._end(state)
            operand = self.timing.measure("input", feed.eval_operand, some, first, length)
            numbers = [np.int32(n) for n in (first, length, some.start, some.stop)]
            # Not waited for: the next operand is read while the device computes.
            metrics, values = self.timing.measure("eval", program, weights, metrics, operand, *numbers)
        return {name: float(value) for name, value in self.timing.measure("eval", jax.device_get, values).items()}

    def evaluate_at_end(self, state: TrainState) -> dict[str, dict[str, float]]:
        """Return the metrics of the splits that the experiment asks for, by split; empty ones for the others."""
        every = dict.fromkeys(("train", "validation", "test", *self.experiment.data.splits))
        wanted = self.experiment.final_splits
        return {split: self.evaluate(state, split) if split in wanted else {} for split in every}

    def log_final(self, metrics: dict[str, dict[str, float]]) -> None:
        """Record the metrics of the splits that are looked at once, at the end: the test split, and further ones."""
        for split, values in metrics.items():
            if values and split not in ("train", "validation"):
                self.work.log(self._row() | {"split": split} | values)

    def find_best(self) -> Callable[[], Run] | None:
        """Return the function that gives the run as it was at the best evaluation; None where that was not kept."""
        if self._best is None and (self.work.path is None or jax.process_count() > 1):
            return None
        if self.work.path is not None:
            return partial(evaluate, self.experiment, self.work.path, best=True, splits=self.experiment.final_splits)

        def best() -> Run:
            state = self._restored_best()
            assert state is not None
            metrics = self.evaluate_at_end(state)
            return Run(self.experiment, state, metrics, self.work.rows, {}, self.weights(state))

        return best

    def _compile(self, program: Program) -> None:
        if not program.compiles:
            self.display.note(f"compiling {program.name} …")
            self.hosts.mark(self.step, "compile")
            self.timing.measure("compile", lambda: program.compiled)

    def _chunk_length(self, step: int, seconds_per_step: float | None) -> int:
        limits = [self.experiment.total_steps - step]
        limits += [n - step for r in self.rhythms.values() if (n := r.next_step(step, self.steps_per_epoch))]
        # The first chunk is one step, to learn how long a step takes.
        limits.append(max(1, int(_CHUNK_SECONDS / seconds_per_step)) if seconds_per_step else 1)
        if self.feed.max_steps is not None:
            limits.append(self.feed.max_steps)
        return min(limits)

    def _check(self, state: TrainState, failure: Any) -> None:
        if not failure.happened:
            return
        step = int(state.step)
        where = f"at step {step} (epoch {step / self.steps_per_epoch:.2f})"
        if np.isfinite(failure.loss):
            what = f"the update {where} made the global norm of the weights {failure.param_norm:.4g}, after a loss of "
            what += f"{failure.loss:.4g}"
        else:
            what = f"the loss became {failure.loss} {where}; there the global norm of the gradients was "
            what += f"{failure.grad_norm:.4g} and that of the weights {failure.param_norm:.4g}"
        raise DivergenceError(
            f"{what}. {self.work.last_good()}. Lower the learning rate, clip the gradients "
            "(optax.clip_by_global_norm), or look at the data of that step"
        )

    def _row(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.step / self.steps_per_epoch, "seconds": self.seconds}

    def _happen(self, state: TrainState, report: Any, rate: float, told: bool) -> bool:
        """Log, evaluate, save and the user's events, in this order; say whether to stop."""
        at_end = self.step == self.experiment.total_steps
        due = {name: self._is_due(name, self.step) for name in self.rhythms}
        if due["log"] or at_end:
            values = {name: float(value) for name, value in report["metrics"].items()}
            # None where no part of the optimizer's state shows a rate, or several groups have one each.
            extra: dict[str, Any] = {"learning_rate": None, "examples_per_second": rate}
            extra |= {name: float(value) for name, value in report["rates"].items()}
            self.work.log(self._row() | {"split": "train"} | values | extra)
        if told:
            self._end(state)
        stop = False
        if "eval" in due and (due["eval"] or at_end):
            self._validate(state)
            stop = self._says_stop()
        elif due["save"]:
            self._save(state, None)
        for index, event in enumerate(self.events):
            if due[f"event {index}"]:
                self._act(state, event)
        return self.hosts.any(self._stopped) or stop

    def _occur(self, state: TrainState, when: str) -> None:
        for event in self.experiment.events:
            if event.when == when:
                self._act(state, event)

    def _act(self, state: TrainState, event: Event) -> None:
        """Let an event happen."""

        def log(values: Mapping[str, float]) -> None:
            if known := sorted(set(values) & set(ROW_FIELDS)):
                raise UserError(f"an event logs {', '.join(known)}: these names are taken, give others")
            self.work.log(self._row() | {"split": "event"} | {name: float(value) for name, value in values.items()})

        def predict(inputs: Any) -> Any:
            run = Run(self.experiment, state, {}, self.work.rows, {}, self.weights(state))
            return run.predict(inputs)

        def of_split(split: str) -> dict[str, float]:
            word("the split of Moment.evaluate", split, tuple(self.experiment.data.splits))
            return self.evaluate(state, split)

        actions = {
            "log": log, "predict": predict, "evaluate": of_split, "save": partial(self._save, state, None),
            "stop": self._stop,
        }  # fmt: skip
        moment = Moment(self.step, self.step / self.steps_per_epoch, state, self.work.rows, actions)
        if act(event, moment):
            self._stop()

    def _stop(self) -> None:
        self._stopped = True

    def _validate(self, state: TrainState) -> None:
        validation = self.evaluate(state, "validation")
        self.work.log(self._row() | {"split": "validation"} | validation)
        self._save(state, validation)
        self._keep(state, validation)

    def _keep(self, state: TrainState, validation: dict[str, float]) -> None:
        """Keep the best state on the host, where no work directory does."""
        value = rank(validation[self.experiment.best_metric], self.experiment.best_is_lower)
        wanted = self.work.path is None and self.experiment.keep_best and jax.process_count() == 1
        if wanted and (self._best is None or value < self._best[0]):
            # A copy: on a CPU the host's view of an array is the array itself, which the next step writes into.
            self._best = value, jax.tree.map(np.array, jax.device_get(state))

    def _restored_best(self) -> TrainState | None:
        """Return the state of the best evaluation, None where there was none."""
        abstract = self.programs.abstract_state
        if self._best is not None:
            return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), self._best[1], abstract)
        return self.work.best(abstract)

    def _owes_evaluation(self, step: int) -> bool:
        """Say whether the run was told to end between a step and its evaluation."""
        if step == 0 or "eval" not in self.rhythms or self.rhythms["eval"].seconds is not None:
            return False
        due = self._is_due("eval", step) or step == self.experiment.total_steps
        return due and not any(row["step"] == step and row["split"] == "validation" for row in self.work.rows)

    def _end(self, state: TrainState) -> NoReturn:
        self._save(state, None)
        self.timing.measure("checkpoint", self.work.wait)
        if self.hosts.preemption.interrupted:
            raise KeyboardInterrupt(f"interrupted at step {self.step}: {self.work.saved_as()}")
        raise PreemptedError(f"told to end (SIGTERM) at step {self.step}: {self.work.saved_as()}")

    def _is_due(self, name: str, step: int) -> bool:
        rhythm = self.rhythms[name]
        if rhythm.seconds is None:
            return rhythm.next_step(step - 1, self.steps_per_epoch) == step
        if self.seconds - self.last_seconds[name] < rhythm.seconds:
            return False
        self.last_seconds[name] = self.seconds
        return True

    def _says_stop(self) -> bool:
        stopping = self.experiment.early_stopping
        if stopping is None:
            return False
        return stopping.says_stop(self.work.rows, self.experiment.objective.lower_is_better(stopping.metric))

    def _save(self, state: TrainState, validation: dict[str, float] | None) -> None:
        self.hosts.mark(self.step, "save")
        seconds = self.timing.seconds | {"total": self.timing.total}
        self.timing.measure("checkpoint", self.work.save, state, seconds, validation)


def _rhythms(experiment: Experiment, events: Sequence[Event]) -> dict[str, Every]:
    total, per_epoch = experiment.total_steps, experiment.order.steps_per_epoch
    rhythms = {
        "log": experiment.log_every or Every(steps=max(1, total // _LOGS_PER_RUN)),
        "save": experiment.save_every or Every(seconds=_SAVE_SECONDS),
    }
    if experiment.data.num_examples("validation"):
        epochs = -(-total // (per_epoch * _EVALUATIONS_PER_RUN))
        rhythms["eval"] = experiment.eval_every or Every(epochs=max(1, epochs))
    return rhythms | {f"event {index}": event.when for index, event in enumerate(events)}  # type: ignore[dict-item]
