"""The verb `predict`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from accelnet.cli.devices import DeviceOptions
from accelnet.cli.models import load_model
from accelnet.cli.output import Output
from accelnet.cli.script import Script
from accelnet.errors import UserError
from accelnet.terminal import say, show

_MOST_TOLD = 20  # of rows that were skipped


@dataclass(frozen=True)
class ResultOptions:
    """What is predicted, and where predictions are written."""

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """File of rows (CSV and other tables, .npy, .npz), pictures, or folders of these."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("predictions.csv")
    """File for the predictions: .csv, .parquet or .npz."""
    probabilities: bool = False
    """Write the probabilities of all classes."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and say which."""
    batch_size: int = 256
    """Rows that are computed at once."""


@dataclass(frozen=True)
class PredictOptions(ResultOptions):
    """What is predicted, by which weights, and where predictions are written."""

    workdir: Path = tyro.MISSING
    """Directory of the run."""
    best: bool = False
    """Take the checkpoint with the best validation metric instead of the newest."""


def predict(
    script: Script,
    options: PredictOptions,
    output: Output,
    devices: DeviceOptions,
) -> None:
    """Predict from new inputs by the weights of a run."""
    from accelnet.artifact.prediction import check_format

    check_format(options.out)
    write_predictions(load_model(script, options.workdir, options.best, devices), options, output)


def write_predictions(model: Any, options: ResultOptions, output: Output) -> None:
    """Predict, write the predictions, and say how many there are.

    Args:
        model: The `Model`.
        options: What is predicted, and where to.
        output: Form of the answer.

    Raises:
        UserError: if inputs cannot be read, or the predictions cannot be written.
    """
    if not options.inputs:
        raise UserError("there are no inputs: name a file of rows, pictures, or a folder of these")
    from accelnet.artifact.prediction import write_predictions as write

    count, skipped = 0, dict[Any, str]()

    def counted() -> Iterator[Any]:
        nonlocal count
        for part in model.predictions(
            list(options.inputs), batch_size=options.batch_size, skip_bad=options.skip_bad, progress=not output.quiet
        ):
            count += len(part)
            skipped.update(part.skipped)
            yield part

    write(counted(), options.out, probabilities=options.probabilities)
    for reason in list(skipped.values())[:_MOST_TOLD]:
        say(f"skipped: {reason}")
    if (more := len(skipped) - _MOST_TOLD) > 0:
        say(f"skipped: {more:,} more")
    left_out = f", {len(skipped):,} row{'s' * (len(skipped) != 1)} skipped" if skipped else ""
    show(f"{count:,} predictions of {model.schema['kind']} in {options.out}{left_out}")
    if output.json:
        told = {str(name): reason for name, reason in skipped.items()}
        values = {"predictions": count, "kind": model.schema["kind"], "out": str(options.out), "skipped": told}
        show(json.dumps(values))
