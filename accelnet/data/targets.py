"""The column of a table to predict: numbers, labels of 0 and 1, or classes."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from accelnet.arguments import listed, shown
from accelnet.data.columns import names_of, numbers, shown_name, to_number
from accelnet.data.csv_file import Table
from accelnet.data.normalize import fit
from accelnet.data.precision import offsets_of
from accelnet.errors import UserError

Task = Literal["numbers", "labels", "classes"]


def task_of(texts: Sequence[str]) -> Task:
    """Return the task that a column to predict suggests: "classes" of names, "labels" of 0 and 1, else "numbers".

    Example:
        >>> task_of(["red", "blue"]), task_of(["0", "1.0"]), task_of(["0", "1", "2"])
        ('classes', 'labels', 'numbers')
    """
    found = [to_number(text) for text in texts]
    # An empty field is a number that is missing.
    if not any(number is not None or not text.strip() for number, text in zip(found, texts, strict=True)):
        return "classes"
    return "labels" if set(found) == {0.0, 1.0} else "numbers"


def classes_of(target: str, table: Table) -> tuple[str, ...]:
    """Return the names of classes in a column: numbers in their order, then names in alphabetical order.

    Args:
        target: name of the column.
        table: the file's columns.

    Returns:
        At least two names.

    Raises:
        UserError: if there is one class alone, or an empty name.
    """
    texts = names_of(target, table.columns[target], table.place)
    names = sorted(sorted({_class_name(text) for text in texts}), key=_number_first)
    if len(names) < 2:
        raise UserError(f"{table.path}: {shown_name(target)} is {shown(names[0])} in all rows: nothing to predict")
    return tuple(names)


def _number_first(name: str) -> float:
    number = to_number(name)
    return number if number is not None and np.isfinite(number) else np.inf


def _class_name(text: str) -> str:
    """Return one spelling of a number: "1", "01" and "1.0" are one class."""
    number = to_number(text)
    if number is None or not np.isfinite(number):
        return text.strip()
    return str(int(number)) if number == int(number) else repr(number)


def read_targets(
    table: Table, target: str, task: str, log_target: bool, class_names: Sequence[str] | None
) -> np.ndarray:
    """Read the column to predict.

    Args:
        table: the file's columns.
        target: name of the column.
        task: "numbers", "labels" or "classes".
        log_target: take the natural logarithm.
        class_names: names of the classes, None for other tasks.

    Returns:
        int32 [N] of classes; float32 [N, 1] of labels; float64 [N, 1] of numbers.

    Raises:
        UserError: with the line, if a value is none of the names, no finite number, or not 0, 1 or above 0 where
            it must be.
    """
    texts, shown_target = table.columns[target], shown_name(target)
    if class_names is not None:
        number = {name: index for index, name in enumerate(class_names)}
        for row, text in enumerate(texts):
            if _class_name(text) not in number:
                raise UserError(
                    f"{table.place(row)}: {shown_target} is {shown(text)}, expected one of {listed(number)}"
                )
        return np.array([number[_class_name(text)] for text in texts], np.int32)
    try:
        values = np.array(numbers(target, texts, table.place))
    except UserError as error:
        raise UserError(f'{error}, or task="classes" to predict names') from None
    if task == "labels" and (wrong := np.flatnonzero((values != 0) & (values != 1))).size:
        row = int(wrong[0])
        raise UserError(f"{table.place(row)}: {shown_target} is {shown(texts[row])}, expected 0 or 1 for task='labels'")
    if log_target:
        if values.min() <= 0:
            row = int(np.argmin(values))
            raise UserError(
                f"{table.place(row)}: {shown_target} is {values[row]}, expected above 0 for log_target=True"
            )
        values = np.log(values)
    return values[:, None] if task == "numbers" else values[:, None].astype(np.float32)


def standardized(targets: np.ndarray, train: slice, where: str) -> tuple[dict[str, float], np.ndarray]:
    """Standardize targets in float64.

    Args:
        targets: float64 [N, 1].
        train: the training rows.
        where: what they are called in messages.

    Returns:
        "mean" and "std" of the training rows, and float32 [N, 1].

    Raises:
        UserError: if float32 cannot tell them apart.
    """
    offset = offsets_of(targets, where)
    statistics = fit(targets[train] - offset, offset)
    mean, std = float(statistics["mean"][0]), float(statistics["std"][0])
    return {"mean": mean, "std": std}, ((targets - mean) / std).astype(np.float32)
