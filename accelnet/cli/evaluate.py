"""The verb `evaluate`."""

import json
from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import ClusterOptions, DeviceOptions
from accelnet.cli.output import Output, show_intervals, show_metrics
from accelnet.cli.script import Script
from accelnet.errors import UserError
from accelnet.terminal import show


@dataclass(frozen=True)
class EvaluateOptions:
    """Which weights are evaluated."""

    workdir: Path
    """Directory of the run; its own settings are used."""
    best: bool = False
    """Take the checkpoint with the best validation metric, not the newest."""
    split: str | None = None
    """Which split is looked at closely, for report.html. None: test, or validation or train where there is none."""
    slices: str | None = None
    """Labels, with commas between them, by whose values the metrics are told apart: targets, a column of a table, an
    array of the data."""


def evaluate(
    script: Script,
    options: EvaluateOptions,
    output: Output,
    devices: DeviceOptions,
    processes: ClusterOptions,
) -> None:
    """Evaluate the weights of a run on every split, and one closely: report.html in the run's directory."""
    import jax

    from accelnet.evaluating.assess import assess
    from accelnet.report.progress import Progress
    from accelnet.training.fit import evaluate
    from accelnet.training.stored import read_stored

    stored = read_stored(options.workdir).config
    if stored is None:
        raise UserError(f"{options.workdir} holds no run: `train --workdir {options.workdir}` makes one")
    made = script.experiment(script.config_from_json(stored))
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
    split = options.split or next(name for name in ("test", "validation", "train") if made.data.num_examples(name))
    say = Progress(not output.quiet)
    found = assess(run, split, slices=options.slices.split(",") if options.slices else (), say=say)
    say.close()
    if jax.process_index() == 0:
        page = found.write(options.workdir)
        show_intervals(found.values)
        show(f"kept in {page.with_name('evaluate.json')} and {page}")
    if output.json:
        result = {"experiment": made.name, "step": run.step, "metrics": run.metrics, "workdir": str(options.workdir)}
        show(json.dumps(result | {"split": split, "intervals": found.values["metrics"]}))
