"""Tables: numbers, labels or classes from the columns of a CSV file."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accelnet import arguments
from accelnet.data.columns import Column, Task, encode_columns, input_names, names_of, read_targets, shown_name
from accelnet.data.csv_file import NO_NAME, Table, read_table
from accelnet.data.dataset import Data
from accelnet.data.files import package_path
from accelnet.data.fitted import checked
from accelnet.data.normalize import fit, standardize
from accelnet.data.precision import offsets_of
from accelnet.data.splits import split_rows
from accelnet.errors import UserError
from accelnet.terminal import visible
from accelnet.wording import did_you_mean, listed, shown

# Worst to best, from the description that ggplot2 gives of the data.
DIAMONDS_ORDERS = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": tuple("JIHGFED"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}


def csv(
    path: str | os.PathLike[str],
    *,
    target: str,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    ordinal: Mapping[str, Sequence[str]] | None = None,
    task: Task | None = None,
    log_target: bool = False,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    name: str | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    r"""Load a CSV file with a header line.

    Args:
        path: File, UTF-8, plain or `.gz`; columns separated by commas, or by semicolons or tabs where the header
            has no comma.
        target: Column to predict.
        features: Columns to predict it from; None for all others that have a name.
        categorical: Those of them that hold names; each becomes one input of 0 or 1 per name that occurs
            in the file, in alphabetical order. Spaces around a name are no part of it.
        ordinal: Those of them that hold names with an order, as {column: names in that order}; each becomes
            one input, the position of the name.
        task: Task. "numbers" standardizes the target; "labels" keeps 0 and 1 as they are, for `sigmoid_cross_entropy`;
            "classes" numbers the names (or numbers) that occur, for `softmax_cross_entropy`. None: "classes" of a
            column without any number, "labels" of one that holds 0 and 1 alone, else "numbers".
        log_target: Predict the natural logarithm of the target, which must be numbers above 0.
        validation: Fraction of the rows held out at random (of classes, stratified), 0 for none.
        test: The same.
        seed: Seed of the rows held out, at least 0.
        name: Name of the data; None for the file's name.
        fitted: `data.fitted` of an earlier run, to take over its task, columns, names, means and deviations.

    Returns:
        Data with inputs float32 [N, inputs] in the order train, validation, test, and targets float32 [N, 1], or int32
        [N] of classes. Numbers and positions are standardized in `prepare`, the (logarithm of the) target in the
        arrays, both with mean and deviation of the training rows. `info["target"]` is what `undo_target` needs,
        `info["input_names"]` names the inputs, `info["class_names"]` the classes.

    Raises:
        UserError: if the file is missing or empty or lacks a column, or the target is constant; with the line, if a row
            has more or fewer fields than the header, or a value is not a finite number, not one of the names, or not
            above 0 where it must be.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.csv"
        ...     _ = path.write_text("size,colour,price\n" + "1,red,10\n2,blue,20\n" * 10)
        ...     data = csv(path, target="price", categorical=["colour"])
        >>> data.info["input_names"], data.num_examples("train")
        (('size', 'colour=blue', 'colour=red'), 16)
    """
    known = {} if fitted is None else checked(fitted)
    arguments.flag("log_target", log_target)
    table = read_table(arguments.path("path", path))
    columns = _columns(table, arguments.word("target", target), features, categorical, ordinal, known.get("columns"))
    inputs = encode_columns(columns, table.columns, table.place)
    kind, targets, class_names = read_targets(table, target, task, log_target, known)
    name = Path(table.path.name.removesuffix(".gz")).stem if name is None else arguments.word("name", name)
    parts, by_class = {"train": {"inputs": inputs, "targets": targets}}, kind == "classes"
    arrays, splits = split_rows(parts, seed, name=name, stratify=by_class, validation=validation, test=test)
    train = slice(len(splits["train"]))
    own, coding = _fit_inputs(table, columns, arrays, train)
    if kind == "numbers":
        if fitted is None and np.ptp(arrays["targets"][train]) == 0:
            raise UserError(f"{table.path}: {shown_name(target)} is the same in all training rows: nothing to predict")
        coding["targets"] = _fit_targets(arrays, train, f"{table.path}, {shown_name(target)}")
        own["target"] = {**coding["targets"], "log": log_target}
    info: dict[str, Any] = {"input_names": input_names(columns)}
    if class_names is not None:
        own["class_names"], info["num_classes"] = class_names, len(class_names)
    own |= {"task": kind, "columns": columns}
    data = Data(name, arrays, splits, standardize, info=info, fitted=own, coding=coding)
    return data if fitted is None else data.refitted(fitted)


def _fit_inputs(
    table: Table, columns: Sequence[Column], arrays: dict[str, Any], train: slice
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the inputs float32; return what `standardize` needs of the training rows, and the coding."""
    offset = offsets_of(arrays["inputs"], f"{table.path}", input_names(columns))
    arrays["inputs"] = (arrays["inputs"] - offset).astype(np.float32)
    fitted = fit(arrays["inputs"][train], offset)
    # Names stay 0 and 1.
    kept = np.array([column["kind"] == "categories" for column in columns for _ in input_names([column])])
    own = {"mean": np.where(kept, 0.0, fitted["mean"]), "std": np.where(kept, 1.0, fitted["std"])}
    return own, {"inputs": {"offset": offset}} if offset.any() else {}


def _fit_targets(arrays: dict[str, Any], train: slice, where: str) -> dict[str, float]:
    """Standardize the targets in float64; return the mean and the deviation of the training rows."""
    offset = offsets_of(arrays["targets"], where)
    statistics = fit(arrays["targets"][train] - offset, offset)
    arrays["targets"] = ((arrays["targets"] - statistics["mean"]) / statistics["std"]).astype(np.float32)
    return {key: value.item() for key, value in statistics.items()}


def diamonds(path: str | os.PathLike[str] | None = None, seed: int = 0) -> Data:
    """Load 53,940 diamonds: the logarithm of the price from weight, measures, cut, colour and clarity.

    Args:
        path: CSV file; None for the one in the package plotnine.
        seed: Seed of the validation and test rows, a tenth each.

    Returns:
        Data as of `csv`, with 9 inputs, the three grades by their order.

    Raises:
        UserError: if plotnine is not installed, or as of `csv`.

    Source: the data set `diamonds` of H. Wickham, ggplot2.
    """
    if path is None:
        # Not imported: plotnine needs matplotlib and more, its file needs nothing.
        missing = "diamonds is part of plotnine, which is not installed: pip install --no-deps plotnine"
        path = package_path("plotnine", "data/diamonds.csv", missing)
    return csv(path, target="price", ordinal=DIAMONDS_ORDERS, log_target=True, seed=seed, name="diamonds")


def _columns(
    table: Table,
    target: str,
    features: Sequence[str] | None,
    categorical: Sequence[str],
    ordinal: Mapping[str, Sequence[str]] | None,
    known: Sequence[Column] | None,
) -> tuple[Column, ...]:
    """Describe the columns to predict from, in their order; as an earlier run had them, where it is known."""
    header = list(table.columns)
    ordinal = {} if ordinal is None else ordinal
    if not isinstance(ordinal, Mapping):
        raise UserError(f"ordinal is {shown(ordinal)}, expected a dict of columns and their names in order")
    orders = {}
    for column, names in ordinal.items():
        where = f"ordinal[{column!r}]"
        orders[column] = arguments.names(where, [one.strip() for one in arguments.names(where, names)])
    categories = arguments.names("categorical", categorical)
    if features is None:
        chosen = [column["name"] for column in known] if known else _default_features(table, target)
    else:
        chosen = list(arguments.names("features", features))
    for column in (target, *chosen, *categories, *orders):
        if column not in header:
            raise UserError(
                f"{table.path} has no column {shown(column)}{did_you_mean(column, header) or '.'} "
                f"It has {listed(header)}"
            )
    for column in (*categories, *orders):
        if column not in chosen:
            raise UserError(
                f"column {shown(column)} is named categorical or ordinal, but is not among the features "
                f"{listed(chosen)}"
            )
        if column in categories and column in orders:
            raise UserError(f"column {shown(column)} is named categorical and ordinal: choose one")
    if target in chosen:
        raise UserError(f"the target {shown(target)} is also among the features: leave it out of them")
    if not chosen:
        raise UserError(f"{table.path}: there is no column to predict {shown(target)} from, expected one at least")
    if known is not None:
        return _known_columns(chosen, categories, orders, known)

    def describe(column: str) -> Column:
        if column in categories:
            kind, names = "categories", names_of(column, table.columns[column], table.place)
        else:
            kind, names = ("positions", orders[column]) if column in orders else ("number", ())
        return {"name": column, "kind": kind, "names": names}

    return tuple(map(describe, chosen))


def _default_features(table: Table, target: str) -> list[str]:
    others = [column for column in table.columns if column != target]
    nameless = [column for column in others if column.startswith(NO_NAME)]
    if nameless:
        warnings.warn(
            visible(
                f"{table.path}: {listed(nameless)} left out: columns without a name, such as the index that pandas "
                "writes; to predict from them, name them in features"
            ),
            stacklevel=4,  # the caller of csv
        )
    return [column for column in others if column not in nameless]


def _known_columns(
    chosen: list[str], categories: Sequence[str], orders: Mapping[str, tuple[str, ...]], known: Sequence[Column]
) -> tuple[Column, ...]:
    """Return the columns of an earlier run, if what is asked for now does not contradict them."""
    kinds = {column["name"]: column["kind"] for column in known}
    wanted = dict.fromkeys(categories, "categories") | dict.fromkeys(orders, "positions")
    if chosen != list(kinds) or any(kinds[column] != kind for column, kind in wanted.items()):
        raise UserError(
            f"features, categorical or ordinal differ from the columns of the values to take over, {listed(kinds)}: "
            f"leave these arguments out"
        )
    for column in known:
        if column["name"] in orders and tuple(column["names"]) != orders[column["name"]]:
            raise UserError(
                f"ordinal[{column['name']!r}] differs from the names to take over, "
                f"{listed(column['names'])}: leave it out"
            )
    return tuple(known)
