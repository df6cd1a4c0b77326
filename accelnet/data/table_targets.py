"""The column of a table that is to be predicted."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from accelnet import arguments
from accelnet.data.cells import (
    Cells,
    as_names,
    named,
    not_a_number,
    number_name,
    shown_name,
    to_number,
    written_otherwise,
)
from accelnet.data.columns import numbers_of, positions_of
from accelnet.data.tables import Table
from accelnet.errors import UserError
from accelnet.terminal import say_once
from accelnet.wording import listed, shown

Task = Literal["numbers", "labels", "classes"]
# So few whole numbers, each of so many rows on average, may be numbers of classes.
_FEW_CLASSES, _ROWS_OF_A_CLASS = 10, 5


def read_targets(
    table: Table, target: str, task: Task | None, log_target: bool, known: Mapping[str, Any]
) -> tuple[str, np.ndarray, tuple[str, ...] | None]:
    """Read the column to predict.

    Args:
        table: N rows.
        target: Name of the column.
        task: "numbers", "labels" or "classes"; None for the task of the earlier run, else of what is in the column.
        log_target: Take the natural logarithm.
        known: Fitted values of an earlier run, whose task and classes are taken over; empty for none.

    Returns:
        The task; int32 [N] of classes, float32 [N, 1] of labels or float64 [N, 1] of numbers; and the names of the
        classes, None for other tasks: numbers in their order, then names in alphabetical order.

    Raises:
        UserError: if there is one class alone; with the place, if a value is missing, none of the names, no finite
            number, or not 0, 1 or above 0 where it must be.

    Example:
        >>> from accelnet.data.table_source import open_source
        >>> table = open_source({"left": ["yes", "no"]}, "source").read(["left"], ())
        >>> read_targets(table, "left", None, False, {})
        ('classes', array([1, 0], dtype=int32), ('no', 'yes'))
    """
    wanted = task or known.get("task") or ("numbers" if log_target else None)
    shown_target = shown_name(target)
    try:
        cells = table.column(target, wanted == "classes")
    except UserError as error:
        raise UserError(f'{error}, or task="classes" to predict names') from None
    missing = np.flatnonzero(cells.missing)
    if missing.size:
        raise UserError(
            f"{table.place(int(missing[0]))}: {shown_target}, the target, is missing, and so in {missing.size} of "
            f'{table.num_rows} rows: remove such rows, or give missing="drop"'
        )
    kind = wanted or _task_of(cells, table, target)
    if log_target and kind != "numbers":
        raise UserError(f"log_target=True needs numbers to predict, and task is {kind!r}")
    if kind == "classes":
        return kind, *_classes(cells, table, target, known.get("class_names"))
    try:
        read_as = cells.kind if cells.kind in ("boolean", "time") else "number"
        values = numbers_of(target, cells, read_as, table.place)
    except UserError as error:
        raise UserError(f'{error}, or task="classes" to predict names') from None
    if kind == "labels" and (wrong := np.flatnonzero((values != 0) & (values != 1))).size:
        row = int(wrong[0])
        raise UserError(
            f"{table.place(row)}: {shown_target} is {number_name(float(values[row]))!r}, expected 0 or 1 for "
            f"task='labels'"
        )
    if log_target:
        if values.min() <= 0:
            row = int(np.argmin(values))
            raise UserError(
                f"{table.place(row)}: {shown_target} is {values[row]}, expected above 0 for log_target=True"
            )
        values = np.log(values)
    return kind, values[:, None] if kind == "numbers" else values[:, None].astype(np.float32), None


def check_task(task: Any) -> None:
    """Raise UserError unless a task is one that a table can have, or None."""
    if task is not None:
        arguments.word("task", task, get_args(Task))


def check_classes(rows: Table, target: str, targets: np.ndarray, train: np.ndarray, names: Sequence[str]) -> None:
    """Raise UserError if a class has rows, but none for training.

    Args:
        rows: N rows of all splits.
        target: Name of the column.
        targets: int [N], the class of each row.
        train: int [B], the rows for training.
        names: Names of the classes.
    """
    unseen = np.flatnonzero(~np.isin(targets, targets[train]))
    if unseen.size:
        name = names[int(targets[unseen[0]])]
        raise UserError(
            f"{rows.place(int(unseen[0]))}: {shown_name(target)} is {shown(name)}, a class that no training row has: "
            f"give rows of it to train on, or leave such rows out"
        )


def _task_of(cells: Cells, table: Table, target: str) -> Task:
    if cells.kind in ("text", "boolean"):
        if cells.kind == "text" and all(written_otherwise(name) for name in cells.names):
            raise not_a_number(table.place(0), target, cells.names[cells.values[0]])
        return "classes"
    zeros = cells.values == 0
    if zeros.any() and not zeros.all() and (zeros | (cells.values == 1)).all():
        return "labels"
    if cells.kind == "number" and (cells.values == np.trunc(cells.values)).all():
        distinct = np.unique(cells.values)
        if np.isfinite(distinct).all() and 1 < len(distinct) <= min(_FEW_CLASSES, len(cells.values) / _ROWS_OF_A_CLASS):
            say_once(
                f"{table.label}: {shown_name(target)} is {listed(map(int, distinct))} and is predicted "
                f'as a number; task="classes" predicts it as a class'
            )
    return "numbers"


def _classes(
    cells: Cells, table: Table, target: str, class_names: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    cells = as_names(cells)
    cells = named([_class_name(name) for name in cells.names], cells.values)
    if class_names is None:
        if len(cells.names) < 2:
            raise UserError(
                f"{table.label}: {shown_name(target)} is {shown(*cells.names)} in all rows: nothing to predict"
            )
        class_names = tuple(sorted(cells.names, key=_number_first))
    return positions_of(target, cells, class_names, table.place).astype(np.int32), tuple(class_names)


def _number_first(name: str) -> float:
    number = to_number(name)
    return number if number is not None and np.isfinite(number) else np.inf


def _class_name(text: str) -> str:
    """Return one spelling of a number: "1", "01" and "1.0" are one class."""
    number = to_number(text)
    return text if number is None or not np.isfinite(number) else number_name(number)
