"""`fit` and `evaluate`: train an experiment, or evaluate the weights of a run."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from accelnet import runtime
from accelnet.arguments import flags, instance, names, number, path, sequence, word
from accelnet.data.feed import AbstractFeed
from accelnet.errors import DivergenceError, UserError
from accelnet.experiment import Experiment, check_experiment
from accelnet.models.precision import precision_note
from accelnet.parallel.layout import Strategy
from accelnet.parallel.memory import exhaustion_explained
from accelnet.terminal import say
from accelnet.tracking.tracker import Tracker, Tracking
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.display import display_of, tracking_of
from accelnet.training.events import Event
from accelnet.training.hosts import Hosts, supervised
from accelnet.training.initial import initial_arrays
from accelnet.training.loop import Loop
from accelnet.training.profile import Recorder
from accelnet.training.program import Programs, check_fits, going_on, prepare
from accelnet.training.progress import Progress
from accelnet.training.replay import explained
from accelnet.training.result import make_result
from accelnet.training.rhythm import Pace
from accelnet.training.rhythms import rhythms_of
from accelnet.training.rows import best_step, with_rows
from accelnet.training.run import Run
from accelnet.training.state import TrainState
from accelnet.training.stored import refitted
from accelnet.training.timing import Timing
from accelnet.training.waiting import waited_for_data
from accelnet.training.workdir import DiskWorkdir, Workdir

# Between two signs of life of a process there are a chunk of steps, some batches of evaluation, a save.
HANG_SECONDS = 300.0


def fit(
    experiment: Experiment,
    *,
    workdir: str | Path | None = None,
    resume: bool = False,
    allow_change: bool = False,
    events: Sequence[Event] = (),
    trackers: Sequence[Tracker] = (),
    progress: bool = True,
    profile: bool = False,
    mesh: str | Mesh | None = None,
    strategy: Strategy = "jit",
    hang_timeout: float = HANG_SECONDS,
    pace: Pace = Pace(),  # noqa: B008, it is frozen
) -> Run:
    """Train an experiment to its end.

    Args:
        experiment: What is trained.
        workdir: Directory of the run's configuration, checkpoints, metrics, curves and result. None: nowhere.
        resume: Go on where the run in `workdir` stopped; from the start if there is nothing yet.
        allow_change: Resume although the configuration changed; the new one counts from here on.
        events: Events beside those of the experiment.
        trackers: Tools that are told what is recorded, such as `an.tracking.WandBTracker()`.
        progress: Show a progress display on standard error.
        profile: Trace ten steps after the first ones into `workdir`/profile, and say which layers they spend their time
            in: `run.profile`. It changes no number.
        mesh: Devices: "data=8", "data=2,fsdp=4", "data=4,model=2", "auto", or a `jax.sharding.Mesh`. None: all
            accelerators, or one CPU device. The losses are those of one device, to float32 rounding.
        strategy: "jit" for one partitioned program, "pmap" for a replicated one.
        hang_timeout: Seconds after which a process of several that is silent, or makes no progress, ends them all.
        pace: How much one call of a compiled program does.

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
    check_experiment(experiment)
    if events := sequence("events", events):
        experiment = experiment.replace(events=(*experiment.events, *events))
    flags(resume=resume, allow_change=allow_change, progress=progress, profile=profile)
    number("hang_timeout", hang_timeout, above=0)
    instance("pace", pace, Pace, "a Pace")
    if workdir is not None:
        workdir = path("workdir", workdir).absolute()  # an event may change the current directory
    with supervised(workdir, hang_timeout) as hosts, exhaustion_explained(), ExitStack() as stack:
        if workdir is not None and resume:
            experiment = refitted(experiment, workdir, hosts)
        feed, programs = prepare(experiment, mesh, strategy)
        stack.callback(feed.close)
        check_fits(programs, feed)
        hosts.check(experiment.description() | {"mesh": str(mesh), "strategy": strategy}, workdir)
        if workdir is not None:
            work = DiskWorkdir(workdir, experiment, hosts, resume=resume, allow_change=allow_change, note=say)
        elif resume or profile:
            why = "resume=True needs a workdir, the directory of the run to go on with"
            raise UserError(why if resume else "profile=True needs a workdir, where the trace is written")
        else:
            work = Workdir(experiment)
        stack.callback(work.close)
        tracking = tracking_of(experiment, sequence("trackers", trackers) if hosts.is_first else (), workdir)
        stack.enter_context(tracking)
        display = display_of(experiment, show=progress and hosts.is_first)
        stack.callback(display.close)
        recorder = Recorder(workdir) if profile and workdir is not None and hosts.is_first else None
        if recorder is not None:
            stack.callback(recorder.close)
        try:
            run = train_to_end(experiment, feed, programs, work, hosts, display, timing, pace, tracking, recorder)
        except DivergenceError as error:
            raise explained(error, experiment, feed, programs, work, display.note) from error
        tracking.files(workdir)
        return run


def train_to_end(
    experiment: Experiment,
    feed: AbstractFeed,
    programs: Programs,
    work: Workdir,
    hosts: Hosts,
    display: Progress,
    timing: Timing,
    pace: Pace = Pace(),  # noqa: B008, it is frozen
    tracking: Tracking | None = None,
    recorder: Recorder | None = None,
) -> Run:
    """Train an experiment to its end with programs that are there, and evaluate it; go on from what `work` holds.

    Args:
        experiment: What is trained.
        feed: How batches reach the programs.
        programs: Programs of the experiment, or of another of the same shapes.
        work: Where rows and checkpoints go.
        hosts: Processes of the run.
        display: Where progress is shown.
        timing: Where the time went so far.
        pace: How much one call does.
        tracking: What else is told what is recorded.
        recorder: What traces some steps, if any.
    """
    tracking = tracking or Tracking()
    hosts.finishes.append(work.settle)
    hosts.mark(0, "compile")
    restored = work.open(programs.abstract_state)
    if restored is None:
        start = programs.starting_from(initial_arrays(experiment, programs.abstract_state))
        timing.measure("compile", programs.begin_compiling, experiment, start)
        state = timing.measure("compile", start, np.uint32(experiment.seed))
    else:
        timing.measure("compile", programs.begin_compiling, experiment, None, int(restored.state.step))
        state = going_on(restored.state, restored.changed, programs, experiment)
    timing.go_on({} if restored is None else restored.seconds, work.lost_seconds)
    if experiment.order.whole_batches:
        left = experiment.order.num_examples % experiment.order.batch_size
        display.note(
            f"the loss is one number for a batch: the last {left} examples of each epoch, which fill no batch, are "
            "left out (other ones in each epoch)"
        )
    if note := precision_note(experiment.precision, programs.abstract_state.params):
        display.note(note)
    for row in work.rows:  # of the run that goes on
        tracking.log(row)
        if row["split"] == "validation":
            display.evaluated(row["step"], row)
    rhythms = rhythms_of(experiment)
    if recorder is not None:
        programs, rhythms = recorder.attached(programs, rhythms, int(state.step), experiment.total_steps)
    loop = Loop(
        experiment, feed, programs, work, hosts, display, timing,
        rhythms=rhythms, events=experiment.events, pace=pace, tracking=tracking,
    )  # fmt: skip
    state = loop.train(state)
    metrics = _evaluate_at_end(loop, state)
    for split, values in metrics.items():
        if values and split not in ("train", "validation"):  # those that are evaluated only here
            loop.log(split, values)
    timing.measure("checkpoint", work.wait)
    spent = {f"{name}_seconds": timing.seconds[name] for name in ("input", "train")}
    if line := waited_for_data(experiment.data, **spent):
        display.note(line)
    result = make_result(experiment, state, metrics, timing, programs.compiles, work.path)
    run = Run(experiment, state, metrics, work.rows, result, loop.weights(state), _find_best(loop))
    work.finish(run.result)
    return run


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
        experiment: Experiment that was trained there.
        workdir: Directory of the run.
        best: Take the checkpoint with the best validation metric, not the newest.
        splits: Splits to evaluate. None: all; an empty list loads the weights alone.
        mesh: As of `fit`; it need not be that of the training.
        strategy: As of `fit`.
        hang_timeout: As of `fit`.

    Returns:
        The `Run` as it was at the checkpoint. Its result is empty.

    Raises:
        UserError: if there is no checkpoint, or it does not fit the experiment.
    """
    runtime.prepare()
    check_experiment(experiment)
    flags(best=best)
    number("hang_timeout", hang_timeout, above=0)
    workdir = path("workdir", workdir)
    if splits is not None:
        splits = [
            word("a split to evaluate", split, tuple(experiment.data.splits)) for split in names("splits", splits)
        ]
    with supervised(None, hang_timeout) as hosts, exhaustion_explained(), ExitStack() as stack:
        experiment = refitted(experiment, workdir, hosts)
        feed, programs = prepare(experiment, mesh, strategy)
        stack.callback(feed.close)
        check_fits(programs, feed)
        checkpoints = Checkpoints(workdir, hosts=hosts, complete=partial(with_rows, workdir, say))
        hosts.mark(0, "compile")
        step = best_step(checkpoints, experiment.best_metric, experiment.best_is_lower) if best else None
        found = checkpoints.restore(programs.abstract_state, step)
        if found is None:
            raise UserError(f"{workdir} holds no checkpoint yet: train in it first")
        state, record = found
        loop = Loop(experiment, feed, programs, Workdir(), hosts, Progress(), Timing(), rhythms={})
        wanted = experiment.data.splits if splits is None else splits
        metrics = {split: loop.evaluate(state, split) for split in wanted}
        return Run(experiment, state, metrics, list(record["rows"]), {}, loop.weights(state))


def _evaluate_at_end(loop: Loop, state: TrainState) -> dict[str, dict[str, Any]]:
    """Return the metrics of the splits that the experiment asks for, by split; empty ones for the others."""
    every = dict.fromkeys(("train", "validation", "test", *loop.experiment.data.splits))
    wanted = loop.experiment.final_splits
    return {split: loop.evaluate(state, split) if split in wanted else {} for split in every}


def _find_best(loop: Loop) -> Callable[[], Run] | None:
    """Return the function that gives the run as it was at the best evaluation; None where that was not kept."""
    experiment, work = loop.experiment, loop.work
    if not work.keeps_best:
        return None
    if work.path is not None:
        return partial(evaluate, experiment, work.path, best=True, splits=experiment.final_splits)

    def best() -> Run:
        state = work.best(loop.programs.abstract_state)
        return Run(experiment, state, _evaluate_at_end(loop, state), work.rows, {}, loop.weights(state))

    return best
