"""Columns of Python's own numbers, booleans and text, and of NumPy's numbers, without Arrow."""

from typing import Any

import numpy as np

from accelnet.data.cells import Cells, Mixture, named, number_name, untyped
from accelnet.errors import UserError

_BOOLEAN, _NUMBER, _TEXT = {bool}, {int, float}, {str}
_LARGEST_WHOLE = 2**53
_TRUTH = ("False", "True")


def of_scalars(values: Any, where: str, names: bool) -> Cells | Mixture | None:
    """Make a column of a list of numbers, booleans and text, or of an array of numbers or booleans [N].

    What a value becomes does not depend on the others, unless text that is no number stands among numbers: rows that
    come at different times may be read together.

    Args:
        values: The list or array; None and NaN are missing.
        where: Name of the column in messages.
        names: Whether numbers beside text are names.

    Returns:
        A column; where numbers stand beside text, as of a file without types; None for other values.

    Raises:
        UserError: if whole numbers are too large for float64.

    Example:
        >>> of_scalars([1.5, None], "column 'size'", False).values
        array([1.5, nan])
        >>> of_scalars(["red", 1.0], "column 'hue'", True).names
        ('1', 'red')
    """
    if isinstance(values, np.ndarray):
        return _of_array(values, where) if type(values) is np.ndarray and values.ndim == 1 else None
    kinds = set(map(type, values)) - {type(None)}
    if not kinds <= _BOOLEAN | _NUMBER | _TEXT:
        return None
    if int in kinds:
        largest = max(abs(one) for one in values if type(one) is int)
        if largest > _LARGEST_WHOLE:
            raise whole_too_large(where)
    if not kinds:
        return Cells("none", np.full(len(values), np.nan))
    if kinds <= _BOOLEAN:
        return Cells("boolean", np.array(values, np.float64), _TRUTH)
    if kinds <= _NUMBER:
        return _numbers(np.array(values, np.float64))
    place: dict[str, int] = {}
    texts = values if kinds == _TEXT else [_text(one) for one in values]
    codes = np.array([-1 if text is None else place.setdefault(text, len(place)) for text in texts], np.int64)
    return (named if names or kinds == _TEXT else untyped)(list(place), codes)


def _of_array(values: np.ndarray, where: str) -> Cells | None:
    kind = values.dtype.kind
    if kind == "b" and len(values):
        return Cells("boolean", values.astype(np.float64), _TRUTH)
    if kind in "iu" and len(values) and max(-int(values.min()), int(values.max())) > _LARGEST_WHOLE:
        raise whole_too_large(where)
    return _numbers(values.astype(np.float64)) if kind in "iuf" else None


def whole_too_large(where: str) -> UserError:
    """Return the error for whole numbers that are too large.

    Example:
        >>> str(whole_too_large("column 'size'"))[:45]
        "column 'size' has whole numbers beyond 2**53,"
    """
    return UserError(
        f"{where} has whole numbers beyond 2**53, which float64 cannot tell apart: leave it out of the features, or "
        f"make text or smaller numbers of it"
    )


def _numbers(values: np.ndarray) -> Cells:
    return Cells("none" if np.isnan(values).all() else "number", values)


def _text(value: Any) -> str | None:
    if value is None or value != value:
        return None
    is_number = isinstance(value, float) and np.isfinite(value)
    return number_name(value) if is_number else str(value)
