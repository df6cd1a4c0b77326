"""Columns of a table to inputs (numbers as they are, names as 0 and 1 or as positions), and one of them to targets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from accelnet import arguments
from accelnet.data.csv_file import Table
from accelnet.errors import UserError
from accelnet.wording import listed, shown

# Plain values: "name", "kind" and "names". A "number" becomes one input, "categories" an input of 0 or 1 for each name,
# "positions" one input, the position of the name.
Column = Mapping[str, Any]
Place = Callable[[int], str]
Task = Literal["numbers", "labels", "classes"]
_LARGEST = 3.4e38  # of float32


def input_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """Return the names of the inputs that columns become, in their order.

    Example:
        >>> input_names(
        ...     [{"name": "size", "kind": "number"}, {"name": "hue", "kind": "categories", "names": ("blue", "red")}]
        ... )
        ('size', 'hue=blue', 'hue=red')
    """
    found: list[str] = []
    for column in columns:
        many = column["kind"] == "categories"
        found += [f"{column['name']}={name}" for name in column["names"]] if many else [column["name"]]
    return tuple(found)


def encode_columns(columns: Sequence[Column], table: Mapping[str, Sequence[Any]], place: Place) -> np.ndarray:
    """Turn the columns of a table into inputs, not yet standardized.

    Args:
        columns: Descriptions of the columns, in the order of the inputs.
        table: Values of N rows, text or numbers, by column.
        place: Function of a row that says where it is, for messages, such as "a.csv, line 3".

    Returns:
        float64 [N, inputs].

    Raises:
        UserError: if a column is missing or a value is no finite number, or none of the names.

    Example:
        >>> columns = [
        ...     {"name": "size", "kind": "number"},
        ...     {"name": "hue", "kind": "categories", "names": ("blue", "red")},
        ... ]
        >>> encode_columns(columns, {"size": ["1.5", 2], "hue": [" red", "blue"]}, "row {}".format)
        array([[1.5, 0. , 1. ], [2. , 1. , 0. ]])
    """
    values: list[Any] = []
    for column in columns:
        name = column["name"]
        if name not in table:
            raise UserError(f"there is no column {shown(name)}, only {listed(table)}")
        if column["kind"] == "number":
            values.append(_numbers(name, table[name], place))
            continue
        positions = np.array(_positions(name, table[name], column["names"], place), np.int64)
        if column["kind"] == "positions":
            values.append(positions)
        else:
            values += [positions == index for index in range(len(column["names"]))]
    return np.array(values, dtype=np.float64).T


def names_of(name: str, values: Sequence[Any], place: Place) -> tuple[str, ...]:
    """Return the names that occur in a column, in alphabetical order, without the spaces around them.

    Raises:
        UserError: if one is empty; `place` says where a row is.

    Example:
        >>> names_of("colour", ["red", " blue", "red "], "row {}".format)
        ('blue', 'red')
    """
    found = {str(value).strip() for value in values}
    if "" in found:
        row = next(row for row, value in enumerate(values) if not str(value).strip())
        raise UserError(f"{place(row)}: {shown_name(name)} is empty, expected a name: drop or fill such rows")
    return tuple(sorted(found))


def read_targets(
    table: Table, target: str, task: Task | None, log_target: bool, known: Mapping[str, Any]
) -> tuple[str, np.ndarray, tuple[str, ...] | None]:
    """Read the column to predict.

    Args:
        table: Columns of the file.
        target: Name of the column.
        task: "numbers", "labels" or "classes"; None for the task of the earlier run, else of what is in the column.
        log_target: Take the natural logarithm.
        known: Fitted values of an earlier run, whose task and classes are taken over; empty for none.

    Returns:
        The task; int32 [N] of classes, float32 [N, 1] of labels or float64 [N, 1] of numbers; and the names of the
        classes, None for other tasks: numbers in their order, then names in alphabetical order.

    Raises:
        UserError: if there is one class alone; with the line, if a value is none of the names, no finite number, or not
            0, 1 or above 0 where it must be.
    """
    texts, shown_target = table.columns[target], shown_name(target)
    if task is not None:
        arguments.word("task", task, get_args(Task))
    kind = task or known.get("task") or ("numbers" if log_target else _task_of(texts))
    if log_target and kind != "numbers":
        raise UserError(f"log_target=True needs numbers to predict, and task is {kind!r}")
    if kind == "classes":
        return kind, *_read_classes(table, target, known.get("class_names"))
    try:
        values = np.array(_numbers(target, texts, table.place))
    except UserError as error:
        raise UserError(f'{error}, or task="classes" to predict names') from None
    if kind == "labels" and (wrong := np.flatnonzero((values != 0) & (values != 1))).size:
        row = int(wrong[0])
        raise UserError(f"{table.place(row)}: {shown_target} is {shown(texts[row])}, expected 0 or 1 for task='labels'")
    if log_target:
        if values.min() <= 0:
            row = int(np.argmin(values))
            raise UserError(
                f"{table.place(row)}: {shown_target} is {values[row]}, expected above 0 for log_target=True"
            )
        values = np.log(values)
    return kind, values[:, None] if kind == "numbers" else values[:, None].astype(np.float32), None


def shown_name(name: str) -> str:
    """Return a column's name for a message: as it is where it is plain, quoted where it is not.

    Example:
        >>> shown_name("size"), shown_name("a b")
        ('size', "'a b'")
    """
    return name if name.isidentifier() and name.isprintable() else shown(name)


def _task_of(texts: Sequence[str]) -> Task:
    found = [_to_number(text) for text in texts]
    # An empty field is a number that is missing.
    if not any(number is not None or not text.strip() for number, text in zip(found, texts, strict=True)):
        return "classes"
    return "labels" if set(found) == {0.0, 1.0} else "numbers"


def _read_classes(table: Table, target: str, class_names: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    texts = table.columns[target]
    if class_names is None:
        found = {_class_name(text) for text in names_of(target, texts, table.place)}
        if len(found) < 2:
            raise UserError(f"{table.path}: {shown_name(target)} is {shown(*found)} in all rows: nothing to predict")
        class_names = tuple(sorted(sorted(found), key=_number_first))
    return np.array(_positions(target, texts, class_names, table.place, _class_name), np.int32), class_names


def _number_first(name: str) -> float:
    number = _to_number(name)
    return number if number is not None and np.isfinite(number) else np.inf


def _class_name(text: str) -> str:
    """Return one spelling of a number: "1", "01" and "1.0" are one class."""
    number = _to_number(text)
    if number is None or not np.isfinite(number):
        return text.strip()
    return str(int(number)) if number == int(number) else repr(number)


def _numbers(name: str, values: Sequence[Any], place: Place) -> list[float]:
    """Return finite numbers that float32 can hold; raise UserError with the place for anything else."""
    found = []
    for row, value in enumerate(values):
        number = _to_number(value)
        if number is None or not abs(number) < _LARGEST:
            raise UserError(
                f"{place(row)}: {shown_name(name)} is {shown(value)}, expected a finite number{_hint(value)}"
            )
        found.append(number)
    return found


def _to_number(value: Any) -> float | None:
    """Return the number that a value is or spells. What only Python takes for one (1_000, other scripts) is none."""
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _positions(
    name: str, values: Sequence[Any], known: Sequence[str], place: Place, spelled: Callable[[str], str] = str.strip
) -> list[int]:
    position = {one: index for index, one in enumerate(known)}
    found = []
    for row, value in enumerate(values):
        text = spelled(str(value))
        if text not in position:
            raise UserError(f"{place(row)}: {shown_name(name)} is {shown(value)}, expected one of {listed(known)}")
        found.append(position[text])
    return found


def _hint(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else "x"
    if not text:
        return " (drop or fill such rows)"
    if _to_number(text.replace(",", ".", 1)) is not None or _to_number(text.replace(",", "")) is not None:
        return ": write it with a decimal point and without commas between thousands"
    if _to_number(text.replace("_", "").rstrip("%")) is not None:
        return ": write it without other signs"
    return "; columns of names must be given as categorical or ordinal" if isinstance(value, str) else ""
