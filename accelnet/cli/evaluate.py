"""The verb `evaluate`."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import ClusterOptions, DeviceOptions
from accelnet.cli.models import add_intervals
from accelnet.cli.output import Output, show_intervals, show_metrics
from accelnet.cli.script import Script
from accelnet.errors import UserError
from accelnet.terminal import StatusLine, show


@dataclass(frozen=True)
class EvaluateOptions:
    """Weights that are evaluated, and the split that is described."""

    workdir: Path
    """Directory of the run, whose settings are used."""
    best: bool = False
    """Evaluate the checkpoint with the best validation metric instead of the newest."""
    split: str | None = None
    """Split that report.html describes. None: test, or validation or train where there is none."""
    slices: str | None = None
    """Labels separated by commas: targets, a column of a table, an array of the data. The metrics are computed for each
    of their values."""


def evaluate(
    script: Script,
    options: EvaluateOptions,
    output: Output,
    devices: DeviceOptions,
    processes: ClusterOptions,
) -> None:
    """Evaluate a run on every split, and describe one split in report.html in the run's directory."""
    import jax

    from accelnet.evaluating.assess import assess
    from accelnet.training.evaluate import evaluate

    known = script.of_run(options.workdir)
    if known is None:
        raise UserError(f"{options.workdir} holds no run: `train --workdir {options.workdir}` makes one")
    script, config = known
    made = script.experiment(config)
    run = evaluate(
        made,
        options.workdir,
        best=options.best,
        mesh=devices.mesh,
        strategy=devices.strategy,
        hang_timeout=processes.hang_timeout,
    )
    show(f"{made.name}, step {run.step}")
    show_metrics(run.metrics)
    usual = next(name for name in ("test", "validation", "train") if made.data.num_examples(name))
    split = usual if options.split is None else options.split
    with contextlib.closing(StatusLine(not output.quiet)) as say:
        found = assess(run, split, slices=() if options.slices is None else options.slices.split(","), say=say)
    if jax.process_index() == 0:
        page = found.write(options.workdir)
        show_intervals(found.values)
        add_intervals(options.workdir, run.step, split, found.values["metrics"])
        show(f"kept in {page.with_name('evaluate.json')} and {page}")
    if output.json:
        result = {"experiment": made.name, "step": run.step, "metrics": run.metrics, "workdir": str(options.workdir)}
        show(json.dumps(result | {"split": split, "intervals": found.values["metrics"]}))
