"""The loop: chunks of steps, and what happens on the host between them."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from accelnet.data.feed import AbstractFeed
from accelnet.errors import DivergenceError, PreemptedError, UserError
from accelnet.experiment import Experiment
from accelnet.optim import hyperparams, with_hyperparams
from accelnet.parallel.layout import Strategy
from accelnet.training.cache import enable_compilation_cache
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.events import Event, Every, Moment
from accelnet.training.hosts import Hosts, together
from accelnet.training.program import Program, Programs, prepare
from accelnet.training.progress import Progress, make_progress
from accelnet.training.result import Timing, make_result
from accelnet.training.run import Run
from accelnet.training.state import TrainState
from accelnet.training.workdir import DiskWorkdir, Restored, Workdir

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
        events: the user's own, after logging, evaluation and saving.
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

    Source: original.
    """
    timing = Timing()
    enable_compilation_cache()
    work, display, feed = Workdir(), None, None

    def finish() -> None:
        work.wait()

    with together(workdir, hang_timeout, finish) as hosts:
        try:
            feed, programs = prepare(experiment, mesh, strategy)
            hosts.check(experiment.description() | {"mesh": str(mesh), "strategy": strategy}, workdir)
            work = _open_workdir(experiment, workdir, hosts, resume=resume, allow_change=allow_change)
            hosts.mark(0, "compile")
            restored = work.open(programs.abstract_state)
            if restored is None:
                state = timing.measure("compile", programs.init, np.uint32(experiment.seed))
            else:
                state = _with_new_hyperparams(restored, programs, experiment)
                timing = Timing({name: restored.seconds[name] for name in timing.seconds}, restored.seconds["total"])
            display = make_progress(experiment.name, experiment.total_steps, show=progress and hosts.is_first)
            loop = _Loop(experiment, feed, programs, work, hosts, display, timing, events)
            state = loop.train(state)
            metrics = {split: loop.evaluate(state, split) for split in ("train", "validation", "test")}
            loop.log_test(state, metrics["test"])
            timing.measure("checkpoint", work.wait)
            compiles = {"train": programs.train.compiles, "eval": programs.evaluate.compiles}
            result = make_result(experiment, state, metrics, timing, compiles, work.path)
            run = Run(experiment, state, metrics, work.rows, result)
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
    mesh: str | Mesh | None = None,
    strategy: Strategy = "jit",
    hang_timeout: float = HANG_SECONDS,
) -> Run:
    """Evaluate the weights of a run that is in a work directory.

    Args:
        experiment: that was trained there.
        workdir: of the run.
        best: take the checkpoint with the best validation metric, not the newest.
        mesh: as of `fit`; it need not be that of the training.
        strategy: as of `fit`.
        hang_timeout: as of `fit`.

    Returns:
        The `Run` as it was at the checkpoint, with the metrics of every split. Its result is empty.

    Raises:
        UserError: if there is no checkpoint, or it does not fit the experiment.
    """
    enable_compilation_cache()
    with together(None, hang_timeout) as hosts:
        feed, programs = prepare(experiment, mesh, strategy)
        checkpoints = Checkpoints(workdir, hosts=hosts, best_metric=experiment.best_metric, note=_say, read_only=True)
        try:
            hosts.mark(0, "compile")
            found = checkpoints.restore(programs.abstract_state, checkpoints.best_step() if best else None)
            if found is None:
                raise UserError(f"{workdir} holds no checkpoint yet: train in it first")
            state, record = found
            display = make_progress(experiment.name, 1, show=False)
            loop = _Loop(experiment, feed, programs, Workdir(), hosts, display, Timing(), ())
            metrics = {split: loop.evaluate(state, split) for split in experiment.data.splits}
            return Run(experiment, state, metrics, list(record["rows"]), {})
        finally:
            checkpoints.close()
            feed.close()


def _open_workdir(
    experiment: Experiment, path: str | Path | None, hosts: Hosts, *, resume: bool, allow_change: bool
) -> Workdir:
    if path is None:
        if resume:
            raise UserError("resume=True needs a workdir, the directory of the run to go on with")
        return Workdir()
    return DiskWorkdir(path, experiment, hosts, resume=resume, allow_change=allow_change, note=_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _with_new_hyperparams(restored: Restored, programs: Programs, experiment: Experiment) -> TrainState:
    """Let a changed learning rate (or decay, or momentum) count: the old one is in the optimizer's state."""
    if not set(restored.changed) - {"steps", "epochs"}:
        return restored.state
    fresh = hyperparams(programs.init(np.uint32(experiment.seed)).opt_state)
    return restored.state.replace(opt_state=with_hyperparams(restored.state.opt_state, **fresh))


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
        events: Sequence[Event],
    ) -> None:
        self.experiment = experiment
        self.feed = feed
        self.programs = programs
        self.work = work
        self.hosts = hosts
        self.display = display
        self.timing = timing
        self.events = events
        self.steps_per_epoch = experiment.order.steps_per_epoch
        self.rhythms = _rhythms(experiment, events)
        self.step = 0
        # Seconds of the run on the first process: what happens by the clock must happen on all at the same step.
        (self.seconds,), _ = hosts.agree(timing.total)
        self.last_seconds = dict.fromkeys(self.rhythms, self.seconds)

    def train(self, state: TrainState) -> TrainState:
        """Run chunks until the last step, or until an event says stop."""
        self.step = step = int(state.step)
        total, seconds_per_step = self.experiment.total_steps, None
        if self._owes_evaluation(step):
            self._validate(state)
        stop = self._says_stop()
        if stop or step == total:
            return state
        self._compile(self.programs.train)
        length = self._chunk_length(step, None)
        operand = self.timing.measure("input", self.feed.train_operand, step, length)
        while step < total and not stop:
            self.hosts.mark(step, "train")
            start = time.perf_counter()
            reset = np.bool_(self.work.is_logged(step))
            state, report = self.programs.train(state, operand, np.int32(length), reset)
            # Not waited for yet: what the next chunk needs is read while the device computes this one.
            done, step = length, step + length
            length = self._chunk_length(step, seconds_per_step)
            read_seconds, operand = self._read(step, length)
            hidden = not report["loss"].is_ready()
            report = jax.device_get(report)
            seconds = time.perf_counter() - start - (0.0 if hidden else read_seconds)
            self.timing.seconds["train"] += seconds
            self.timing.seconds["input"] += 0.0 if hidden else read_seconds
            self._check(state, report["failure"])
            self.step = step
            (seconds_per_step, self.seconds), told = self.hosts.agree(seconds / done, self.timing.total)
            rate = self.experiment.order.batch_size / seconds_per_step
            self.display.update(step, float(report["loss"]), rate)
            stop = self._happen(state, report, rate, told)
        self._save(state, None)
        return state

    def _read(self, step: int, length: int) -> tuple[float, Any]:
        start = time.perf_counter()
        operand = self.feed.train_operand(step, length) if length else None
        return time.perf_counter() - start, operand

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """Return the metrics of a split, exact over every example; empty if there is no such split."""
        rows = self.experiment.data.splits.get(split, range(0))
        if not len(rows):
            return {}
        program, values = self.programs.evaluate, {}
        metrics = jax.device_get(self.experiment.objective.empty())
        num_batches = -(-len(rows) // self.feed.eval_batch_size)
        most = min(self.feed.max_steps or num_batches, _EVAL_BATCHES)
        self._compile(program)
        for first in range(0, num_batches, most):
            length = min(most, num_batches - first)
            self.hosts.mark(self.step, "evaluate")
            if first and self.hosts.agree()[1]:
                self._end(state)
            operand = self.timing.measure("input", self.feed.eval_operand, rows, first, length)
            numbers = [np.int32(n) for n in (first, length, rows.start, rows.stop)]
            # Not waited for: the next operand is read while the device computes.
            weights = state.params, state.opt_state, state.model_state
            metrics, values = self.timing.measure("eval", program, *weights, metrics, operand, *numbers)
        return {name: float(value) for name, value in self.timing.measure("eval", jax.device_get, values).items()}

    def log_test(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Record the metrics of the test split, the only time it is looked at."""
        if metrics:
            self.work.log(self._row() | {"split": "test"} | metrics)

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
            extra = {"learning_rate": float(report["learning_rate"]), "examples_per_second": rate}
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
                moment = Moment(self.step, self.step / self.steps_per_epoch, state, self.work.rows)
                stop = self.hosts.any(bool(event.action(moment))) or stop
        return stop

    def _validate(self, state: TrainState) -> None:
        validation = self.evaluate(state, "validation")
        self.work.log(self._row() | {"split": "validation"} | validation)
        self._save(state, validation)

    def _owes_evaluation(self, step: int) -> bool:
        """Say whether the run was told to end between a step and its evaluation."""
        if step == 0 or "eval" not in self.rhythms or self.rhythms["eval"].seconds is not None:
            return False
        due = self._is_due("eval", step) or step == self.experiment.total_steps
        return due and not any(row["step"] == step and row["split"] == "validation" for row in self.work.rows)

    def _end(self, state: TrainState) -> NoReturn:
        self._save(state, None)
        self.timing.measure("checkpoint", self.work.wait)
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
        return stopping is not None and stopping.says_stop(self.work.rows)

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
    return rhythms | {f"event {index}": event.every for index, event in enumerate(events)}
