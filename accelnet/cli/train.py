"""The verb `train`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelnet.cli.devices import ClusterOptions, DeviceOptions
from accelnet.cli.output import Output, show_metrics
from accelnet.cli.script import Config, Script
from accelnet.cli.track import TrackerName, make_trackers
from accelnet.errors import UserError
from accelnet.terminal import show


@dataclass(frozen=True)
class TrainOptions:
    """Where a run is kept, and whether it is resumed."""

    workdir: Path | None = None
    """Directory for checkpoints, metrics, curves and result.json; made if needed. None keeps nothing."""
    resume: bool = False
    """Resume the run in --workdir, with its settings; start one if there is none yet."""
    allow_change: bool = False
    """Resume with changed settings."""
    fast_dev_run: bool = False
    """Try everything once: two updates, an evaluation of two batches of each split, a checkpoint and its restoring.
    Nothing is kept."""
    overfit_batches: int | None = None
    """Train on this many batches alone, again and again, without augmentation: can the model learn them?"""
    profile: bool = False
    """Trace ten steps into --workdir/profile, for TensorBoard and Perfetto, and show which layers take most time."""
    histograms: bool = False
    """Write histograms of weights and gradients for TensorBoard into --workdir at every evaluation; each costs about a
    step."""
    examples: bool = False
    """Write eight pictures, with what the model says of them, for TensorBoard into --workdir at every evaluation."""
    track: tuple[TrackerName, ...] = ()
    """Tools that are told what is recorded, as far as they are installed. csv writes curves.csv in --workdir."""


def train(
    script: Script,
    config: Config,
    options: TrainOptions,
    output: Output,
    devices: DeviceOptions,
    processes: ClusterOptions,
) -> None:
    """Train, and evaluate at the end."""
    from accelnet.planning.utilization import utilization
    from accelnet.training.evaluate import evaluate
    from accelnet.training.examples import examples
    from accelnet.training.fit import fit
    from accelnet.training.histograms import histograms
    from accelnet.training.result import result_line
    from accelnet.training.timing import account_line
    from accelnet.training.trial import overfitting, rehearse

    if options.fast_dev_run and (options.workdir, options.resume, options.overfit_batches) != (None, False, None):
        raise UserError("--fast-dev-run keeps nothing: leave out --workdir, --resume and --overfit-batches")
    for name in ("profile", "histograms", "examples"):
        if getattr(options, name) and options.workdir is None:
            raise UserError(f"--{name} writes into --workdir, which was not given")
    experiment = script.experiment(config)
    where: dict[str, Any] = {
        "mesh": devices.mesh, "strategy": devices.strategy, "hang_timeout": processes.hang_timeout
    }  # fmt: skip
    if options.fast_dev_run:
        train = partial(fit, progress=not output.quiet, **where)
        run = rehearse(experiment, lambda short, directory: train(short, workdir=directory), partial(evaluate, **where))
        show_metrics(run.metrics)
        show("two updates, the evaluation, a checkpoint and its restoring went through; the metrics mean nothing")
        return
    if options.overfit_batches is not None:
        experiment = overfitting(experiment, options.overfit_batches)
    asked = ((options.histograms, histograms), (options.examples, examples))
    events = [make(experiment, options.workdir) for wanted, make in asked if wanted and options.workdir]
    run = fit(
        experiment,
        events=events,
        workdir=options.workdir,
        resume=options.resume,
        allow_change=options.allow_change,
        progress=not output.quiet,
        profile=options.profile,
        trackers=make_trackers(options.track, experiment.name, options.workdir),
        **where,
    )
    timing = run.result["timing"]
    show_metrics(run.metrics)
    show(
        f"{run.step} steps, {timing['examples_per_second']:,.0f} examples/s; "
        + (f"kept in {options.workdir}" if options.workdir else "nothing was kept: --workdir names a place")
    )
    show(account_line(timing))
    if options.profile and options.workdir and (options.workdir / "profile").exists():
        show(run.profile)
        show(f"kept in {options.workdir / 'profile'}, for TensorBoard and Perfetto")
    used = utilization(experiment, timing["examples_per_second"])
    if used is not None:
        show(used)
    script.call_after_train(run)
    if output.json:
        show(result_line(run.result if used is None else {**run.result, "mfu": used.share}))
