"""Time series of unequal lengths from UEA/UCR `.ts` files."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from accelnet import arguments
from accelnet.data.dataset import Data
from accelnet.data.files import package_path, read_text
from accelnet.data.fitted import checked
from accelnet.data.normalize import fit, standardize, with_cast_targets
from accelnet.data.precision import offsets_of
from accelnet.data.splits import split_rows
from accelnet.errors import UserError
from accelnet.wording import listed, shown


def ts(
    train_path: str | os.PathLike[str],
    test_path: str | os.PathLike[str],
    seed: int = 0,
    validation: float = 0.1,
    allow_missing: bool = False,
    name: str | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    r"""Load labelled series, of one or more dimensions and unequal lengths, from two `.ts` files.

    Args:
        train_path: File whose series are divided into training and validation rows, stratified.
        test_path: File of the test rows, with the same labels in any order.
        seed: Seed of the validation rows, at least 0.
        validation: Fraction of the first file's series, 0 for none.
        allow_missing: Replace missing values ("?") by the mean of the dimension over the training rows.
        name: Name of the data; None for the first file's `@problemName`.
        fitted: `data.fitted` of an earlier run, to take over its means, deviations and names of classes.

    Returns:
        Data with the inputs "inputs", float32 [N, T, D], and "lengths", int32 [N], T being the longest of
        both files, and targets int32 [N]. Beyond its length a series is zero, after `prepare` too, which
        standardizes each dimension with the valid steps of the training rows. `info` has `num_classes` and
        `class_names`.

    Raises:
        UserError: with the line, if a file is missing, empty or not of this format, values are missing or not
            numbers, or a label is not declared.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.ts"
        ...     _ = path.write_text("@problemName toy\n@classLabel true a b\n@data\n1,2:5,6:a\n3:7:b\n")
        ...     data = ts(path, path, validation=0)
        >>> data.arrays["inputs"]["inputs"].shape, data.arrays["inputs"]["lengths"].tolist()[2:]
        ((4, 2, 2), [2, 1])

    Source: the format as described at https://www.aeon-toolkit.org, "ts file format".
    """
    arguments.flag("allow_missing", allow_missing)
    if name is not None:
        arguments.word("name", name)
    train = _read_ts(arguments.path("train_path", train_path), allow_missing)
    test = _read_ts(arguments.path("test_path", test_path), allow_missing)
    class_names = train.class_names if fitted is None else checked(fitted).get("class_names", train.class_names)
    for path, content in ((train_path, train), (test_path, test)):
        if set(content.class_names) != set(class_names):
            raise UserError(f"{path} has labels {listed(content.class_names)}, expected {listed(class_names)}")
    dimensions = train.series[0].shape[1]
    if test.series[0].shape[1] != dimensions:
        raise UserError(f"{train_path} has {dimensions} dimensions, {test_path} has {test.series[0].shape[1]}")
    num_steps = max(len(one) for one in train.series + test.series)
    parts = {"train": train.padded(num_steps, class_names), "test": test.padded(num_steps, class_names)}
    rows, splits = split_rows(parts, seed, name=train.name, stratify=True, validation=validation, test=0)
    series, own, offset = _fit(rows["series"], rows["lengths"], len(splits["train"]), train_path)
    data = Data(
        name or train.name,
        {"inputs": {"inputs": series, "lengths": rows["lengths"]}, "targets": rows["targets"]},
        splits,
        standardize_series,
        info={"num_classes": len(class_names)},
        fitted={"class_names": class_names, **own},
        coding={"inputs.inputs": {"offset": offset}} if offset.any() else {},
        refit=_refit,
    )
    return data if fitted is None else data.refitted(fitted)


def japanese_vowels(seed: int = 0, validation: float = 0.1) -> Data:
    """Load JapaneseVowels: 270 + 370 utterances of 7 to 29 steps in 12 dimensions by 9 speakers.

    Args:
        seed: Seed of the validation rows, at least 0.
        validation: Fraction of the 270 training series, 0 for none.

    Returns:
        Data as of `ts`.

    Raises:
        UserError: if aeon, whose package holds the files, is not installed.

    Source: M. Kudo, J. Toyama and M. Shimbo, Pattern Recognition Letters 20 (1999) 1103-1111.
    """
    # Not imported: aeon needs numba and more, its files need nothing.
    missing = "JapaneseVowels is part of aeon, which is not installed: pip install --no-deps aeon"
    folder = package_path("aeon", "datasets/data/JapaneseVowels", missing)
    files = (folder / "JapaneseVowels_TRAIN.ts", folder / "JapaneseVowels_TEST.ts")
    return ts(*files, seed=seed, validation=validation, name="japanese_vowels")


@dataclass(frozen=True)
class _Content:
    name: str
    class_names: tuple[str, ...]
    series: list[np.ndarray]  # each float64 [length, dimensions], NaN where missing
    labels: list[str]

    def padded(self, num_steps: int, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return "series" [N, num_steps, dimensions], NaN behind each, "lengths" and "targets"."""
        series = np.full((len(self.series), num_steps, self.series[0].shape[1]), np.nan)
        for row, one in enumerate(self.series):
            series[row, : len(one)] = one
        number = {label: index for index, label in enumerate(class_names)}
        lengths, targets = map(len, self.series), (number[label] for label in self.labels)
        return {"series": series, "lengths": np.array([*lengths], np.int32), "targets": np.array([*targets], np.int32)}


def _fit(
    series: np.ndarray, lengths: np.ndarray, num_train: int, where: str | os.PathLike[str]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Return float32 series with 0 behind each and means for what is missing, what was fitted, and the offset."""
    valid = np.isfinite(series)
    columns = [(series[..., index], valid[..., index]) for index in range(series.shape[-1])]
    offset = np.array([offsets_of(column[has], f"{where}, dimension {index}")[0]
                       for index, (column, has) in enumerate(columns)])  # fmt: skip
    series = (series - offset).astype(np.float32)
    steps = [series[:num_train, :, index][has[:num_train]] for index, (_, has) in enumerate(columns)]
    if not all(map(len, steps)):
        raise UserError(f"{where} has a dimension without any value in the training rows")
    statistics = [fit(column) for column in steps]
    mean, std = (np.concatenate([one[key] for one in statistics]) for key in ("mean", "std"))
    within = np.arange(series.shape[1])[None, :, None] < lengths[:, None, None]
    filled = np.where(valid, series, np.where(within, mean.astype(np.float32), np.float32(0)))
    return filled, {"mean": mean + offset, "std": std}, offset


def _read_ts(path: Path, allow_missing: bool) -> _Content:
    header: dict[str, list[str]] = {}
    series: list[np.ndarray] = []
    labels: list[str] = []
    class_names: tuple[str, ...] = ()
    for number, line in enumerate(read_text(path, "series file").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if "data" not in header:
            if not line.startswith("@"):
                raise UserError(f"{path}, line {number}: expected a header line such as @problemName or @data")
            key, *values = line[1:].split()
            header[key.lower()] = values
            if key.lower() == "data":
                class_names = _class_names(path, header)
            continue
        *dimensions, label = line.split(":")
        if label.strip() not in class_names:
            raise UserError(f"{path}, line {number}: label {shown(label.strip())}, expected {listed(class_names)}")
        series.append(_parse_series(f"{path}, line {number}", dimensions, allow_missing))
        labels.append(label.strip())
        if series[-1].shape[1] != series[0].shape[1]:
            raise UserError(
                f"{path}, line {number}: {series[-1].shape[1]} dimensions, expected {series[0].shape[1]} as before"
            )
    if not series:
        raise UserError(f"{path} holds no series: expected lines of values after a line @data")
    return _Content(" ".join(header.get("problemname", [])) or path.stem, class_names, series, labels)


def _class_names(path: Path, header: dict[str, list[str]]) -> tuple[str, ...]:
    if [value.lower() for value in header.get("timestamps", [])[:1]] == ["true"]:
        raise UserError(f"{path} has time stamps, which are not read: give a file with @timeStamps false")
    if "targetlabel" in header:
        raise UserError(f"{path} has numbers to predict (@targetLabel), which are not read: give @classLabel")
    flag, *names = header.get("classlabel") or ["false"]
    if flag.lower() != "true" or not names:
        raise UserError(f"{path} has no class labels: expected a line such as @classLabel true a b")
    return arguments.names(f"{path}: @classLabel", names)


def _parse_series(where: str, dimensions: list[str], allow_missing: bool) -> np.ndarray:
    columns = []
    for text in dimensions:
        if "(" in text:
            raise UserError(f"{where}: a value is in brackets, as time stamps are, which are not read: leave them out")
        values = [value.strip() for value in text.split(",")]
        missing = [value == "?" or value.lower() == "nan" for value in values]
        if any(missing) and not allow_missing:
            raise UserError(f"{where}: a value is missing (?): pass allow_missing=True to fill with training means")
        try:
            column = [math.nan if gone else float(value) for value, gone in zip(values, missing, strict=True)]
        except ValueError as error:
            raise UserError(f"{where}: {_one_line(error)}, expected numbers separated by commas") from None
        columns.append(column)
    if columns and all(math.isnan(value) for column in columns for value in column):
        raise UserError(f"{where}: every value is missing: leave the series out")
    if not columns or len({len(column) for column in columns}) > 1:
        lengths = ", ".join(str(len(column)) for column in columns) or "none"
        raise UserError(f"{where}: dimensions have lengths {lengths}, expected all the same")
    series = np.array(columns, dtype=np.float64).T
    if (np.abs(series) > np.finfo(np.float32).max).any():
        raise UserError(f"{where}: a value is infinite or float32 cannot hold it, expected finite numbers")
    return series


def _one_line(error: Exception) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in str(error))


def _refit(data: Data) -> dict[str, np.ndarray]:
    """Fit mean and deviation of each dimension to the valid steps of other training rows."""
    train, inputs = data.splits["train"], data.arrays["inputs"]
    series, lengths = (inputs[name][train.start : train.stop] for name in ("inputs", "lengths"))
    steps = series[np.arange(series.shape[1])[None, :] < lengths[:, None]]
    return {**fit(steps, np.asarray(data.coding.get("inputs.inputs", {}).get("offset", 0.0)))}


def standardize_series(batch: Any, fitted: Mapping[str, Any], coding: Mapping[str, Any]) -> Any:
    """Prepare a batch of padded series, as `standardize` does; what lies behind a series becomes 0."""
    series, lengths = jnp.asarray(batch["inputs"]["inputs"]), jnp.asarray(batch["inputs"]["lengths"])
    valid = jnp.arange(series.shape[1], dtype=lengths.dtype)[None, :] < lengths[:, None]
    series = standardize({"inputs": series}, fitted, {"inputs": coding.get("inputs.inputs", {})})["inputs"]
    series = jnp.where(valid[:, :, None], series, 0)
    return with_cast_targets({**batch, "inputs": {**batch["inputs"], "inputs": series}})
