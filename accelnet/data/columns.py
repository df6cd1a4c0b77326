"""Columns of a table to inputs: numbers as they are, names as 0 and 1 or as positions, and what is missing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from accelnet.data.cells import Cells, as_names, not_a_number, shown_name, to_number, written_otherwise
from accelnet.data.tables import Table
from accelnet.data.times import parse_times
from accelnet.errors import UserError
from accelnet.wording import listed, shown

# Plain values: "name", "kind" and "names". A "number", a "boolean" and a "time" (in seconds) become one input,
# "categories" an input of 0 or 1 for each name, "positions" one input, the position of the name. "fill" stands for
# missing numbers, where there may be such; with "flag" one more input is 1 where the value is missing. With "ignore"
# a name that is none of the names is 0 in all inputs.
Column = Mapping[str, Any]
NAMED = ("categories", "positions")
STANDARDIZED = ("number", "time", "positions")
_LARGEST = 3.4e38  # of float32
_MOST_NAMES = 100
_FEW_NAMES = 10
_TRUTH = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "": np.nan}


class Fill(NamedTuple):
    """Say what to do about values that training rows do not have.

    Attributes:
        missing: Whether missing values are filled.
        unknown: Whether names that no training row has are ignored.
    """

    missing: bool
    unknown: bool


def input_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """Return the names of the inputs that columns become, in their order.

    Example:
        >>> input_names(
        ...     [
        ...         {"name": "size", "kind": "number", "fill": 2.5, "flag": True},
        ...         {"name": "hue", "kind": "categories", "names": ("blue", "red")},
        ...     ]
        ... )
        ('size', 'size is missing', 'hue=blue', 'hue=red')
    """
    found: list[str] = []
    for column in columns:
        many = column["kind"] == "categories"
        found += [f"{column['name']}={name}" for name in column["names"]] if many else [column["name"]]
        found += [f"{column['name']} is missing"] if column.get("flag") else []
    return tuple(found)


def describe(
    name: str, kind: str | None, names: Sequence[str], table: Table, train: np.ndarray, fill: Fill
) -> tuple[Column, bool]:
    """Describe a column as its training rows have it.

    Args:
        name: Name of the column.
        kind: "categories" or "positions"; None for what is in it.
        names: Names in order, for "positions".
        table: Rows of all splits.
        train: int [B], the rows for training.
        fill: What to do about values that training rows do not have.

    Returns:
        The description, and whether the column is constant.

    Raises:
        UserError: if it is empty, or text that is no column of names.

    Example:
        >>> from accelnet.data.table_source import open_source
        >>> table = open_source({"hue": ["red", "blue", "green"]}, "source").read(["hue"], ())
        >>> describe("hue", None, (), table, np.array([0, 1]), Fill(False, False))
        ({'name': 'hue', 'kind': 'categories', 'names': ('blue', 'red')}, False)
    """
    cells = table.column(name, kind in NAMED)
    missing = cells.missing[train]
    if missing.all():
        rows = "all rows" if len(train) == table.num_rows else "all training rows"
        raise UserError(f"{table.label}: {shown_name(name)} is missing in {rows}: leave it out of the features")
    if kind is None:
        kind = "categories" if cells.kind == "text" else cells.kind
        if kind == "categories":
            _check_names(cells, table, name)
    column: dict[str, Any] = {"name": name, "kind": kind, "names": tuple(names)}
    present = cells.values[train][~missing]
    if kind == "categories":
        column["names"] = tuple(cells.names[code] for code in np.unique(present))
    if fill.missing:
        column["flag"] = bool(missing.any())
        if kind != "categories":
            column["fill"] = float(_values(column, cells, table.place)[0][train][~missing].mean())
    if fill.unknown and kind == "categories":
        column["ignore"] = True
    return column, bool(present.min() == present.max()) and not missing.any()


def _check_names(cells: Cells, table: Table, name: str) -> None:
    """Refuse text that is no name of a kind, but of a row, and numbers in another notation."""
    codes = np.unique(cells.values[cells.values >= 0])
    first = cells.names[codes[0]]
    if all(written_otherwise(cells.names[code]) for code in codes):
        row = int(np.flatnonzero(cells.values == codes[0])[0])
        raise not_a_number(table.place(row), name, first)
    many = len(codes) > _MOST_NAMES or (len(codes) > _FEW_NAMES and len(codes) > table.num_rows / 2)
    if many:
        raise UserError(
            f"{table.label}: {shown_name(name)} is text with {len(codes)} different values in {table.num_rows} rows, "
            f"such as {shown(first)}: leave it out of the features, or name it in categorical"
        )


def inputs_of(column: Column, table: Table) -> Iterator[np.ndarray]:
    """Yield the inputs that a column becomes, float64 or bool [N] each, not yet standardized.

    Args:
        column: Description of the column.
        table: N rows.

    Raises:
        UserError: if a value is missing where none may be, no finite number, or none of the names.

    Example:
        >>> from accelnet.data.table_source import open_source
        >>> table = open_source({"size": [1.5, None]}, "source").read(["size"], ())
        >>> list(inputs_of({"name": "size", "kind": "number", "names": (), "fill": 2.5, "flag": True}, table))
        [array([1.5, 2.5]), array([False,  True])]
    """
    cells = table.column(column["name"], column["kind"] in NAMED)
    values, missing = _values(column, cells, table.place)
    absent = bool(missing.any())
    flag = column.get("flag", False)
    if column["kind"] == "categories":
        if absent and not flag and not column.get("ignore"):
            raise _missing(column, table, missing)
        for index in range(len(column["names"])):
            yield values == index
    else:
        if absent and "fill" not in column:
            raise _missing(column, table, missing)
        yield np.where(missing, column["fill"], values) if absent else values
    if flag:
        yield missing


def encode_columns(columns: Sequence[Column], table: Table) -> np.ndarray:
    """Turn the columns of a table into inputs, not yet standardized, float64 [N, inputs].

    Example:
        >>> from accelnet.data.table_source import open_source
        >>> columns = [
        ...     {"name": "size", "kind": "number", "names": ()},
        ...     {"name": "hue", "kind": "categories", "names": ("blue", "red")},
        ... ]
        >>> table = open_source({"size": ["1.5", 2], "hue": [" red", "blue"]}, "source").read(["size", "hue"], ())
        >>> encode_columns(columns, table)
        array([[1.5, 0. , 1. ], [2. , 1. , 0. ]])
    """
    return np.array([values for column in columns for values in inputs_of(column, table)], np.float64).T


def numbers_of(name: str, cells: Cells, kind: str, place: Callable[[int], str]) -> np.ndarray:
    """Return a column as numbers, float64 [N], NaN where missing.

    Args:
        name: Name of the column.
        cells: Its values; text may spell numbers, or for "boolean" and "time" what these are written as.
        kind: "number", "boolean" or "time".
        place: Function of a row that says where it is.

    Raises:
        UserError: if a value is of another kind, infinite, or too large for float32.

    Example:
        >>> numbers_of("size", Cells("text", np.array([0, -1]), ("1e3",)), "number", "row {}".format)
        array([1000.,   nan])
    """
    if cells.kind == "text":
        known = [_parsed(text, kind) for text in cells.names]
        bad = np.array([*(value is None for value in known), False])[cells.values]
        if bad.any():
            row = int(np.argmax(bad))
            text = cells.names[cells.values[row]]
            if kind == "number":
                raise not_a_number(place(row), name, text)
            words = {"boolean": "true or false", "time": "a date or time such as 2024-03-31 12:00:00"}
            raise UserError(f"{place(row)}: {shown_name(name)} is {shown(text)}, expected {words[kind]}")
        values = np.array([*known, np.nan], np.float64)[cells.values]
    else:
        values = cells.values
        if cells.kind == "time" and kind != "time":
            raise UserError(f"{place(0)}: {shown_name(name)} is a time, expected a {kind}")
        if kind == "boolean" and (wrong := np.flatnonzero((values != 0) & (values != 1) & ~np.isnan(values))).size:
            row = int(wrong[0])
            raise UserError(f"{place(row)}: {shown_name(name)} is {float(values[row])}, expected true or false")
    if (wrong := np.flatnonzero(np.abs(values) >= _LARGEST)).size:
        raise not_a_number(place(int(wrong[0])), name, float(values[wrong[0]]))
    return values


def _parsed(text: str, kind: str) -> float | None:
    if kind == "boolean":
        return _TRUTH.get(text.lower())
    number = to_number(text)
    if number is None and kind == "time":
        found = parse_times([text])
        return None if found is None else float(found[0])
    return number


def positions_of(name: str, cells: Cells, names: Sequence[str], place: Callable[[int], str] | None) -> np.ndarray:
    """Return the positions of a column's names, int64 [N], -1 where missing.

    Args:
        name: Name of the column.
        cells: Its values.
        names: Names that there may be.
        place: Function of a row that says where it is; None to give -2 for a name that is none of them.

    Raises:
        UserError: if one is none of them.

    Example:
        >>> positions_of("hue", Cells("text", np.array([1, 0, -1]), ("blue", "red")), ("red", "blue"), None)
        array([ 0,  1, -1])
    """
    cells = as_names(cells)
    if cells.kind == "none":
        return np.full(len(cells.values), -1)
    position = {one: index for index, one in enumerate(names)}
    found = np.array([*(position.get(one, -2) for one in cells.names), -1])[cells.values]
    if place is not None and (wrong := np.flatnonzero(found == -2)).size:
        row = int(wrong[0])
        value = cells.names[cells.values[row]]
        raise UserError(f"{place(row)}: {shown_name(name)} is {shown(value)}, expected one of {listed(names)}")
    return found


def _values(column: Column, cells: Cells, place: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers or positions of a column, and which are missing."""
    if column["kind"] not in NAMED:
        values = numbers_of(column["name"], cells, column["kind"], place)
        return values, np.isnan(values)
    try:
        values = positions_of(column["name"], cells, column["names"], None if column.get("ignore") else place)
    except UserError as error:
        if column["kind"] == "positions":
            raise
        raise UserError(f'{error}, as training rows have; unknown="ignore" takes others as none of these') from None
    return values, values == -1


def _missing(column: Column, table: Table, missing: np.ndarray) -> UserError:
    rows = np.flatnonzero(missing)
    return UserError(
        f"{table.place(int(rows[0]))}: {shown_name(column['name'])} is missing, and so in {len(rows)} of "
        f'{table.num_rows} rows: fill or drop such rows, or give table missing="mean" or missing="drop"'
    )
