"""Trackers by their names, and `accelnet track`, which tells a tracker about an earlier run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from accelnet.errors import UserError
from accelnet.terminal import show

TrackerName = Literal["wandb", "mlflow", "trackio", "csv"]


@dataclass(frozen=True)
class TrackOptions:
    """Run that is told, and to whom."""

    workdir: tyro.conf.Positional[Path]
    """Work directory of the run."""
    to: tuple[TrackerName, ...]
    """Trackers that are told."""


def track(options: TrackOptions) -> None:
    """Tell trackers about an earlier run, row by row, as if it trained now."""
    from accelnet.choosing.runs import recorded_rows
    from accelnet.tracking.tracker import Tracking
    from accelnet.training.stored import read_stored

    stored = read_stored(options.workdir)
    if stored.description is None:
        raise UserError(f"{options.workdir} holds no run: give the --workdir of one")
    name = str(stored.description["experiment"])
    rows = recorded_rows(options.workdir)
    trackers = make_trackers(options.to, name, options.workdir)
    settings = {**stored.description, **(stored.config or {})}
    with Tracking(trackers, settings, f"{name}-{options.workdir.absolute().name}", options.workdir) as tracking:
        for row in rows:
            tracking.log(row)
        tracking.files(options.workdir)
    show(f"told {len(rows):,} rows of {name} to {', '.join(options.to)}")


def make_trackers(names: Sequence[str], project: str, workdir: Path | None) -> list[Any]:
    """Return trackers by their names.

    Raises:
        UserError: if csv is asked for and there is no work directory.
    """
    from accelnet import tracking

    made: list[Any] = []
    for name in dict.fromkeys(names):
        if name == "csv":
            if workdir is None:
                raise UserError("--track csv writes into --workdir, which was not given")
            made.append(tracking.CsvTracker(workdir / "curves.csv"))
        elif name == "wandb":
            made.append(tracking.WandBTracker(project=project))
        elif name == "mlflow":
            made.append(tracking.MLflowTracker(experiment=project))
        else:
            made.append(tracking.TrackioTracker(project=project))
    return made
