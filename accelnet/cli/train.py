"""The verb `train`."""

from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import ClusterOptions, DeviceOptions
from accelnet.cli.output import Output, show_metrics
from accelnet.cli.script import Config, Script
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
    from accelnet.training.fit import fit
    from accelnet.training.result import result_line

    experiment = script.experiment(config)
    run = fit(
        experiment,
        workdir=options.workdir,
        resume=options.resume,
        allow_change=options.allow_change,
        progress=not output.quiet,
        mesh=devices.mesh,
        strategy=devices.strategy,
        hang_timeout=processes.hang_timeout,
    )
    timing = run.result["timing"]
    show_metrics(run.metrics)
    show(
        f"{run.step} steps in {timing['total_seconds']:.1f} s, {timing['examples_per_second']:,.0f} examples/s; "
        + (f"kept in {options.workdir}" if options.workdir else "nothing was kept: --workdir names a place")
    )
    used = utilization(experiment, timing["examples_per_second"])
    if used is not None:
        show(used)
    script.call_after_train(run)
    if output.json:
        show(result_line(run.result if used is None else {**run.result, "mfu": used.share}))
