"""What may be wrong with classes and features: rare and absent ones, constant ones, filled values, outliers."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from accelnet.data.look.features import FAR
from accelnet.data.look.finding import Finding, few
from accelnet.report.numbers import number, percent

_FEW_ROWS = 10  # of a class
_SURE = 5.0  # deviations of a difference between shares: not by chance in a thousand splits of a thousand classes
_LARGE = 0.2  # of a share


def class_findings(
    counts: Mapping[str, Sequence[int]], names: Sequence[str], sampled: Collection[str] = ()
) -> list[Finding]:
    """Find classes that are rare, absent in a split, or alone, and splits with other shares of them.

    Args:
        counts: Rows of each class by split, "train" among them.
        names: Names of the classes.
        sampled: Splits of which some rows alone were counted: nothing is rare or absent there for certain.

    Example:
        >>> [finding.text for finding in class_findings({"train": [40, 3], "test": [10, 0]}, ["no", "yes"])]
        ["1 of 2 classes has fewer than 10 rows of train: 'yes' (3)", "1 of 2 classes has no row of test: 'yes'"]
    """
    train, found = np.array(counts["train"]), []
    if (train > 0).sum() == 1:
        only = names[int(train.argmax())]
        found.append(Finding(
            "one class", int(train.sum()), f"all rows of train are of the class {only!r}",
            "give rows of other classes too: there is nothing to learn",
        ))  # fmt: skip
    rare = np.flatnonzero(train < _FEW_ROWS).tolist()
    if rare and "train" not in sampled:
        told = few(f"{names[index]!r} ({train[index]})" for index in rare)
        found.append(Finding(
            "rare classes", len(rare), f"{_of(rare, names)} fewer than {_FEW_ROWS} rows of train: {told}",
            "collect more rows, or join classes: what is learnt and measured of these is chance",
        ))  # fmt: skip
    for split, of_split in counts.items():
        absent = np.flatnonzero(np.array(of_split) == 0).tolist()
        if split not in ("train", *sampled) and absent:
            told = few(repr(names[index]) for index in absent)
            found.append(Finding(
                "absent classes", len(absent), f"{_of(absent, names)} no row of {split}: {told}",
                f"split by classes, or give {split} rows of these: its metrics say nothing of them",
            ))  # fmt: skip
        if split != "train":
            found += _different_shares(train, np.array(of_split), names, split)
    return found


def _of(chosen: Sequence[int], names: Sequence[str]) -> str:
    return f"{len(chosen):,} of {len(names):,} classes {'has' if len(chosen) == 1 else 'have'}"


def _different_shares(train: np.ndarray, other: np.ndarray, names: Sequence[str], split: str) -> Iterator[Finding]:
    one, two, both = train / train.sum(), other / other.sum(), (train + other) / (train.sum() + other.sum())
    deviation = np.sqrt(both * (1 - both) * (1 / train.sum() + 1 / other.sum()))
    apart = np.abs(one - two)
    different = np.flatnonzero((apart > _SURE * deviation) & (apart > _LARGE * both)).tolist()
    if different:
        most = max(different, key=lambda index: apart[index])
        yield Finding(
            "different shares of classes", len(different),
            f"{_of(different, names)} another share in {split} than in train, by more than chance explains: "
            f"{names[most]!r} is {percent(two[most])} of {split} and {percent(one[most])} of train",
            "split at random by classes, unless the splits differ on purpose",
        )  # fmt: skip


def feature_findings(
    data: Any, inputs: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]], num_rows: int
) -> Iterator[Finding]:
    """Find constant inputs and targets, values that were filled, and outliers.

    Args:
        data: The `Data`.
        inputs: Statistics of the inputs of training rows.
        targets: Those of the targets.
        num_rows: Number of these rows.

    Yields:
        Findings, the constant ones first.
    """
    flags = dict(_flags(data))
    for what, rows, advice in (
        ("inputs", [one for one in inputs if one["name"] not in flags], "leave them out: they say nothing"),
        ("targets", targets, "choose another target: there is nothing to predict"),
    ):
        constant = [one for one in rows if one["least"] == one["most"]] if num_rows > 1 else []
        if constant:
            told = few(f"{one['name']} ({number(one['least'])})" for one in constant)
            text = f"{len(constant):,} of {len(rows):,} {what} are the same in all {num_rows:,} rows of train: {told}"
            yield Finding(f"constant {what}", len(constant), text, advice)
        far = [one for one in rows if one["far"]]
        if far:
            told = few(
                f"{one['name']} ({one['far']:,}; {number(one['least'])} to {number(one['most'])}, mean "
                f"{number(one['mean'])})" for one in far
            )  # fmt: skip
            count = sum(one["far"] for one in far)
            text = f"{count:,} values of {what} of train are more than {FAR:.0f} deviations from the mean: {told}"
            yield Finding("outliers", count, text, "correct what is wrong; take the logarithm of what is right")
    filled = {one["name"]: round(one["mean"] * num_rows) for one in inputs if one["name"] in flags}
    if sum(filled.values()):
        told = few(f"{flags[name]} ({count:,})" for name, count in filled.items() if count)
        text = f"{sum(filled.values()):,} values were missing in {num_rows:,} rows of train and were filled: {told}"
        yield Finding("filled values", sum(filled.values()), text, "make sure that they are missing by chance")


def _flags(data: Any) -> Iterator[tuple[str, str]]:
    """Yield inputs that say where a value was missing, with their columns."""
    for column in data.fitted.get("columns", ()):
        if column.get("flag"):
            yield f"{column['name']} is missing", column["name"]
