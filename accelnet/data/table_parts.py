"""Rows of a table and of those held out beside it, and their splits."""

import os
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from accelnet import arguments
from accelnet.characters import visible
from accelnet.data.cells import shown_name
from accelnet.data.splits import TENTH, split_rows
from accelnet.data.table_columns import Roles
from accelnet.data.table_source import open_source, stack
from accelnet.data.tables import ReadableTable, Table
from accelnet.errors import UserError
from accelnet.wording import shown

# Arguments of `table` that name a column, and what it tells.
_TOLD = {"split": "the split", "groups": "the group", "time": "the time", "stratify": "the class"}
DIVIDING = tuple(_TOLD)


class TableParts(NamedTuple):
    """Hold the rows of a table and of those held out beside it, and how they are divided.

    Attributes:
        rows: All rows, one part below the other.
        sizes: Number of rows of each part: "train", and "validation" and "test" where they are sources of their own.
        division: What columns tell about the splits of the first part's rows, by the argument of `divide` (splits).
        fractions: Fractions to hold out of the first part.
    """

    rows: Table
    sizes: Mapping[str, int]
    division: Mapping[str, np.ndarray]
    fractions: Mapping[str, float]


def read_parts(source: ReadableTable, roles: Roles, task: str | None, held_out: Mapping[str, Any]) -> TableParts:
    """Read a table, and those that are held out beside it.

    Args:
        source: The table.
        roles: What its columns are for.
        task: Task, where it is known.
        held_out: For "validation" and "test" a fraction, a source, or None.

    Raises:
        UserError: if one cannot be read or lacks a column, or a row has no split where a column tells it.

    Example:
        >>> from accelnet.data.table_source import open_source
        >>> source = open_source({"x": [1, 2], "y": [3, 4]}, "source")
        >>> roles = Roles("y", ("x",), (), {}, {}, None)
        >>> read_parts(source, roles, None, {"validation": 0, "test": {"x": [5], "y": [6]}}).sizes
        {'train': 2, 'test': 1}
    """
    used, text = [roles.target, *roles.features, *roles.others.values()], roles.names_in(task)
    tables, fractions = {"train": source.read(used, text)}, {}
    for split, given in held_out.items():
        if given is not None and "split" in roles.others:
            raise UserError(f"{split} and split are both given: leave one of them out")
        if given is None or isinstance(given, int | float):
            fractions[split] = TENTH if given is None else arguments.fraction(split, given)
            continue
        if not (isinstance(given, str | os.PathLike) or hasattr(given, "__arrow_c_stream__") or hasattr(given, "keys")):
            raise UserError(f"{split} is {shown(given)}, expected a fraction, or a file or frame of its own")
        fractions[split] = 0.0
        other = open_source(given, split)
        other.check(used)
        tables[split] = other.read(used, text)
    division = {use: _division(tables["train"], use, roles.others[use]) for use in DIVIDING if use in roles.others}
    return TableParts(
        stack(list(tables.values())), {split: one.num_rows for split, one in tables.items()}, division, fractions
    )


def without_missing(parts: TableParts, roles: Roles) -> TableParts:
    """Leave out the rows that lack the target or a feature, with a warning that counts them."""
    lacking = np.zeros(parts.rows.num_rows, bool)
    text = roles.names_in(None)
    for name in (roles.target, *roles.features):
        lacking |= parts.rows.column(name, name in text).missing
    if not lacking.any():
        return parts
    kept, label = np.flatnonzero(~lacking), parts.rows.label
    left_out = f"{lacking.sum()} of {len(lacking)} rows have missing values and are left out"
    warnings.warn(visible(f"{label}: {left_out}"), stacklevel=3)  # the caller of table
    part = np.repeat(list(parts.sizes), list(parts.sizes.values()))[kept]
    sizes = {split: int((part == split).sum()) for split in parts.sizes}
    if 0 in sizes.values():
        raise UserError(f"{label}: every row lacks a value, of all rows or of those held out: nothing is left")
    first = kept[kept < parts.sizes["train"]]
    division = {use: values[first] for use, values in parts.division.items()}
    return parts._replace(rows=parts.rows.take(kept), sizes=sizes, division=division)


def divide(
    parts: TableParts, columns: Mapping[str, np.ndarray], seed: int, name: str, by_class: bool
) -> tuple[dict[str, Any], dict[str, range]]:
    """Put rows in the order of their splits.

    Args:
        parts: The rows.
        columns: Arrays [N, ...] by name, "targets" among them.
        seed: Seed of the rows held out.
        name: Name of the data, for messages.
        by_class: Whether to hold out of every class its share.

    Returns:
        The arrays in that order, and as "inputs" the numbers of the rows; and the rows of each split.

    Raises:
        UserError: if no row is for training.
    """
    arrays = {"inputs": np.arange(parts.rows.num_rows), **columns}
    start, pieces = 0, {}
    for split, size in parts.sizes.items():
        pieces[split] = {key: array[start : start + size] for key, array in arrays.items()}
        start += size
    division = {"groups": None, "time": None, "split": None, "stratify": by_class, **parts.division}
    return split_rows(pieces, seed, name=name, splits=division.pop("split"), **parts.fractions, **division)


def _division(table: Table, use: str, name: str) -> np.ndarray:
    cells = table.column(name, use == "split")
    if cells.missing.any():
        place = table.place(int(np.argmax(cells.missing)))
        raise UserError(f"{place}: {shown_name(name)}, which tells {_TOLD[use]}, is missing")
    return np.array(cells.names)[cells.values] if cells.kind == "text" else cells.values
