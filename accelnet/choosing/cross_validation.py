"""What comes out of a cross-validation, and the files that keep it: cross_validation.json and report.html."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.choosing.cross_validation_page import cross_validation_page
from accelnet.choosing.statistics import corrected_interval
from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import plain_value, read_json
from accelnet.report.document import embedded
from accelnet.report.numbers import shown
from accelnet.terminal import rendered

_NAME = "cross_validation.json"
_NUMBERS = {str: (float, None)}
_FOLD = {"train_rows": int, "validation_rows": int, "metrics": {str: _NUMBERS}, "seconds": float}


@dataclass(frozen=True)
class CrossValidation:
    """What came out of a cross-validation; k folds.

    Attributes:
        experiment: Name of the experiment.
        folds: What each fold was: "train_rows", "validation_rows", "metrics" of the final weights by split and name,
            and "seconds".
        metrics: By name "mean" over the folds of the validation metrics, "error" (its standard error), and "low" and
            "high", the ends of its 95 % interval, as of `corrected_interval`. NaN where a fold's value is.
        compiles: Number of compilations of each program, of all folds together; of a cross-validation that was gone on
            with, those of the last process.
    """

    experiment: str
    folds: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, float]]
    compiles: Mapping[str, int]

    def values(self, name: str) -> np.ndarray:
        """Return a validation metric of every fold, float64 [k], NaN where it is undefined."""
        return _values(self.folds, name)

    def table(self) -> str:
        """Return the validation metrics as text: a line per fold, their means and the intervals of these."""
        import rich.box
        import rich.table

        table = rich.table.Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for number, name in enumerate(("fold", "train", "validation", *self.metrics)):
            table.add_column(name, justify="right" if number else "left")
        for number, fold in enumerate(self.folds, 1):
            own = fold["metrics"]["validation"]
            sizes = (f"{fold[name]:,}" for name in ("train_rows", "validation_rows"))
            table.add_row(str(number), *sizes, *(shown(own[name]) for name in self.metrics))
        found = self.metrics.values()
        table.add_row("mean", "", "", *(shown(one["mean"]) for one in found))
        table.add_row("standard error", "", "", *(shown(one["error"]) for one in found))
        table.add_row("95 %", "", "", *(f"{shown(one['low'])} to {shown(one['high'])}" for one in found))
        return rendered(table, drop=("train", "validation"))

    def __repr__(self) -> str:
        return f"cross-validation of {self.experiment!r}, {len(self.folds)} folds\n{self.table()}"

    def _repr_html_(self) -> str:
        return embedded(self.page())

    def page(self) -> str:
        """Return the page that report.html is."""
        return cross_validation_page(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        names = ("experiment", "folds", "metrics", "compiles")
        return plain_value({name: getattr(self, name) for name in names})


def make_cross_validation(
    experiment: str, folds: Sequence[Mapping[str, Any]], compiles: Mapping[str, int]
) -> CrossValidation:
    """Put the results of all folds together."""
    train, validation = (np.mean([fold[name] for fold in folds]) for name in ("train_rows", "validation_rows"))
    metrics = {}
    for name in folds[0]["metrics"]["validation"]:
        numbers = corrected_interval(_values(folds, name).tolist(), float(validation / train))
        metrics[name] = dict(zip(("mean", "error", "low", "high"), numbers, strict=True))
    return CrossValidation(experiment, tuple(folds), metrics, dict(compiles))


def _values(folds: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([fold["metrics"]["validation"][name] for fold in folds], np.float64)  # None becomes NaN


class CrossValidationFile:
    """cross_validation.json: which cross-validation it is, the folds that are finished, and at the end the result.

    Args:
        workdir: Directory of the file. None: nothing is kept.
        description: JSON values that identify the cross-validation.
    """

    def __init__(self, workdir: Path | None, description: Mapping[str, Any]) -> None:
        self.path = None if workdir is None else workdir / _NAME
        self.description = json.loads(json.dumps(plain_value(description)))
        self.folds: list[dict[str, Any]] = []
        self.compiles: dict[str, int] = {}

    def read(self) -> None:
        """Read the folds that are finished.

        Raises:
            UserError: if the file cannot be read, or is of another cross-validation.
        """
        if self.path is None:
            return
        shape = {"description": dict, "folds": [_FOLD], "compiles?": {str: int}}
        advice = "remove it, which evaluates the folds anew, or give another directory"
        content = read_json(self.path, "a cross-validation", shape, advice)
        if content is None:
            return
        if content["description"] != self.description:
            names = dict.fromkeys([*self.description, *content["description"]])
            differing = [name for name in names if content["description"].get(name) != self.description.get(name)]
            raise UserError(
                f"{self.path} is of another cross-validation, which differs in {', '.join(differing)}: give another "
                f"directory"
            )
        self.folds, self.compiles = content["folds"], content.get("compiles", {})

    def write(self, result: CrossValidation | None = None) -> None:
        """Write the folds that are finished, and the result, as a page too, if there is one."""
        if self.path is not None:
            content = {"description": self.description, "folds": self.folds}
            if result is not None:
                content |= result.to_dict()
                write_atomically(self.path.with_name("report.html"), result.page())
            write_atomically(self.path, json.dumps(plain_value(content), indent=2) + "\n")
