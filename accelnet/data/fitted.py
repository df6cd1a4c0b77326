"""What was fitted to the training rows, as plain values that a checkpoint can hold."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.errors import UserError
from accelnet.wording import shown

# `Data.info` has them too, where they were fitted.
SHARED_WITH_INFO = ("target", "class_names", "vocabulary")


def plain(value: Any, path: str = "fitted") -> Any:
    """Return fitted values as dicts, tuples, text, booleans and numbers, as they are after a way through JSON.

    Args:
        value: Nested mappings with names, lists, tuples, arrays, numbers, text and None.
        path: Name of the value in messages.

    Returns:
        The same values: arrays and lists as tuples, NumPy numbers as Python's.

    Raises:
        UserError: if a value is of another kind, NaN or infinite, or a key is no text.

    Example:
        >>> plain({"mean": np.array([1.5, 2.0]), "names": ["a", "b"]})
        {'mean': (1.5, 2.0), 'names': ('a', 'b')}
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"{path} has the name {shown(key)}, expected text")
        return {key: plain(one, f"{path}[{key!r}]") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(one, f"{path}[{index}]") for index, one in enumerate(value))
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return plain(np.asarray(value).tolist(), path)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path} is {value}, expected a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{path} is {shown(value)}, expected numbers, text, and lists and dicts of them")


def checked(fitted: Any) -> Mapping[str, Any]:
    """Return fitted values to take over, or raise UserError unless they are a dict."""
    if not isinstance(fitted, Mapping):
        raise UserError(f"fitted is {shown(fitted)}, expected a dict such as data.fitted")
    return fitted


def check_same_encoding(name: str, own: Any, other: Any) -> None:
    """Raise UserError unless rows were encoded alike: `plain` values may differ in their floats alone.

    Categories, class names and columns say what the numbers in the arrays mean; means and deviations do not.

    Example:
        >>> check_same_encoding("toy", {"mean": 1.0}, {"mean": 2.0})
        >>> check_same_encoding("toy", {"class_names": ("a", "b")}, {"class_names": ("b", "c")})
        Traceback (most recent call last):
        accelnet.errors.UserError: data 'toy' was encoded with class_names ('a', 'b'), the values to take over with
        ('b', 'c'): load it with those, by fitted=run.experiment.data.fitted of the function that loads it
    """
    difference = _difference(own, other, "")
    if difference is None:
        return
    path, first, second = difference
    if first is None or second is None:
        come, have = ("with", "lack it") if second is None else ("without", "have it")
        came = f"{come} {path}, and the values to take over {have}"
    else:
        came = f"with {path} {shown(first)}, the values to take over with {shown(second)}"
    raise UserError(
        f"data {name!r} was encoded {came}: load it with those, by fitted=run.experiment.data.fitted "
        f"of the function that loads it"
    )


def _difference(own: Any, other: Any, path: str) -> tuple[str, Any, Any] | None:
    """Return where two values first differ, and the smallest parts that can be read there."""
    if isinstance(own, Mapping) and isinstance(other, Mapping):
        for key in sorted({*own, *other}):
            inner = f"{path}.{key}" if path else key
            if key not in own or key not in other:
                return inner, own.get(key), other.get(key)
            if found := _difference(own[key], other[key], inner):
                return found
        return None
    if isinstance(own, tuple) and isinstance(other, tuple) and len(own) == len(other):
        for index, (first, second) in enumerate(zip(own, other, strict=True)):
            if found := _difference(first, second, f"{path}[{index}]"):
                readable = all(isinstance(one, str) for one in own)
                return (path, own, other) if readable else found
        return None
    if _is_number(own) and _is_number(other) and (isinstance(own, float) or isinstance(other, float)):
        return None
    return None if type(own) is type(other) and own == other else (path, own, other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
