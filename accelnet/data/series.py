"""Time series of unequal lengths from UEA/UCR `.ts` files."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from accelnet import arguments
from accelnet.arguments import listed, shown
from accelnet.data.dataset import Data
from accelnet.data.normalize import centre_and_scale, moments, with_cast_targets
from accelnet.data.precision import offsets_of
from accelnet.data.splits import cut, stratified_order
from accelnet.errors import UserError


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
        train_path: file whose series are divided into training and validation rows, stratified.
        test_path: file of the test rows, with the same labels in any order.
        seed: of the validation rows, at least 0.
        validation: fraction of the first file's series, 0 for none.
        allow_missing: replace missing values ("?") by the mean of the dimension over the training rows.
        name: what the data is called; None for the first file's `@problemName`.
        fitted: `data.fitted` of an earlier run, to take over its means, deviations and names of classes.

    Returns:
        Data with inputs `{"inputs": float32 [N, T, D], "lengths": int32 [N]}`, T being the longest of
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
    train = _read_ts(arguments.path("train_path", train_path), allow_missing)
    test = _read_ts(arguments.path("test_path", test_path), allow_missing)
    class_names = train.class_names
    if fitted is not None:
        if not isinstance(fitted, Mapping):
            raise UserError(f"fitted is {shown(fitted)}, expected a dict such as data.fitted")
        class_names = fitted.get("class_names", class_names)
    if set(train.class_names) != set(class_names) or set(test.class_names) != set(class_names):
        first, second = (train_path, train) if set(train.class_names) != set(class_names) else (test_path, test)
        raise UserError(f"{first} has labels {listed(second.class_names)}, expected {listed(class_names)}")
    dimensions = train.series[0].shape[1]
    if test.series[0].shape[1] != dimensions:
        raise UserError(f"{train_path} has {dimensions} dimensions, {test_path} has {test.series[0].shape[1]}")
    number = {label: index for index, label in enumerate(class_names)}
    order = stratified_order(np.array([number[label] for label in train.labels]), seed)
    series = [train.series[row] for row in order] + test.series
    labels = np.array([number[label] for label in [train.labels[row] for row in order] + test.labels], dtype=np.int32)
    splits = {**cut(len(order), validation=validation, test=0), "test": range(len(order), len(series))}

    every, num_steps = np.concatenate(series), sum(len(one) for one in series[: len(splits["train"])])
    offset = np.zeros(dimensions)
    for dimension in range(dimensions):
        valid = every[np.isfinite(every[:, dimension]), dimension]
        offset[dimension] = offsets_of(valid, f"{train_path}, dimension {dimension}")[0]
    every = (every - offset if offset.any() else every).astype(np.float32)
    steps = [column[np.isfinite(column)] for column in every[:num_steps].T]
    if any(not len(column) for column in steps):
        raise UserError(f"{train_path} has a dimension without any value in the training rows")
    mean, std = (np.concatenate(parts) for parts in zip(*(moments(column) for column in steps), strict=True))

    lengths = np.array([len(one) for one in series], dtype=np.int32)
    padded = np.zeros((len(series), int(lengths.max()), dimensions), dtype=np.float32)
    for row, (stop, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        one = every[stop - length : stop]
        padded[row, :length] = np.where(np.isfinite(one), one, mean[None, :])
    own = {
        "class_names": class_names,
        "mean": mean.astype(np.float64) + offset,
        "std": std.astype(np.float64),
    }
    data = Data(
        name or train.name,
        {"inputs": {"inputs": padded, "lengths": lengths}, "targets": labels},
        splits,
        _prepare,
        info={"num_classes": len(class_names)},
        fitted=own,
        coding={"inputs.inputs": {"offset": offset}} if offset.any() else {},
    )
    return data if fitted is None else data.refitted(fitted)


def japanese_vowels(seed: int = 0, validation: float = 0.1) -> Data:
    """Load JapaneseVowels: 270 + 370 utterances of 7 to 29 steps in 12 dimensions by 9 speakers.

    Args:
        seed: of the validation rows, at least 0.
        validation: fraction of the 270 training series, 0 for none.

    Returns:
        Data as of `ts`.

    Raises:
        UserError: if aeon, whose package holds the files, is not installed.

    Source: M. Kudo, J. Toyama and M. Shimbo, Pattern Recognition Letters 20 (1999) 1103-1111.
    """
    # Not imported: aeon needs numba and more, its files need nothing.
    spec = find_spec("aeon")
    folder = (
        Path(next(iter(spec.submodule_search_locations or [""]))) / "datasets/data/JapaneseVowels" if spec else None
    )
    if folder is None or not folder.is_dir():
        raise UserError("JapaneseVowels is part of aeon, which is not installed: pip install --no-deps aeon")
    files = (folder / "JapaneseVowels_TRAIN.ts", folder / "JapaneseVowels_TEST.ts")
    return ts(*files, seed=seed, validation=validation, name="japanese_vowels")


@dataclass(frozen=True)
class _Content:
    name: str
    class_names: tuple[str, ...]
    series: list[np.ndarray]  # each float64 [length, dimensions], NaN where missing
    labels: list[str]


def _read_ts(path: Path, allow_missing: bool) -> _Content:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"series file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a .ts file: it is not UTF-8 text") from None
    header: dict[str, list[str]] = {}
    series: list[np.ndarray] = []
    labels: list[str] = []
    class_names: tuple[str, ...] = ()
    for number, line in enumerate(lines, start=1):
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


def _prepare(batch: Any, fitted: Mapping[str, Any], coding: Mapping[str, Any]) -> Any:
    mean, scale = centre_and_scale(fitted, coding.get("inputs.inputs", {}).get("offset", 0.0))
    values, lengths = jnp.asarray(batch["inputs"]["inputs"]), jnp.asarray(batch["inputs"]["lengths"])
    valid = jnp.arange(values.shape[1], dtype=lengths.dtype)[None, :] < lengths[:, None]
    values = jnp.where(valid[:, :, None], (values - mean[None, None, :]) * scale[None, None, :], 0)
    return with_cast_targets({**batch, "inputs": {**batch["inputs"], "inputs": values}})
