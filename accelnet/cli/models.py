"""The models in a run's work directory: written when they are asked for, completed when the run is evaluated."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelnet.cli.devices import DeviceOptions
from accelnet.cli.script import Script
from accelnet.errors import UserError
from accelnet.terminal import say


def load_model(script: Script, workdir: Path, best: bool, devices: DeviceOptions) -> Any:
    """Load the model of a run, from its newest or its best checkpoint; where it is not written yet, it is now.

    Args:
        script: The script.
        workdir: Work directory of the run.
        best: Whether to take the checkpoint with the best validation metric.
        devices: Devices of the command.

    Raises:
        UserError: if there is no run, or jax cannot export its model.
    """
    from accelnet.artifact.load import BEST, LAST, load
    from accelnet.training.checkpoint import Checkpoints
    from accelnet.training.evaluate import evaluate
    from accelnet.training.rows import best_step, with_rows

    path, checkpoints = (
        workdir / (BEST if best else LAST),
        Checkpoints(workdir, complete=partial(with_rows, workdir, say)),
    )
    outline, steps = checkpoints.outline(), checkpoints.steps()
    if path.exists():
        found = load(path)
        if outline is None or not steps:
            return found
        newest = best_step(checkpoints, outline["best_metric"], outline["lower_is_better"]) if best else steps[-1]
        if found.metrics["step"] == newest:
            return found
    known = script.of_run(workdir)
    if known is None or not steps:
        raise UserError(f"{workdir} holds no run: `train --workdir {workdir}` makes one")
    script, config = known
    run = evaluate(
        script.experiment(config), workdir, best=best, splits=[], mesh=devices.mesh, strategy=devices.strategy
    )
    return load(run.save(path))


def add_intervals(workdir: Path, step: int, split: str, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the intervals of an evaluation to the models of a work directory that are of its step.

    Args:
        workdir: Work directory of the run.
        step: Updates made of what was evaluated.
        split: Split that was evaluated.
        metrics: "value", "low" and "high" of each metric.
    """
    from accelnet.artifact.load import BEST, LAST, load, with_intervals

    known = {name: [one["low"], one["high"]] for name, one in metrics.items() if one.get("low") is not None}
    for path in (workdir / LAST, workdir / BEST):
        if path.exists() and known and load(path).metrics["step"] == step:
            values = {name: one["value"] for name, one in metrics.items()}
            with_intervals(path, split, values, known)
