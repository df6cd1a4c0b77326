"""`fit`: train an experiment to its end."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jax.sharding import Mesh

from accelnet import runtime
from accelnet.arguments import flags, instance, number, path, sequence
from accelnet.errors import DivergenceError, UserError
from accelnet.experiment import Experiment, check_experiment
from accelnet.parallel.layout import Strategy
from accelnet.parallel.memory import exhaustion_explained
from accelnet.terminal import say
from accelnet.tracking.tracker import Tracker
from accelnet.training.display import display_of, tracking_of
from accelnet.training.ends import begin, finish
from accelnet.training.events import Event
from accelnet.training.hosts import HANG_SECONDS, supervised
from accelnet.training.profile import Recorder
from accelnet.training.program import check_fits, prepare
from accelnet.training.replay import explained
from accelnet.training.rhythm import Pace
from accelnet.training.run import Run
from accelnet.training.stored import refitted
from accelnet.training.timing import Timing
from accelnet.training.workdir import DiskWorkdir, Workdir


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
            loop, state = begin(
                experiment, feed, programs, work, hosts, display, timing,
                pace=pace, tracking=tracking, recorder=recorder,
            )  # fmt: skip
            run = finish(loop, loop.train(state))
        except DivergenceError as error:
            raise explained(error, experiment, feed, programs, work, display.note) from error
        tracking.files(workdir)
        return run
