"""Data from arrays: the user's own, and the four rows of XOR."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accelnet import arguments
from accelnet.arguments import listed, shown, whole
from accelnet.data.arrays import as_numpy, leaves, map_leaves, native
from accelnet.data.dataset import Data
from accelnet.data.normalize import fit, standardize, with_cast_targets
from accelnet.data.precision import check_kept_apart, offsets_of
from accelnet.data.splits import cut, random_order, stratified_order
from accelnet.errors import UserError

HeldOut = float | Sequence[Any]


def from_arrays(
    inputs: Any,
    targets: Any,
    *,
    weights: Any = None,
    name: str = "arrays",
    validation: HeldOut = 0.1,
    test: HeldOut = 0.1,
    seed: int = 0,
    normalize: bool = True,
    num_classes: int | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    """Make a data set of arrays.

    Args:
        inputs: array [N, ...], or a dict of such arrays, which are the model's keyword arguments.
        targets: array [N, ...]: integers for classes, floats for regression; or N names of classes, as text.
        weights: array [N] of at least 0, how much each example counts; None for 1.
        name: what the data is called in results.
        validation: fraction of the rows to hold out at random (stratified where classes are known), 0
            for none; or (inputs, targets) of the user's own, and then nothing is taken from the rows. With `weights`
            it may be (inputs, targets, weights); without its own, their weights are 1.
        test: the same.
        seed: of the rows held out, at least 0.
        normalize: standardize the last axis (features, channels) of float or uint8 inputs with mean and
            deviation of the training rows. Other integers, which are taken for tokens, and dicts are left
            as they are; for tokens in uint8 pass False.
        num_classes: targets must be whole numbers below it. Names of classes are counted.
        fitted: `data.fitted` of an earlier run, to take over its means, deviations and names of classes.

    Returns:
        Data in the order train, validation, test. float64 becomes float32 and int64 becomes int32. Of a feature whose
        values float32 could not tell apart (times in seconds since 1970), an offset is subtracted first, in float64.

    Raises:
        UserError: if numbers of rows differ, values are NaN or infinite or too large, float32 cannot tell values that
            are not normalized apart, labels are out of range, or no training row is left.

    Example:
        >>> data = from_arrays(np.arange(20.0)[:, None], np.arange(20) % 2, num_classes=2, test=0.2)
        >>> labels = data.arrays["targets"]
        >>> {split: labels[rows.start : rows.stop].mean().item() for split, rows in data.splits.items()}
        {'train': 0.5, 'validation': 0.5, 'test': 0.5}
    """
    arguments.word("name", name)
    if not isinstance(normalize, bool):
        raise UserError(f"normalize is {shown(normalize)}, expected True or False")
    parts = {"train": _part(inputs, targets, weights, f"{name}: ")}
    fractions = {}
    for split, held_out in (("validation", validation), ("test", test)):
        if isinstance(held_out, list | tuple):
            fractions[split] = 0.0
            parts[split] = _held_out_part(held_out, weights is not None, f"{name}: {split}")
        else:
            fractions[split] = _fraction(name, split, held_out)
    class_names = _class_names(name, [part["targets"] for part in parts.values()], fitted)
    if class_names is not None:
        if num_classes is not None and num_classes != len(class_names):
            raise UserError(f"{name}: num_classes is {shown(num_classes)}, but targets name {listed(class_names)}")
        num_classes = len(class_names)
    if num_classes is not None:
        num_classes = whole(f"{name}: num_classes", num_classes, low=1)
        for part in parts.values():
            part["targets"] = _labels(name, part["targets"], num_classes, class_names)
    arrays, splits = _split(name, parts, seed, stratified=num_classes is not None, **fractions)

    own: dict[str, Any] = {} if class_names is None else {"class_names": class_names}
    arrays["targets"] = map_leaves(lambda array: _compact(array, f"{name}: targets"), arrays["targets"])
    values, prepare, coding = arrays["inputs"], with_cast_targets, {}
    if normalize and isinstance(values, np.ndarray) and (values.dtype.kind == "f" or values.dtype == np.uint8):
        offset = offsets_of(values, f"{name}: inputs")
        if offset.any():
            values, coding = values - offset, {"inputs": {"offset": offset}}
        arrays["inputs"] = _compact(values, f"{name}: inputs")
        own |= fit(arrays["inputs"][: len(splits["train"])], offset)
        prepare = standardize
    else:
        arrays["inputs"] = map_leaves(lambda array: _compact(array, f"{name}: inputs"), values)
    info = {} if num_classes is None else {"num_classes": num_classes}
    data = Data(name, arrays, splits, prepare, info=info, fitted=own, coding=coding)
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


def _part(inputs: Any, targets: Any, weights: Any, where: str) -> dict[str, Any]:
    """Return the arrays of some rows; targets may be text."""
    part = {"inputs": as_numpy(inputs, f"{where}inputs")}
    part["targets"] = _names(targets, f"{where}targets")
    if part["targets"] is None:
        part["targets"] = as_numpy(targets, f"{where}targets")
    if weights is not None:
        part["weights"] = as_numpy(weights, f"{where}weights")
        if isinstance(part["weights"], Mapping) or part["weights"].ndim != 1:
            raise UserError(f"{where}weights are {shown(weights)}, expected one number for each row")
        part["weights"] = part["weights"].astype(np.float32)
    shapes = {path: array.shape for path, array in leaves(part)}
    for path, shape in shapes.items():
        if 0 in shape[1:]:
            raise UserError(f"{where}{path} has shape {shape}, expected at least one value in each row")
    if any(not shape for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) != 1:
        raise UserError(f"{where}shapes {', '.join(map(str, shapes.values()))} have unequal numbers of rows")
    return part


def _names(targets: Any, where: str) -> np.ndarray | None:
    """Return targets that are text as an array of str, None for others."""
    if isinstance(targets, Mapping):
        return None
    array = native(targets, where)
    # Columns of a data frame are objects.
    text = array.dtype.kind in "UST" or (array.dtype.kind == "O" and all(isinstance(one, str) for one in array.flat))
    return array.astype(str) if text and array.size else None


def _held_out_part(held_out: Sequence[Any], weighted: bool, where: str) -> dict[str, Any]:
    if len(held_out) not in ((2, 3) if weighted else (2,)):
        more = " or (inputs, targets, weights)" if weighted else ""
        raise UserError(f"{where} has {len(held_out)} parts, expected a fraction or (inputs, targets){more}")
    inputs, targets, *weights = held_out
    if weighted and not weights:
        weights = [np.ones(len(next(leaves(as_numpy(inputs, where)))[1]), np.float32)]
    return _part(inputs, targets, weights[0] if weights else None, f"{where}, ")


def _fraction(name: str, split: str, value: Any) -> float:
    try:
        return arguments.fraction(split, value)
    except UserError as error:
        raise UserError(f"{name}: {error}; or (inputs, targets)") from None


def _class_names(name: str, targets: Sequence[Any], fitted: Any) -> tuple[str, ...] | None:
    """Return the names that text targets have, in alphabetical order; those of an earlier run where they are given."""
    texts = [one for one in targets if isinstance(one, np.ndarray) and one.dtype.kind == "U"]
    if not texts:
        return None
    if len(texts) < len(targets) or any(one.ndim != 1 for one in texts):
        raise UserError(
            f"{name}: some targets are text, expected one name for each row of every part of the data, or numbers"
        )
    found = sorted({text for one in texts for text in np.unique(one).tolist()})
    known = fitted.get("class_names") if isinstance(fitted, Mapping) else None
    if known is None:
        return tuple(found)
    if unknown := [text for text in found if text not in set(known)]:
        raise UserError(f"{name}: targets name {listed(unknown)}, which the values to take over do not have")
    return tuple(known)


def _labels(name: str, targets: Any, num_classes: int, class_names: tuple[str, ...] | None) -> np.ndarray:
    if isinstance(targets, Mapping):
        raise UserError(f"{name}: num_classes={num_classes} needs an array of integer targets, they are a dict")
    if class_names is not None:
        number = {text: index for index, text in enumerate(class_names)}
        return np.array([number[text] for text in targets.tolist()], np.int32)
    if targets.dtype.kind in "iu":
        return targets
    whole_numbers = targets.dtype.kind == "b" or (targets.dtype.kind == "f" and bool((targets % 1 == 0).all()))
    if not whole_numbers:
        raise UserError(f"{name}: num_classes={num_classes} needs integer targets, they are not")
    return targets.astype(np.int64)


def _split(
    name: str, parts: dict[str, dict[str, Any]], seed: int, *, stratified: bool, validation: float, test: float
) -> tuple[dict[str, Any], dict[str, range]]:
    """Put rows in the order train, validation, test."""
    train = parts["train"]
    num_rows = len(next(leaves(train))[1])
    splits = cut(num_rows, validation=validation, test=test)
    stratified = stratified and train["targets"].ndim == 1
    order = stratified_order(train["targets"], seed) if stratified else random_order(num_rows, seed)
    trees = [map_leaves(lambda array: array[order], train)]
    for split in ("validation", "test"):
        if split in parts:
            rows = len(next(leaves(parts[split]))[1])
            splits[split] = range(num_rows, num_rows + rows)
            num_rows += rows
            trees.append(parts[split])
    return {key: _concatenate([tree[key] for tree in trees], f"{name}: {key}") for key in train}, splits


def _compact(array: np.ndarray, where: str) -> np.ndarray:
    """Return numbers in a type of the device: float64 as float32, larger integers as int32."""
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} have dtype {array.dtype}, expected numbers or booleans")
    dtype = _compact_dtype(array.dtype)
    check_kept_apart(array, dtype, where)
    return array.astype(dtype, copy=False)


def _compact_dtype(dtype: np.dtype) -> np.dtype:
    if dtype.kind in "iu" and (dtype.itemsize == 8 or dtype == np.uint32):
        return np.dtype(np.int32)
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _concatenate(trees: list[Any], where: str) -> Any:
    if len(trees) == 1:
        return trees[0]
    if any(isinstance(tree, Mapping) for tree in trees):
        if not all(isinstance(tree, Mapping) and set(tree) == set(trees[0]) for tree in trees):
            raise UserError(f"{where}: held-out arrays are named differently from those to train on")
        return {key: _concatenate([tree[key] for tree in trees], f"{where} {key!r}") for key in trees[0]}
    if len({(tree.shape[1:], _compact_dtype(tree.dtype)) for tree in trees}) > 1:
        came = ", ".join(f"{_compact_dtype(tree.dtype)}{list(tree.shape)}" for tree in trees)
        raise UserError(f"{where}: train and held-out arrays differ in type or shape of a row: {came}")
    return np.concatenate(trees)
