"""Tables: regression on the columns of a CSV file."""

import csv as csv_module
import math
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.data.dataset import Data
from accelnet.data.normalize import make_standardize, moments
from accelnet.data.splits import cut, random_order
from accelnet.errors import UserError

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
    log_target: bool = False,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    name: str | None = None,
) -> Data:
    r"""Load a CSV file with a header line for regression.

    Args:
        path: the file, UTF-8, columns separated by commas.
        target: column to predict, numbers.
        features: columns to predict it from; None for all others.
        categorical: those of them that hold names; each becomes one input of 0 or 1 per name that occurs
            in the file, in alphabetical order.
        ordinal: those of them that hold names with an order, as {column: names in that order}; each becomes
            one input, the position of the name.
        log_target: predict the natural logarithm of the target, which must be above 0.
        validation: fraction of the rows held out at random, 0 for none.
        test: the same.
        seed: of the rows held out, at least 0.
        name: what the data is called; None for the file's name.

    Returns:
        Data with inputs float32 [N, inputs] and targets float32 [N, 1] in the order train, validation, test.
        Numbers and positions are standardized in `prepare`, the (logarithm of the) target in the arrays, both
        with mean and deviation of the training rows. `info["target"]` is what `undo_target` needs,
        `info["input_names"]` names the inputs.

    Raises:
        UserError: if the file is missing or empty or lacks a column; with the line, if a row has more or
            fewer fields than the header, or a value is not a finite number, not one of the names, or not
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
    path, ordinal = Path(path), dict(ordinal or {})
    header, rows, lines = _read(path)
    features = list(features) if features is not None else [column for column in header if column != target]
    for column in (target, *features, *categorical, *ordinal):
        if column not in header:
            close = get_close_matches(column, header, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{path} has no column {column!r}{hint} It has {', '.join(header)}")
    for column in (*categorical, *ordinal):
        if column not in features:
            raise UserError(
                f"column {column!r} is named categorical or ordinal, but is not among the features {features}"
            )
    if target in features:
        raise UserError(f"the target {target!r} is also among the features: leave it out of them")

    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    values, names, standardized = [], [], []
    for column in features:
        texts = columns[column]
        if column in categorical:
            for category in sorted(set(texts)):
                values.append([text == category for text in texts])
                names.append(f"{column}={category}")
        elif column in ordinal:
            values.append(_positions(path, column, texts, lines, ordinal[column]))
            names.append(column)
        else:
            values.append(_numbers(path, column, texts, lines))
            names.append(column)
        standardized += [column not in categorical] * (len(names) - len(standardized))
    inputs = np.array(values, dtype=np.float32).T
    targets = np.array(_numbers(path, target, columns[target], lines))
    if log_target:
        if targets.min() <= 0:
            line = lines[int(np.argmin(targets))]
            raise UserError(f"{path}, line {line}: {target} is {targets.min()}, expected above 0 for log_target=True")
        targets = np.log(targets)

    order, splits = random_order(len(targets), seed), cut(len(targets), validation=validation, test=test)
    inputs, targets = inputs[order], targets[order][:, None]
    num_train = len(splits["train"])
    mean, std = moments(inputs[:num_train])
    mean, std = (
        np.where(standardized, mean, 0).astype(np.float32),
        np.where(standardized, std, 1).astype(np.float32),
    )
    target_mean, target_std = moments(targets[:num_train])
    undo = {"mean": float(target_mean[0]), "std": float(target_std[0]), "log": log_target}
    targets = ((targets - undo["mean"]) / undo["std"]).astype(np.float32)
    info = {"target": undo, "input_names": tuple(names)}
    return Data(
        name or path.stem,
        {"inputs": inputs, "targets": targets},
        splits,
        make_standardize(mean, std),
        info=info,
    )


def undo_target(values: Any, target: Mapping[str, Any]) -> np.ndarray:
    """Turn standardized targets or predictions back into what the file holds.

    Args:
        values: array of any shape.
        target: `info["target"]` of the data.

    Returns:
        float64 of that shape: values * std + mean, and its exponential where the target was a logarithm.

    Example:
        >>> undo_target([0.0, 1.0], {"mean": 10.0, "std": 2.0, "log": False}).tolist()
        [10.0, 12.0]
    """
    values = np.asarray(values, dtype=np.float64) * target["std"] + target["mean"]
    return np.exp(values) if target["log"] else values


def diamonds(path: str | os.PathLike[str] | None = None, seed: int = 0) -> Data:
    """Load 53,940 diamonds: the logarithm of the price from weight, measures, cut, colour and clarity.

    Args:
        path: the CSV file; None for the one in the package plotnine.
        seed: of the validation and test rows, a tenth each.

    Returns:
        Data as of `csv`, with 9 inputs, the three grades by their order.

    Raises:
        UserError: if plotnine is not installed, or as of `csv`.

    Source: the data set `diamonds` of H. Wickham, ggplot2.
    """
    if path is None:
        # Not imported: plotnine needs matplotlib and more, its file needs nothing.
        spec = find_spec("plotnine")
        path = Path(next(iter(spec.submodule_search_locations or [""]))) / "data/diamonds.csv" if spec else None
        if path is None or not path.is_file():
            raise UserError("diamonds is part of plotnine, which is not installed: pip install --no-deps plotnine")
    return csv(path, target="price", ordinal=DIAMONDS_ORDERS, log_target=True, seed=seed, name="diamonds")


def _read(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv_module.reader(file, strict=True)
            header = [column.strip() for column in next(reader, [])]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, expected {len(header)} as in the header"
                    )
                rows.append(row)
                lines.append(reader.line_num)
    except OSError as error:
        raise UserError(f"CSV file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: convert it") from None
    except csv_module.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        raise UserError(f"{path} is empty: expected a header line and rows")
    if len(set(header)) < len(header):
        raise UserError(f"{path} has two columns of one name: {', '.join(header)}")
    return header, rows, lines


def _numbers(path: Path, column: str, texts: Sequence[str], lines: list[int]) -> list[float]:
    numbers = []
    for text, line in zip(texts, lines, strict=True):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        # The largest float32 is 3.4e38.
        if not abs(number) < 3.4e38:
            hint = "" if text.strip() else " (drop or fill such rows)"
            raise UserError(
                f"{path}, line {line}: {column} is {text!r}, expected a finite number{hint}; "
                f"columns of names must be given as categorical or ordinal"
            )
        numbers.append(number)
    return numbers


def _positions(path: Path, column: str, texts: Sequence[str], lines: list[int], names: Sequence[str]) -> list[int]:
    position = {name: index for index, name in enumerate(names)}
    for text, line in zip(texts, lines, strict=True):
        if text not in position:
            raise UserError(f"{path}, line {line}: {column} is {text!r}, expected one of {', '.join(names)}")
    return [position[text] for text in texts]
