"""The verb `evaluate`."""

import json
from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import ClusterOptions, DeviceOptions
from accelnet.cli.output import print_metrics
from accelnet.cli.script import Script
from accelnet.errors import UserError


@dataclass(frozen=True)
class EvaluateOptions:
    """Which weights are evaluated."""

    workdir: Path
    """Directory of the run; its own settings are used."""
    best: bool = False
    """Take the checkpoint with the best validation metric, not the newest."""
    json: bool = False
    """Print the result as the last line of standard output, as one JSON object."""


def evaluate(
    script: Script,
    options: EvaluateOptions,
    devices: DeviceOptions,
    processes: ClusterOptions,
) -> None:
    """Evaluate the weights of a run on every split."""
    from accelnet.training.loop import evaluate
    from accelnet.training.workdir import read_config

    stored = read_config(options.workdir)
    if stored is None:
        raise UserError(f"{options.workdir} holds no run: `train --workdir {options.workdir}` makes one")
    made = script.experiment(script.config_from_json(stored))
    step, metrics = evaluate(
        made,
        options.workdir,
        best=options.best,
        mesh=devices.mesh,
        strategy=devices.strategy,
        hang_timeout=processes.hang_timeout,
    )
    print(f"{made.name}, step {step}")
    print_metrics(metrics)
    if options.json:
        print(json.dumps({"experiment": made.name, "step": step, "metrics": metrics, "workdir": str(options.workdir)}))
