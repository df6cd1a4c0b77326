"""Data from arrays: the user's own, an `.npz` file, and the four rows of XOR."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from accelnet.data.arrays import map_leaves
from accelnet.data.dataset import Data
from accelnet.data.normalize import cast_targets, make_standardize, moments
from accelnet.data.splits import cut, random_order, stratified_order
from accelnet.errors import UserError

HeldOut = float | tuple[Any, Any]


def from_arrays(
    inputs: Any,
    targets: Any,
    *,
    name: str = "arrays",
    validation: HeldOut = 0.1,
    test: HeldOut = 0.1,
    seed: int = 0,
    normalize: bool = True,
    num_classes: int | None = None,
) -> Data:
    """Make a data set of arrays.

    Args:
        inputs: array [N, ...], or a dict of such arrays, which are the model's keyword arguments.
        targets: array [N, ...]: integers for classes, floats for regression.
        name: what the data is called in results.
        validation: fraction of the rows to hold out at random (stratified where `num_classes` is given), 0
            for none; or a pair (inputs, targets) of the user's own, and then nothing is taken from the rows.
        test: the same.
        seed: of the rows held out, at least 0.
        normalize: standardize the last axis (features, channels) of float or uint8 inputs with mean and
            deviation of the training rows. Other integers, which are taken for tokens, and dicts are left
            as they are; for tokens in uint8 pass False.
        num_classes: targets must be integers below it.

    Returns:
        Data in the order train, validation, test. float64 becomes float32 and int64 becomes int32.

    Raises:
        UserError: if numbers of rows differ, values are NaN or infinite or too large, labels are out of
            range, or no training row is left.

    Example:
        >>> data = from_arrays(np.arange(20.0)[:, None], np.arange(20) % 2, num_classes=2, test=0.2)
        >>> labels = data.arrays["targets"]
        >>> {split: labels[rows.start : rows.stop].mean().item() for split, rows in data.splits.items()}
        {'train': 0.5, 'validation': 0.5, 'test': 0.5}
    """
    inputs, targets = _compact(inputs, f"{name}: inputs"), _compact(targets, f"{name}: targets")
    num_rows = _num_rows(name, inputs, targets)
    if num_classes is not None and (isinstance(targets, dict) or targets.dtype.kind not in "iu"):
        raise UserError(f"{name}: num_classes={num_classes} needs integer targets, they are not")
    stratified = num_classes is not None and targets.ndim == 1
    order = stratified_order(targets, seed) if stratified else random_order(num_rows, seed)
    splits = cut(
        num_rows,
        validation=validation if isinstance(validation, int | float) else 0,
        test=test if isinstance(test, int | float) else 0,
    )
    parts = [(map_leaves(lambda x: x[order], inputs), map_leaves(lambda x: x[order], targets))]
    for split, held_out in (("validation", validation), ("test", test)):
        if isinstance(held_out, int | float):
            continue
        part = tuple(_compact(one, f"{name}: {split}") for one in held_out)
        if len(part) != 2:
            raise UserError(f"{name}: {split} has {len(part)} parts, expected a fraction or (inputs, targets)")
        rows = _num_rows(f"{name}, {split}", *part)
        splits[split] = range(num_rows, num_rows + rows)
        num_rows += rows
        parts.append(part)
    arrays = {
        key: _concatenate([part[index] for part in parts], f"{name}: {key}")
        for index, key in enumerate(("inputs", "targets"))
    }
    prepare = _cast
    values = arrays["inputs"]
    if normalize and isinstance(values, np.ndarray) and (values.dtype.kind == "f" or values.dtype == np.uint8):
        prepare = make_standardize(*moments(values[: len(splits["train"])]))
    return Data(name, arrays, splits, prepare, info={} if num_classes is None else {"num_classes": num_classes})


def npz(
    path: str | os.PathLike[str],
    *,
    inputs: str = "inputs",
    targets: str = "targets",
    validation: float | tuple[str, str] = 0.1,
    test: float | tuple[str, str] = 0.1,
    seed: int = 0,
    normalize: bool = True,
    num_classes: int | None = None,
) -> Data:
    """Load a data set from an `.npz` file of numbers (pickled objects are refused).

    Args:
        path: the file.
        inputs: name of the array of inputs in it.
        targets: name of the array of targets.
        validation: fraction of the rows, or names of an array of inputs and one of targets.
        test: the same; `npz(path, inputs="x_train", targets="y_train", test=("x_test", "y_test"))`.
        seed: as of `from_arrays`.
        normalize: as of `from_arrays`.
        num_classes: as of `from_arrays`.

    Returns:
        Data as of `from_arrays`, named after the file.

    Raises:
        UserError: if the file is missing, damaged or lacks an array, or as of `from_arrays`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", inputs=np.zeros((10, 2)), targets=np.zeros(10))
        ...     npz(f"{folder}/a.npz").splits["train"]
        range(0, 8)
    """
    wanted = [inputs, targets]
    for held_out in (validation, test):
        wanted += [] if isinstance(held_out, int | float) else list(held_out)
    arrays = {}
    try:
        # Empty files, .npy files and pickles are no zip files.
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not an .npz file or truncated: write it with numpy.savez")
        with np.load(path, allow_pickle=False) as file:
            for key in wanted:
                if key not in file.files:
                    raise UserError(f"{path} has arrays {', '.join(file.files) or 'none'}, expected one {key!r}")
                arrays[key] = file[key]
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a readable .npz file of numbers: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return from_arrays(
        arrays[inputs],
        arrays[targets],
        name=Path(path).stem,
        validation=validation if isinstance(validation, int | float) else tuple(arrays[key] for key in validation),
        test=test if isinstance(test, int | float) else tuple(arrays[key] for key in test),
        seed=seed,
        normalize=normalize,
        num_classes=num_classes,
    )


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


def _cast(batch: Any) -> Any:
    targets = batch["targets"]
    return batch if isinstance(targets, Mapping) else {**batch, "targets": cast_targets(jnp.asarray(targets))}


def _compact(tree: Any, where: str) -> Any:
    def compact(values: Any) -> np.ndarray:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise UserError(f"{where} have dtype {array.dtype}, expected numbers or booleans")
        if array.dtype == np.float64:
            low, high = (array.min(), array.max()) if array.size else (0, 0)
            if max(abs(low), abs(high)) > np.finfo(np.float32).max and np.isfinite([low, high]).all():
                raise UserError(f"{where} range from {low} to {high}, which float32 cannot hold: rescale them")
            return array.astype(np.float32)
        if array.dtype in (np.int64, np.uint64, np.uint32):
            low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
            if low < -(2**31) or high >= 2**31:
                raise UserError(f"{where} range from {low} to {high}, which int32 cannot hold: renumber them")
            return array.astype(np.int32)
        return array

    return map_leaves(compact, tree)


def _num_rows(name: str, inputs: Any, targets: Any) -> int:
    shapes: list[tuple[int, ...]] = []
    map_leaves(lambda array: shapes.append(array.shape), {"inputs": inputs, "targets": targets})
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise UserError(f"{name}: shapes {', '.join(map(str, shapes))} have unequal numbers of rows")
    return shapes[0][0]


def _concatenate(trees: list[Any], where: str) -> Any:
    if len(trees) == 1:
        return trees[0]
    if any(isinstance(tree, Mapping) for tree in trees):
        if not all(isinstance(tree, Mapping) and set(tree) == set(trees[0]) for tree in trees):
            raise UserError(f"{where}: held-out arrays are named differently from those to train on")
        return {key: _concatenate([tree[key] for tree in trees], f"{where} {key!r}") for key in trees[0]}
    if len({(tree.shape[1:], tree.dtype) for tree in trees}) > 1:
        came = ", ".join(f"{tree.dtype}{list(tree.shape)}" for tree in trees)
        raise UserError(f"{where}: train and held-out arrays differ in type or shape of a row: {came}")
    return np.concatenate(trees)
