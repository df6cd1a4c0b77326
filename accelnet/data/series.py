"""Time series of unequal lengths from UEA/UCR `.ts` files."""

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from accelnet.data.dataset import Data
from accelnet.data.normalize import cast_targets, moments
from accelnet.data.splits import cut, stratified_order
from accelnet.errors import UserError


def ts(
    train_path: str | os.PathLike[str],
    test_path: str | os.PathLike[str],
    seed: int = 0,
    validation: float = 0.1,
    allow_missing: bool = False,
    name: str | None = None,
) -> Data:
    r"""Load labelled series, of one or more dimensions and unequal lengths, from two `.ts` files.

    Args:
        train_path: file whose series are divided into training and validation rows, stratified.
        test_path: file of the test rows, with the same labels.
        seed: of the validation rows, at least 0.
        validation: fraction of the first file's series, 0 for none.
        allow_missing: replace missing values ("?") by the mean of the dimension over the training rows.
        name: what the data is called; None for the first file's `@problemName`.

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
    train, test = _read_ts(Path(train_path), allow_missing), _read_ts(Path(test_path), allow_missing)
    if train.class_names != test.class_names:
        raise UserError(f"{train_path} has labels {train.class_names}, {test_path} has {test.class_names}")
    dimensions = train.series[0].shape[1]
    if test.series[0].shape[1] != dimensions:
        raise UserError(f"{train_path} has {dimensions} dimensions, {test_path} has {test.series[0].shape[1]}")
    order = stratified_order(np.array(train.labels), seed)
    series = [train.series[row] for row in order] + test.series
    labels = np.array([train.labels[row] for row in order] + test.labels, dtype=np.int32)
    splits = {**cut(len(order), validation=validation, test=0), "test": range(len(order), len(series))}

    steps = np.concatenate(series[: len(splits["train"])])
    valid = [column[np.isfinite(column)] for column in steps.T]
    if any(not len(column) for column in valid):
        raise UserError(f"{train_path} has a dimension without any value in the training rows")
    mean, std = (np.concatenate(parts) for parts in zip(*(moments(column) for column in valid), strict=True))

    lengths = np.array([len(one) for one in series], dtype=np.int32)
    padded = np.zeros((len(series), int(lengths.max()), dimensions), dtype=np.float32)
    for row, one in enumerate(series):
        padded[row, : len(one)] = np.where(np.isfinite(one), one, mean[None, :])
    arrays = {"inputs": {"inputs": padded, "lengths": lengths}, "targets": labels}
    info = {"num_classes": len(train.class_names), "class_names": train.class_names}
    return Data(name or train.name, arrays, splits, _make_prepare(mean, std), info=info)


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
    series: list[np.ndarray]  # each float32 [length, dimensions], NaN where missing
    labels: list[int]


def _read_ts(path: Path, allow_missing: bool) -> _Content:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"series file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a .ts file: it is not UTF-8 text") from None
    header: dict[str, list[str]] = {}
    series: list[np.ndarray] = []
    labels: list[int] = []
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
            raise UserError(f"{path}, line {number}: label {label.strip()!r}, expected one of {', '.join(class_names)}")
        series.append(_parse_series(f"{path}, line {number}", dimensions, allow_missing))
        labels.append(class_names.index(label.strip()))
        if series[-1].shape[1] != series[0].shape[1]:
            raise UserError(
                f"{path}, line {number}: {series[-1].shape[1]} dimensions, expected {series[0].shape[1]} as before"
            )
    if not series:
        raise UserError(f"{path} holds no series: expected lines of values after a line @data")
    return _Content(" ".join(header.get("problemname", [])) or path.stem, class_names, series, labels)


def _class_names(path: Path, header: dict[str, list[str]]) -> tuple[str, ...]:
    if header.get("timestamps", ["false"])[:1] == ["true"]:
        raise UserError(f"{path} has time stamps, which are not read: give a file with @timeStamps false")
    flag, *names = header.get("classlabel") or ["false"]
    if flag.lower() != "true" or not names:
        raise UserError(f"{path} has no class labels: expected a line such as @classLabel true a b")
    return tuple(names)


def _parse_series(where: str, dimensions: list[str], allow_missing: bool) -> np.ndarray:
    columns = []
    for text in dimensions:
        values = [value.strip() for value in text.split(",")]
        missing = [value == "?" or value.lower() == "nan" for value in values]
        if any(missing) and not allow_missing:
            raise UserError(f"{where}: a value is missing (?): pass allow_missing=True to fill with training means")
        try:
            column = [math.nan if gone else float(value) for value, gone in zip(values, missing, strict=True)]
        except ValueError as error:
            raise UserError(f"{where}: {error}, expected numbers separated by commas") from None
        columns.append(column)
    if not columns or len({len(column) for column in columns}) > 1:
        lengths = ", ".join(str(len(column)) for column in columns) or "none"
        raise UserError(f"{where}: dimensions have lengths {lengths}, expected all the same")
    series = np.array(columns, dtype=np.float32).T
    if np.isinf(series).any():
        raise UserError(f"{where}: a value is infinite, expected finite numbers")
    return series


def _make_prepare(mean: np.ndarray, std: np.ndarray) -> Any:
    scale = (1 / std).astype(np.float32)

    def prepare(batch: Any) -> Any:
        values, lengths = jnp.asarray(batch["inputs"]["inputs"]), jnp.asarray(batch["inputs"]["lengths"])
        valid = jnp.arange(values.shape[1], dtype=lengths.dtype)[None, :] < lengths[:, None]
        values = jnp.where(valid[:, :, None], (values - mean[None, None, :]) * scale[None, None, :], 0)
        inputs = {**batch["inputs"], "inputs": values}
        return {**batch, "inputs": inputs, "targets": cast_targets(jnp.asarray(batch["targets"]))}

    return prepare
