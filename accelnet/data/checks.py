"""What every data set must be like: rows, splits, values, labels, weights."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from accelnet.arguments import integer, word
from accelnet.data.arrays import chunks, is_checked, leaves
from accelnet.data.precision import check_kept_apart
from accelnet.data.rows import LazyArray
from accelnet.errors import UserError
from accelnet.wording import did_you_mean, listed, shown

_SPLITS = ("train", "validation", "test")
_MOST_CLASSES = 2**31 - 1  # a device counts in int32
_OTHER_NAMES = {
    "val": "validation", "valid": "validation", "validate": "validation", "dev": "validation", "eval": "validation",
    "training": "train", "testing": "test",
}  # fmt: skip


def check_kinds(data: Any) -> None:
    """Raise UserError unless a `Data` has a name, dicts where dicts belong, and functions where functions do."""
    word("name of the data", data.name)
    for name in ("arrays", "splits", "info", "fitted", "coding"):
        if not isinstance(getattr(data, name), Mapping):
            raise UserError(f"data {data.name!r}: {name} is {shown(getattr(data, name))}, expected a dict")
    if not callable(data.prepare):
        raise UserError(f"data {data.name!r}: prepare is {shown(data.prepare)}, expected a function of a batch")
    if data.augment is not None and not callable(data.augment):
        raise UserError(f"data {data.name!r}: augment is {shown(data.augment)}, expected a function (key, batch)")


def check_names(name: str, arrays: Mapping[str, Any]) -> None:
    """Raise UserError unless there are inputs and targets, and no array has the name of the mask."""
    if not {"inputs", "targets"} <= set(arrays):
        raise UserError(f"data {name!r} has arrays {sorted(arrays)}, expected 'inputs' and 'targets'")
    if "mask" in arrays:
        raise UserError(f"data {name!r} has an array 'mask': that name is for padding rows, use 'weights'")


def check_leading_axes(where: str, arrays: Any) -> None:
    """Raise UserError unless every array has the same number of rows, each of them with a value at least."""
    shapes = {path: array.shape for path, array in leaves(arrays)}
    for path, shape in shapes.items():
        if not shape:
            raise UserError(f"{where}: {path} is a single number, expected a leading axis of rows")
        if 0 in shape[1:]:
            raise UserError(f"{where}: {path} has shape {shape}, expected at least one value in each row")
    if len({shape[0] for shape in shapes.values()}) > 1:
        rows = ", ".join(f"{path} has {shape[0]}" for path, shape in shapes.items())
        raise UserError(f"{where} has unequal numbers of rows: {rows}")


def check_splits(name: str, splits: Mapping[str, range], num_rows: int) -> None:
    """Raise UserError unless the splits are disjoint ranges of the rows and one is for training."""
    for split, rows in splits.items():
        _check_split_name(name, split)
        if not isinstance(rows, range) or rows.step != 1:
            raise UserError(
                f"data {name!r}: split {split!r} is {shown(rows)}, expected a range with step 1: "
                f"put the rows of a split one after the other"
            )
        if len(rows) and not 0 <= rows.start < rows.stop <= num_rows:
            raise UserError(f"data {name!r}: split {split!r} is {rows!r}, outside of the {num_rows} rows")
    if not len(splits.get("train", range(0))):
        raise UserError(f"data {name!r} has no training rows: {num_rows} rows, splits {splits or 'none'}")
    used = sorted((rows.start, rows.stop, split) for split, rows in splits.items() if len(rows))
    for (_, stop, first), (start, _, second) in pairwise(used):
        if start < stop:
            raise UserError(f"data {name!r}: splits {first!r} and {second!r} overlap from row {start} on")


def _check_split_name(name: str, split: Any) -> None:
    if not isinstance(split, str) or not split.strip():
        raise UserError(f"data {name!r} has a split {shown(split)}, expected names of splits such as 'train'")
    if split in _SPLITS:
        return
    lower = split.lower()
    meant = _OTHER_NAMES.get(lower) or next((one for one in _SPLITS if sorted(one) == sorted(lower)), None)
    hint = f"; did you mean {meant!r}?" if meant else did_you_mean(lower, ["validation"])
    if hint:
        raise UserError(
            f"data {name!r} has a split {shown(split)}{hint} Splits of a name of their own, such as 'ood', must not "
            f"look like one of {listed(_SPLITS)}"
        )


def check_finite(name: str, arrays: Any) -> None:
    """Raise UserError if a value is NaN or infinite. Stored arrays above 1 GiB are not read."""
    for path, array in leaves(arrays):
        if array.dtype.kind in "biu" or not is_checked(array):
            continue
        start = 0
        for chunk in chunks(array):
            good = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
            if not good.all():
                row = start + int(np.argmin(good))
                raise UserError(f"data {name!r}: {path} is NaN or infinite in row {row}: remove or fill such rows")
            start += len(chunk)


def check_read(name: str, arrays: Any, batch: Any, rows: np.ndarray, num_classes: int | None) -> None:
    """Raise UserError if rows that were just read of lazy arrays hold NaN, infinities or labels out of range."""
    for (path, array), (_, values) in zip(leaves(arrays), leaves(batch), strict=True):
        if not isinstance(array, LazyArray):
            continue
        most = num_classes if path.partition(".")[0] == "targets" else None
        if values.dtype.kind not in "biu":
            good = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            fault = "is NaN or infinite: remove or fill such rows"
            if path == "weights" and good.all():
                good, fault = values >= 0, "is negative, expected a weight of at least 0"
        elif most is not None and values.dtype.kind in "iu":
            good = ((values >= 0) & (values < most)).reshape(len(values), -1).all(axis=1)
            fault = f"is no label from 0 to {most - 1}, as num_classes={most} says"
        else:
            continue
        if not good.all():
            where = array.rows.place(int(rows[int(np.argmin(good))]))
            raise UserError(f"data {name!r}: {path} of {where} {fault}")


def check_precision(name: str, arrays: Any) -> None:
    """Raise UserError if the 32 bits of a device lose what tells values apart. Lazy arrays are not read."""
    for path, array in leaves(arrays):
        if path != "weights" and not isinstance(array, LazyArray):
            check_kept_apart(array, jax.dtypes.canonicalize_dtype(array.dtype), f"data {name!r}: {path}")


def check_labels(name: str, targets: Any, num_classes: Any) -> None:
    """Raise UserError if targets, one for each row, are no integers, or integers are not in [0, num_classes).

    Stored arrays above 1 GiB are not read.
    """
    num_classes = integer(f"data {name!r}: num_classes", num_classes, 1, _MOST_CLASSES)
    if not isinstance(targets, Mapping) and targets.ndim == 1 and targets.dtype.kind not in "iu":
        raise UserError(
            f"data {name!r}: targets are {targets.dtype.name}, expected integers for num_classes={num_classes}: turn "
            f"labels into whole numbers, or leave num_classes out where they are none"
        )
    for path, array in leaves(targets, "targets"):
        if array.dtype.kind not in "iu" or not is_checked(array) or not array.size:
            continue
        ends = [(int(chunk.min()), int(chunk.max())) for chunk in chunks(array)]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        if low < 0 or high >= num_classes:
            raise UserError(
                f"data {name!r}: {path} hold labels {low} to {high}, expected 0 to {num_classes - 1} "
                f"for num_classes={num_classes}"
            )


def check_weights(name: str, arrays: Mapping[str, Any], train: range) -> None:
    """Raise UserError if weights are negative, or 0 in all training rows. Lazy arrays are not read."""
    for path, array in leaves(arrays.get("weights", {}), "weights"):
        if isinstance(array, LazyArray):
            continue
        if array.dtype.kind == "c" or array.min() < 0:
            raise UserError(f"data {name!r}: {path} go down to {array.min()}, expected numbers of at least 0")
        if not array[train.start : train.stop].any():
            raise UserError(f"data {name!r}: {path} are 0 in all training rows: nothing would be learnt")
