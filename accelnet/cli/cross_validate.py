"""The verb `cross-validate`."""

from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import start_platform
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Config, Script


@dataclass(frozen=True)
class CrossValidateOptions:
    """Folds of the training and validation rows, and where their runs are kept."""

    folds: int = 5
    """Number of folds: each is validated by a model that was trained on the others."""
    stratify: str | None = None
    """Classes of which every fold gets its share: targets, or a column of a table or an array of the data. None: rows
    are drawn at random."""
    groups: str | None = None
    """Column of a table or array of the data whose groups stay whole. None: groups by which the data was split, if
    any."""
    fold_seed: int = 0
    """Seed of the folds."""
    workdir: Path | None = None
    """Directory for cross_validation.json, report.html and, in fold-1, fold-2 and so on, the runs. The same command
    continues there. None keeps nothing."""


def cross_validate(script: Script, config: Config, options: CrossValidateOptions, output: Output) -> None:
    """Train once for each fold of the data, and say how good the experiment is, with an interval."""
    start_platform()
    from accelnet.choosing.cross_validate import cross_validate

    made = script.experiment(config)
    folds = made.data.folds(options.folds, stratify=options.stratify, groups=options.groups, seed=options.fold_seed)
    found = cross_validate(made, folds, workdir=options.workdir, progress=not output.quiet)
    finish(output, found, found.to_dict(), options.workdir, "cross_validation.json", "report.html")
