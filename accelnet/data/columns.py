"""Columns of a table to inputs: numbers as they are, names as 0 and 1 or as positions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from accelnet.arguments import listed, shown
from accelnet.errors import UserError

Column = Mapping[str, Any]
Place = Callable[[int], str]
_LARGEST = 3.4e38  # of float32


def number_column(name: str) -> Column:
    """Return the description of a column of numbers, which becomes one input.

    Example:
        >>> number_column("size")
        {'name': 'size', 'kind': 'number', 'names': ()}
    """
    return {"name": name, "kind": "number", "names": ()}


def category_column(name: str, names: Sequence[str]) -> Column:
    """Return the description of a column of names, which becomes an input of 0 or 1 for each of them.

    Example:
        >>> category_column("colour", ["blue", "red"])
        {'name': 'colour', 'kind': 'categories', 'names': ('blue', 'red')}
    """
    return {"name": name, "kind": "categories", "names": tuple(names)}


def ordinal_column(name: str, names: Sequence[str]) -> Column:
    """Return the description of a column of names with an order, which becomes one input, the position.

    Example:
        >>> ordinal_column("grade", ["low", "high"])
        {'name': 'grade', 'kind': 'positions', 'names': ('low', 'high')}
    """
    return {"name": name, "kind": "positions", "names": tuple(names)}


def input_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """Return the names of the inputs that columns become.

    Args:
        columns: descriptions.

    Returns:
        A name for each input, in their order.

    Example:
        >>> input_names([number_column("size"), category_column("colour", ["blue", "red"])])
        ('size', 'colour=blue', 'colour=red')
    """
    found: list[str] = []
    for column in columns:
        many = column["kind"] == "categories"
        found += [f"{column['name']}={name}" for name in column["names"]] if many else [column["name"]]
    return tuple(found)


def encode_columns(columns: Sequence[Column], table: Mapping[str, Sequence[Any]], place: Place) -> np.ndarray:
    """Turn the columns of a table into inputs, not yet standardized.

    Args:
        columns: descriptions, in the order of the inputs.
        table: by column, the values of N rows, text or numbers.
        place: row -> where it is, for messages, such as "a.csv, line 3".

    Returns:
        float64 [N, inputs].

    Raises:
        UserError: if a column is missing or a value is no finite number, or none of the names.

    Example:
        >>> columns = [number_column("size"), category_column("colour", ["blue", "red"])]
        >>> encode_columns(columns, {"size": ["1.5", 2], "colour": [" red", "blue"]}, "row {}".format)
        array([[1.5, 0. , 1. ], [2. , 1. , 0. ]])
    """
    values: list[Any] = []
    for column in columns:
        name = column["name"]
        if name not in table:
            raise UserError(f"there is no column {shown(name)}, only {listed(table)}")
        if column["kind"] == "number":
            values.append(numbers(name, table[name], place))
            continue
        positions = np.array(_positions(name, table[name], column["names"], place), np.int64)
        if column["kind"] == "positions":
            values.append(positions)
        else:
            values += [positions == index for index in range(len(column["names"]))]
    return np.array(values, dtype=np.float64).T


def numbers(name: str, values: Sequence[Any], place: Place) -> list[float]:
    """Read a column of numbers.

    Args:
        name: of the column.
        values: text or numbers.
        place: row -> where it is, for messages.

    Returns:
        Finite numbers that float32 can hold.

    Raises:
        UserError: for anything else.

    Example:
        >>> numbers("size", ["1.5", 2], "row {}".format)
        [1.5, 2.0]
    """
    found = []
    for row, value in enumerate(values):
        number = to_number(value)
        if number is None or not abs(number) < _LARGEST:
            raise UserError(
                f"{place(row)}: {shown_name(name)} is {shown(value)}, expected a finite number{_hint(value)}"
            )
        found.append(number)
    return found


def to_number(value: Any) -> float | None:
    """Return the number that a value is or spells, None where it is none.

    What only Python takes for a number (1_000, digits of other scripts) is none.

    Example:
        >>> to_number(" 1e3"), to_number("1_000"), to_number("red")
        (1000.0, None, None)
    """
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def names_of(name: str, values: Sequence[Any], place: Place) -> tuple[str, ...]:
    """Return the names that occur in a column, in alphabetical order, without the spaces around them.

    Args:
        name: of the column.
        values: text.
        place: row -> where it is, for messages.

    Returns:
        Different names.

    Raises:
        UserError: if one is empty.

    Example:
        >>> names_of("colour", ["red", " blue", "red "], "row {}".format)
        ('blue', 'red')
    """
    found = {str(value).strip() for value in values}
    if "" in found:
        row = next(row for row, value in enumerate(values) if not str(value).strip())
        raise UserError(f"{place(row)}: {shown_name(name)} is empty, expected a name: drop or fill such rows")
    return tuple(sorted(found))


def shown_name(name: str) -> str:
    """Return a column's name for a message: as it is where it is plain, quoted where it is not.

    Example:
        >>> shown_name("size"), shown_name("a b")
        ('size', "'a b'")
    """
    return name if name.isidentifier() and name.isprintable() else shown(name)


def _positions(name: str, values: Sequence[Any], known: Sequence[str], place: Place) -> list[int]:
    position = {one: index for index, one in enumerate(known)}
    found = []
    for row, value in enumerate(values):
        text = str(value).strip()
        if text not in position:
            raise UserError(f"{place(row)}: {shown_name(name)} is {shown(value)}, expected one of {listed(known)}")
        found.append(position[text])
    return found


def _hint(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else "x"
    if not text:
        return " (drop or fill such rows)"
    if to_number(text.replace(",", ".", 1)) is not None or to_number(text.replace(",", "")) is not None:
        return ": write it with a decimal point and without commas between thousands"
    if to_number(text.replace("_", "").rstrip("%")) is not None:
        return ": write it without other signs"
    return "; columns of names must be given as categorical or ordinal" if isinstance(value, str) else ""
