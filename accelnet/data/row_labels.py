"""One value for each row, by which rows are divided: classes, groups, times."""

import datetime as dt
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from accelnet.data.rows import LazyArray
from accelnet.errors import UserError
from accelnet.wording import shown

Use = Literal["classes", "groups", "times"]


def row_codes(name: str, values: Any, num_rows: int, use: Use) -> np.ndarray:
    """Number the distinct values of an array, in their order.

    Args:
        name: Name of the array, for messages.
        values: Array or list [N] of whole numbers, booleans or text; groups and times may be any numbers and times of
            NumPy or `datetime`, times must be one of these.
        num_rows: N.
        use: What the values are for.

    Returns:
        int64 [N], from 0 on; equal values have equal numbers, and a larger value has a larger one.

    Raises:
        UserError: if values are missing, of another number, NaN, or of a kind that the use excludes.

    Example:
        >>> row_codes("groups", ["b", "a", "b"], 3, "groups").tolist()
        [1, 0, 1]
    """
    array = row_values(name, values, num_rows)
    if use == "times" and array.dtype.kind == "U":
        raise UserError(
            f"{name} holds text, such as {shown(str(array[0]))}, expected numbers or times: convert it, such as by "
            f"np.array({name}, 'datetime64[s]')"
        )
    if use == "classes" and (array.dtype.kind in "Mm" or (array.dtype.kind == "f" and (array % 1 != 0).any())):
        raise UserError(
            f"{name} holds {array.dtype.name} values that are no classes, such as {shown(array[0].item())}: give whole "
            f"numbers or text, such as quarters of it by np.digitize"
        )
    return np.unique(array, return_inverse=True)[1].reshape(-1)


def row_values(name: str, values: Any, num_rows: int) -> np.ndarray:
    """Return one value for each row, [N]: booleans, finite numbers, times or text; raise UserError for others.

    Example:
        >>> row_values("weights", [1, 2.5], 2)
        array([1. , 2.5])
    """
    if isinstance(values, LazyArray) and values.ndim == 1:
        values = values[:]
    if isinstance(values, str | bytes | Mapping) or np.isscalar(values) or values is None:
        raise UserError(f"{name} is {shown(values)}, expected one value for each of the {num_rows} rows")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {shown(values)}, expected one value for each of the {num_rows} rows") from None
    if array.shape != (num_rows,):
        came = f"{len(array)} values" if array.ndim == 1 else f"shape {list(array.shape)}"
        raise UserError(f"{name} has {came}, expected one for each of the {num_rows} rows")
    if array.dtype.kind in "OST":
        array = _plain(name, array)
    missing = ~np.isfinite(array) if array.dtype.kind == "f" else np.isnat(array) if array.dtype.kind in "mM" else None
    if missing is not None and missing.any():
        row = int(np.argmax(missing))
        raise UserError(f"{name} is {array[row]} in row {row}: give every row a value, or leave such rows out")
    if array.dtype.kind not in "biufUmM":
        raise UserError(f"{name} holds {array.dtype.name} values, expected numbers, times or text")
    return array


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    """Return objects, such as a column of a data frame, as text, times or numbers."""
    if array.dtype.kind != "O":
        return array.astype(str)
    values = array.tolist()
    for kinds, dtype in ((str, str), (dt.date, "datetime64[us]"), (int | float | np.number | np.bool_, None)):
        if all(isinstance(one, kinds) for one in values):
            if any(getattr(one, "tzinfo", None) is not None for one in values):
                raise UserError(f"{name} holds times with a time zone: convert them to seconds, or to UTC without zone")
            return np.array(values, dtype)
    kind = type(values[0])
    row = next((row for row, one in enumerate(values) if type(one) is not kind), 0)
    raise UserError(f"{name} is {shown(values[row])} in row {row}, and {shown(values[0])} in row 0: give one kind")
