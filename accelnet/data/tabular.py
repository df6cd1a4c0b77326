"""Tables: numbers, labels or classes from the columns of a file or a frame."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from accelnet import arguments
from accelnet.characters import visible
from accelnet.data.cells import shown_name
from accelnet.data.columns import STANDARDIZED, Column, Fill, describe, input_names, inputs_of, numbers_of
from accelnet.data.dataset import Data
from accelnet.data.files import COMPRESSED_SUFFIXES, package_path
from accelnet.data.fills import fills_of
from accelnet.data.fitted import checked
from accelnet.data.normalize import fit, standardize
from accelnet.data.precision import offsets_of
from accelnet.data.table_columns import Roles, choose_columns
from accelnet.data.table_parts import divide, read_parts, without_missing
from accelnet.data.table_source import open_source
from accelnet.data.table_targets import Task, check_classes, check_task, read_targets
from accelnet.data.tables import Table
from accelnet.errors import UserError
from accelnet.wording import listed

# Worst to best, from the description that ggplot2 gives of the data.
DIAMONDS_ORDERS = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": tuple("JIHGFED"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
Missing = Literal["error", "mean", "drop"]
Unknown = Literal["error", "ignore"]


def table(
    source: Any,
    *,
    target: str,
    task: Task | None = None,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    ordinal: Mapping[str, Sequence[str]] | None = None,
    log_target: bool = False,
    weights: str | None = None,
    missing: Missing = "error",
    unknown: Unknown = "error",
    split: str | None = None,
    stratify: str | None = None,
    groups: str | None = None,
    time: str | None = None,
    validation: Any = None,
    test: Any = None,
    seed: int = 0,
    name: str | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    r"""Load a table: a file, a data frame, or columns or rows in memory.

    A column of numbers is one input, and so is one of booleans, as 0 and 1. Dates and times are seconds since 1970 (in
    UTC), durations seconds. A column of names is an input of 0 or 1 for each name that training rows have, in
    alphabetical order; blanks around a name are no part of it. Text of more than 100 different values, or of one for
    most rows, is refused unless it is named `categorical`. A CSV file has no types: text that spells numbers, true and
    false, or times as ISO 8601 writes them, is taken for these.

    Args:
        source: Path of a file: CSV with a header line (columns separated by commas, or by semicolons, tabs or bars
            where the header has no comma), Parquet, Arrow or Feather, or JSON (a row a line, an array of rows, or an
            object of columns); text may be compressed by gzip, bzip2, Zstandard or LZ4. Or a frame of pandas, polars or
            pyarrow, a dict of columns, or a list of rows as dicts.
        target: Column to predict.
        task: Task. "numbers" standardizes the target; "labels" keeps 0 and 1 as they are, for `sigmoid_cross_entropy`;
            "classes" numbers the names (or numbers) that occur, for `softmax_cross_entropy`. None: "classes" of text,
            booleans and dictionaries, "labels" of a column of the numbers 0 and 1 alone, else "numbers", which a line
            says where they are few whole numbers.
        features: Columns to predict it from; None for all that are for nothing else, without columns that have no name
            or are the index of a frame of pandas.
        categorical: Those of them that hold names, whatever they look like.
        ordinal: Those of them that hold names with an order, as {column: names in that order}; each becomes
            one input, the position of the name.
        log_target: Predict the natural logarithm of the target, which must be numbers above 0.
        weights: Column that says how much each row counts, at least 0; None for 1.
        missing: What to do about missing values of the features. "error" refuses them, and "drop" leaves out
            such rows, those without a target too. "mean" puts the mean of the training rows in their place (of names, 0
            for each), and where training rows have them adds an input, 1 where the value is missing.
        unknown: What to do about a name that no training row has. "error" refuses it; "ignore" gives 0 for each name.
        split: Column that names the split of each row, such as "train" and "test". None to hold out rows at random.
        stratify: Column of which every split gets its share. None: the target, of classes.
        groups: Column that names a group, such as a patient: no group is in two splits.
        time: Column of times or numbers: the latest rows are the test, those before them validation.
        validation: Fraction of the rows held out at random (of classes, stratified), 0 for none; or a source of its own
            with these columns. None: 0.1, or with `split` none.
        test: The same.
        seed: Seed of the rows held out, at least 0.
        name: Name of the data; None for the file's name.
        fitted: `data.fitted` of an earlier run, to take over its task, columns, names, means and deviations.

    Returns:
        Data with inputs float32 [N, inputs] in the order train, validation, test, and targets float32 [N, 1], or int32
        [N] of classes. Numbers, times and positions are standardized in `prepare`, the (logarithm of the) target in the
        arrays, both with mean and deviation of the training rows. `info["target"]` is what `undo_target` needs,
        `info["input_names"]` names the inputs, `info["class_names"]` the classes, which are those of all rows.

    Raises:
        UserError: if the source cannot be read, is empty or lacks a column, a column is missing in all rows, or the
            target is constant; with the line or row, if there are more or fewer fields than in the header, or a value
            is missing, no finite number, not one of the names, or not above 0 where it must be.

    Example:
        >>> rows = {"size": [1, 2] * 10, "colour": ["red", "blue"] * 10, "price": [10.0, 20.0] * 10}
        >>> data = table(rows, target="price")
        >>> data.info["input_names"], data.num_examples("train")
        (('size', 'colour=blue', 'colour=red'), 16)
    """
    known = {} if fitted is None else checked(fitted)
    arguments.flag("log_target", log_target)
    arguments.word("missing", missing, get_args(Missing))
    arguments.word("unknown", unknown, get_args(Unknown))
    check_task(task)
    opened = open_source(source, "source")
    others = {"weights": weights, "split": split, "stratify": stratify, "groups": groups, "time": time}
    roles = choose_columns(opened, target, features, categorical, ordinal, others, known.get("columns"))
    parts = read_parts(opened, roles, task or known.get("task"), {"validation": validation, "test": test})
    if missing == "drop":
        parts = without_missing(parts, roles)
    rows = parts.rows
    kind, targets, class_names = read_targets(rows, target, task, log_target, known)
    columns = {"targets": targets} | ({"weights": _weights(rows, weights)} if weights is not None else {})
    name = _name(source) if name is None else arguments.word("name", name)
    arrays, splits = divide(parts, columns, seed, name, kind == "classes")
    order, train = arrays["inputs"], slice(len(splits["train"]))
    if class_names is not None and fitted is None:
        check_classes(rows, target, targets, order[train], class_names)
    fill = Fill(missing == "mean", unknown == "ignore")
    described = _describe(rows, roles, order[train], fill)
    inputs, offset = _inputs(rows, described, order)
    own, coding = _fit_inputs(inputs[train], described, offset)
    arrays["inputs"] = inputs
    where = f"{rows.label}: {shown_name(target)}"
    if fitted is None and (arrays["targets"][train] == arrays["targets"][0]).all():
        raise UserError(f"{where} is the same in all training rows: nothing to predict")
    if kind == "numbers":
        coding["targets"] = _fit_targets(arrays, train, where)
        own["target"] = {**coding["targets"], "log": log_target}
    info: dict[str, Any] = {"input_names": input_names(described)}
    if class_names is not None:
        own["class_names"], info["num_classes"] = class_names, len(class_names)
    own |= {"task": kind, "columns": described}
    if (fills := fills_of(own)) is not None:
        coding["inputs"] = coding.get("inputs", {}) | {"fills": fills.values}
    data = Data(name, arrays, splits, standardize, info=info, fitted=own, coding=coding)
    return data if fitted is None else data.refitted(fitted)


def _weights(rows: Table, name: str) -> np.ndarray:
    values = numbers_of(name, rows.column(name, False), "number", rows.place)
    if np.isnan(values).any():
        raise UserError(f"{rows.place(int(np.argmax(np.isnan(values))))}: {shown_name(name)}, the weight, is missing")
    return values.astype(np.float32)


def _describe(rows: Table, roles: Roles, train: np.ndarray, fill: Fill) -> tuple[Column, ...]:
    """Describe the features as the training rows have them; as an earlier run had them, where it is known."""
    if roles.known is not None:
        return tuple(roles.known)
    described, constant = [], []
    for name in roles.features:
        kind = "categories" if name in roles.categorical else "positions" if name in roles.ordinal else None
        column, same = describe(name, kind, roles.ordinal.get(name, ()), rows, train, fill)
        described.append(column)
        constant += [name] if same else []
    if constant:
        warnings.warn(
            visible(f"{rows.label}: the same in all training rows, so that they tell nothing: {listed(constant)}"),
            stacklevel=3,  # the caller of table
        )
    return tuple(described)


def _inputs(rows: Table, columns: Sequence[Column], order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of rows in an order, float32 [N, inputs], and the offset that was subtracted from each."""
    names = input_names(columns)
    try:
        inputs, offsets = np.empty((len(order), len(names)), np.float32), np.zeros(len(names))
    except MemoryError:
        size = len(order) * len(names) * 4 / 2**30
        raise UserError(
            f"{rows.label}: {len(order)} rows of {len(names)} inputs take {size:.0f} GiB, more than there is"
        ) from None
    index = 0
    for column in columns:
        for values in inputs_of(column, rows):
            if values.dtype != bool:
                (offsets[index],) = offsets_of(values, rows.label, (names[index],))
                values = values - offsets[index] if offsets[index] else values
            inputs[:, index] = values[order]
            index += 1
    return inputs, offsets


def _fit_inputs(
    train: np.ndarray, columns: Sequence[Column], offset: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `standardize` needs of the training rows, and the coding."""
    fitted = fit(train, offset)
    # Names, booleans, and whether a value is missing, stay 0 and 1.
    scaled = [
        column["kind"] in STANDARDIZED and name == column["name"]
        for column in columns
        for name in input_names([column])
    ]
    own = {"mean": np.where(scaled, fitted["mean"], 0.0), "std": np.where(scaled, fitted["std"], 1.0)}
    return own, {"inputs": {"offset": offset}} if offset.any() else {}


def _fit_targets(arrays: dict[str, Any], train: slice, where: str) -> dict[str, float]:
    """Standardize the targets in float64; return the mean and the deviation of the training rows."""
    offset = offsets_of(arrays["targets"], where)
    statistics = fit(arrays["targets"][train] - offset, offset)
    arrays["targets"] = ((arrays["targets"] - statistics["mean"]) / statistics["std"]).astype(np.float32)
    return {key: value.item() for key, value in statistics.items()}


def _name(source: Any) -> str:
    if not isinstance(source, str | os.PathLike):
        return "table"
    path = Path(source)
    return Path(path.stem).stem if path.suffix in COMPRESSED_SUFFIXES else path.stem


def diamonds(path: str | os.PathLike[str] | None = None, seed: int = 0) -> Data:
    """Load 53,940 diamonds: the logarithm of the price from weight, measures, cut, colour and clarity.

    Args:
        path: CSV file; None for the one in the package plotnine.
        seed: Seed of the validation and test rows, a tenth each.

    Returns:
        Data as of `table`, with 9 inputs, the three grades by their order.

    Raises:
        UserError: if plotnine is not installed, or as of `table`.

    Source: the data set `diamonds` of H. Wickham, ggplot2.
    """
    if path is None:
        # Not imported: plotnine needs matplotlib and more, its file needs nothing.
        missing = "diamonds is part of plotnine, which is not installed: pip install --no-deps plotnine"
        path = package_path("plotnine", "data/diamonds.csv", missing)
    return table(path, target="price", ordinal=DIAMONDS_ORDERS, log_target=True, seed=seed, name="diamonds")
