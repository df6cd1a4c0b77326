"""Data from arrays: the user's own, and the four rows of XOR."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from accelnet import arguments
from accelnet.arguments import integer
from accelnet.data.arrays import as_numpy, leaves, native
from accelnet.data.checks import check_leading_axes
from accelnet.data.dataset import Data
from accelnet.data.fitted import checked
from accelnet.data.normalize import fit, standardize, with_cast_targets
from accelnet.data.precision import compact, offsets_of
from accelnet.data.row_views import first_rows
from accelnet.data.rows import LazyArray
from accelnet.data.splits import TENTH, Share, split_rows
from accelnet.errors import UserError
from accelnet.wording import listed, shown

HeldOut = float | Sequence[Any]


def from_arrays(
    inputs: Any,
    targets: Any,
    *,
    weights: Any = None,
    name: str = "arrays",
    validation: HeldOut = TENTH,
    test: HeldOut = TENTH,
    stratify: Any = None,
    groups: Any = None,
    time: Any = None,
    splits: Any = None,
    seed: int = 0,
    normalize: bool = True,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    """Make a data set of arrays.

    Args:
        inputs: Array [N, ...], or a dict of such arrays, which are the model's keyword arguments. What is stored
            elsewhere and has a shape, such as `np.memmap` and data sets of h5py and zarr, is read by rows.
        targets: Array [N, ...]: integers for classes, floats for regression; or N names of classes, as text.
        weights: Array [N] of at least 0, how much each example counts; None for 1. It multiplies losses; to draw rows
            more often, see `Data.sampled`.
        name: Name of the data in results.
        validation: Fraction of the rows to hold out at random (stratified where classes are known), 0
            for none; or (inputs, targets) of the user's own, and then nothing is taken from the rows. With `weights`
            it may be (inputs, targets, weights); without its own, their weights are 1.
        test: The same.
        stratify: Array [N] of whole numbers or text of which each split gets its share, or "targets". None: the
            classes, where they are known.
        groups: Array [N] of numbers or text; rows of a group are never in two splits. The shares are as near as the
            groups allow, and so are those of the classes.
        time: Array [N] of numbers or times. The latest rows are the test, those before them validation; rows of the
            same time are in one split.
        splits: Rows of each split by name, such as {"train": ..., "validation": ..., "ood": ...}, as indices, bool
            masks, ranges or slices; or a name for each row, text [N]. Rows that no split names are left out. Splits of
            any name are evaluated. With `groups`, no group may be in two splits.
        seed: Seed of the rows held out, at least 0.
        normalize: Standardize the last axis (features, channels) of float or uint8 inputs with mean and
            deviation of the training rows. Other integers, which are taken for tokens, and dicts are left
            as they are; for tokens in uint8 pass False.
        num_classes: Number that targets, whole numbers, must be below. Names of classes are counted.
        class_names: Names of the classes 0, 1, ..., in this order. None: text targets are in alphabetical order.
        fitted: `data.fitted` of an earlier run, to take over its means, deviations and names of classes.

    Returns:
        Data in the order train, validation, test. float64 becomes float32 and int64 becomes int32. Of a feature whose
        values float32 could not tell apart (times in seconds since 1970), an offset is subtracted first, in float64.

    Raises:
        UserError: if numbers of rows differ, values are NaN or infinite or too large, float32 cannot tell values that
            are not normalized apart, labels are out of range, no training row is left, or a row is in two splits.

    Example:
        >>> data = from_arrays(np.arange(20.0)[:, None], np.arange(20) % 2, num_classes=2, test=0.2)
        >>> labels = data.arrays["targets"]
        >>> {split: labels[rows.start : rows.stop].mean().item() for split, rows in data.splits.items()}
        {'train': 0.5, 'validation': 0.5, 'test': 0.5}
        >>> by_time = from_arrays(np.arange(20.0), np.arange(20.0), time=np.arange(20) // 2, validation=0)
        >>> by_time.arrays["inputs"][by_time.splits["test"].start :].tolist()
        [18.0, 19.0]
    """
    arguments.word("name", name)
    arguments.flag("normalize", normalize)
    known = {} if fitted is None else checked(fitted)
    parts, fractions = _parts(name, inputs, targets, weights, {"validation": validation, "test": test})
    class_names = _class_names(name, parts, class_names, known.get("class_names"))
    num_classes = _number_classes(name, parts, num_classes, class_names)
    by = num_classes is not None if stratify is None else stratify
    arrays, ranges = split_rows(
        parts, seed, name=name, stratify=by, groups=groups, time=time, splits=splits, **fractions
    )

    own: dict[str, Any] = {} if class_names is None else {"class_names": class_names}
    values, prepare, coding = arrays["inputs"], with_cast_targets, {}
    if normalize and not isinstance(values, Mapping) and (values.dtype.kind == "f" or values.dtype == np.uint8):
        prepare = standardize
        if isinstance(values, np.ndarray):
            offset = offsets_of(values, f"{name}: inputs")
            if offset.any():
                arrays["inputs"], coding = values - offset, {"inputs": {"offset": offset}}
    arrays = {key: jax.tree.map(partial(compact, where=f"{name}: {key}"), tree) for key, tree in arrays.items()}
    if prepare is standardize:
        own |= fit(first_rows(arrays["inputs"], len(ranges["train"])), coding.get("inputs", {}).get("offset", 0.0))
    info = {} if num_classes is None else {"num_classes": num_classes}
    data = Data(name, arrays, ranges, prepare, info=info, fitted=own, coding=coding)
    return data if fitted is None else data.refitted(fitted)


def xor() -> Data:
    """Return the four rows of exclusive or, all of them training rows.

    With four rows there is nothing to hold out: the question is whether they can be learned, and accuracy is
    reported on "train".

    Returns:
        Data with inputs float32 [4, 2] and targets float32 [4, 1], all 0 or 1.

    Example:
        >>> xor().arrays["targets"].ravel().tolist()
        [0.0, 1.0, 1.0, 0.0]

    Source: M. Minsky and S. Papert, Perceptrons, 1969.
    """
    inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
    targets = np.array([[0], [1], [1], [0]], dtype=np.float32)
    return Data("xor", {"inputs": inputs, "targets": targets}, {"train": range(4)})


def _parts(
    name: str, inputs: Any, targets: Any, weights: Any, held_out: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Return the arrays of the rows to divide and of those held out by the user, and the fractions to hold out."""
    parts, fractions = {"train": _part(inputs, targets, weights, name)}, {}
    for split, given in held_out.items():
        if isinstance(given, list | tuple):
            fractions[split] = 0.0
            parts[split] = _held_out_part(given, weights is not None, f"{name}: {split}")
            continue
        try:
            fractions[split] = given if isinstance(given, Share) else arguments.fraction(split, given)
        except UserError as error:
            raise UserError(f"{name}: {error}; or (inputs, targets)") from None
    return parts, fractions


def _held_out_part(held_out: Sequence[Any], weighted: bool, where: str) -> dict[str, Any]:
    if len(held_out) not in ((2, 3) if weighted else (2,)):
        more = " or (inputs, targets, weights)" if weighted else ""
        raise UserError(f"{where} has {len(held_out)} parts, expected a fraction or (inputs, targets){more}")
    inputs, targets, *weights = held_out
    if weighted and not weights:
        weights = [np.ones(len(next(leaves(as_numpy(inputs, where)))[1]), np.float32)]
    return _part(inputs, targets, weights[0] if weights else None, where)


def _part(inputs: Any, targets: Any, weights: Any, where: str) -> dict[str, Any]:
    """Return the arrays of some rows; targets may be text."""
    part = {"inputs": as_numpy(inputs, f"{where}: inputs"), "targets": _text_or_numbers(targets, f"{where}: targets")}
    if weights is not None:
        part["weights"] = _flat_in_memory(as_numpy(weights, f"{where}: weights"))
        if isinstance(part["weights"], Mapping) or part["weights"].ndim != 1:
            raise UserError(f"{where}: weights are {shown(weights)}, expected one number for each row")
        part["weights"] = part["weights"].astype(np.float32)
    check_leading_axes(where, part)
    return part


def _flat_in_memory(array: Any) -> Any:
    """Read a stored array of one number per row, which is no more than an index of the rows."""
    return array[:] if isinstance(array, LazyArray) and array.ndim == 1 else array


def _text_or_numbers(targets: Any, where: str) -> Any:
    if not isinstance(targets, Mapping):
        array = _flat_in_memory(native(targets, where))
        # Columns of a data frame are objects, and so is text of a file of HDF5, as bytes.
        if array.dtype.kind == "O" and array.size and all(isinstance(one, bytes) for one in array.flat):
            array = np.array([one.decode(errors="replace") for one in array.flat]).reshape(array.shape)
        text = array.dtype.kind in "UST" or (
            array.dtype.kind == "O" and all(isinstance(one, str) for one in array.flat)
        )
        if text and array.size:
            return array.astype(str)
        targets = array
    return as_numpy(targets, where)


def _class_names(
    name: str, parts: Mapping[str, Any], given: Sequence[str] | None, known: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Return the names of the classes: as given, those of an earlier run, or those that occur in text targets."""
    given = None if given is None else arguments.names("class_names", given)
    targets = [part["targets"] for part in parts.values()]
    texts = [one for one in targets if isinstance(one, np.ndarray) and one.dtype.kind == "U"]
    if not texts:
        return given
    if len(texts) < len(targets) or any(one.ndim != 1 for one in texts):
        raise UserError(
            f"{name}: some targets are text, expected one name for each row of every part of the data, or numbers"
        )
    found = sorted({text for one in texts for text in np.unique(one).tolist()})
    for names, where in ((given, "class_names do"), (known, "the values to take over do")):
        if names is not None and (unknown := [text for text in found if text not in set(names)]):
            raise UserError(f"{name}: targets name {listed(unknown)}, which {where} not have")
    return given or tuple(known or found)


def _number_classes(
    name: str, parts: Mapping[str, Any], num_classes: int | None, class_names: Sequence[str] | None
) -> int | None:
    """Make labels of the targets, where there are classes, and return their number."""
    if class_names is not None:
        if num_classes is not None and num_classes != len(class_names):
            raise UserError(f"{name}: num_classes is {shown(num_classes)}, but targets name {listed(class_names)}")
        num_classes = len(class_names)
    if num_classes is None:
        return None
    num_classes = integer(f"{name}: num_classes", num_classes, low=1)
    for part in parts.values():
        part["targets"] = _labels(name, part["targets"], num_classes, class_names)
    return num_classes


def _labels(name: str, targets: Any, num_classes: int, class_names: Sequence[str] | None) -> np.ndarray:
    if isinstance(targets, Mapping):
        raise UserError(f"{name}: num_classes={num_classes} needs an array of integer targets, they are a dict")
    if targets.dtype.kind == "U" and class_names is not None:
        number = {text: index for index, text in enumerate(class_names)}
        return np.array([number[text] for text in targets.tolist()], np.int32)
    if targets.dtype.kind in "iu":
        return targets
    whole_numbers = targets.dtype.kind == "b" or (targets.dtype.kind == "f" and bool((targets % 1 == 0).all()))
    if not whole_numbers:
        raise UserError(f"{name}: num_classes={num_classes} needs integer targets, they are not")
    return targets.astype(np.int64)
