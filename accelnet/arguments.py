"""Checks of arguments, one for each kind: whole numbers, numbers, fractions, words, paths, names.

Each takes the argument's name, for the message, and the value, and returns the value in its plain type. A value of
another kind or out of range raises `UserError`, which tells what came and what was expected.
"""

import math
import numbers
import os
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from accelnet.errors import UserError

_MOST_NAMES = 20  # in a message


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return a whole number.

    Args:
        name: Name of the argument, for the message.
        value: An int or NumPy integer. Booleans, floats such as 64.0 and text are refused.
        low: Least value that is allowed, None for any.
        high: Largest value that is allowed, None for any.

    Raises:
        UserError: if it is of another kind or out of range.

    Example:
        >>> integer("window", 8, low=1)
        8
        >>> integer("window", 1.5, low=1)
        Traceback (most recent call last):
        accelnet.errors.UserError: window is 1.5, expected a whole number of at least 1
    """
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    _check(name, value, good and _within(value, low, high), f"a whole number{_range(low, high)}")
    return int(value)


def number(
    name: str, value: Any, low: float | None = None, high: float | None = None, *, above: float | None = None
) -> float:
    """Return a finite number.

    Args:
        name: Name of the argument, for the message.
        value: An int, a float or a NumPy number. Booleans, text, NaN and infinity are refused.
        low: Least value that is allowed, None for any.
        high: Largest value that is allowed, None for any.
        above: Value that it must exceed, None for any.

    Raises:
        UserError: if it is of another kind or out of range.

    Example:
        >>> number("epochs", 2, above=0)
        2.0
        >>> number("epochs", "3", above=0)
        Traceback (most recent call last):
        accelnet.errors.UserError: epochs is '3', expected a finite number above 0
    """
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    good = good and _within(value, low, high) and (above is None or float(value) > above)
    bound = f" above {above}" if above is not None else ""
    _check(name, value, good, f"a finite number{bound}{_range(low, high)}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """Return a fraction of the rows, at least 0 and below 1.

    Args:
        name: Name of the argument, for the message.
        value: A number, as in `number`.

    Raises:
        UserError: if it is of another kind or out of range.

    Example:
        >>> fraction("test", 0.1)
        0.1
        >>> fraction("test", 5)
        Traceback (most recent call last):
        accelnet.errors.UserError: test is 5, expected a fraction of the rows: a number of at least 0 and below 1
    """
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= float(value) < 1
    _check(name, value, good, "a fraction of the rows: a number of at least 0 and below 1")
    return float(value)


def word(name: str, value: Any, choices: Collection[str] | None = None) -> str:
    """Return text that is not empty.

    Args:
        name: Name of the argument, for the message.
        value: A str.
        choices: What is allowed, None for any text.

    Raises:
        UserError: if it is not text, empty, or none of the choices.

    Example:
        >>> word("held_out", "ends", ("end", "blocks"))
        Traceback (most recent call last):
        accelnet.errors.UserError: held_out is 'ends', expected one of 'end', 'blocks'; did you mean 'end'?
    """
    if choices is not None:
        good = isinstance(value, str) and value in choices
        _check(name, value, good, f"one of {listed(choices)}{did_you_mean(value, choices)}")
    _check(name, value, isinstance(value, str) and value, "text that is not empty")
    return value


def names(name: str, value: Any) -> tuple[str, ...]:
    """Return several different names.

    Args:
        name: Name of the argument, for the message.
        value: A list or tuple of text. A single text is refused: its letters would be the names.

    Raises:
        UserError: if it is of another kind or has a name twice.

    Example:
        >>> names("features", ["size", "colour"])
        ('size', 'colour')
        >>> names("features", "size")
        Traceback (most recent call last):
        accelnet.errors.UserError: features is 'size', expected a list of names, such as ['size']
    """
    such = f", such as [{shown(value)}]" if isinstance(value, str) else ""
    _check(name, value, isinstance(value, Iterable) and not isinstance(value, str | bytes), f"a list of names{such}")
    found: tuple[Any, ...] = tuple(value)
    for one in found:
        if not isinstance(one, str):
            raise UserError(f"{name} has {shown(one)} in it, expected names only")
        if found.count(one) > 1:
            raise UserError(f"{name} has {shown(one)} more than once: leave out all but one")
    return found


def path(name: str, value: Any) -> Path:
    """Return a path.

    Args:
        name: Name of the argument, for the message.
        value: Text or a path, not empty.

    Raises:
        UserError: if it is of another kind or empty.

    Example:
        >>> path("path", None)
        Traceback (most recent call last):
        accelnet.errors.UserError: path is None, expected the path of a file or directory
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    good = isinstance(text, str) and text and "\0" not in text
    _check(name, value, good, "the path of a file or directory")
    return Path(text)  # type: ignore[arg-type]


def check_patterns(name: str, values: Iterable[Any]) -> None:
    """Refuse values that are not regular expressions.

    Args:
        name: Name of the argument, for the message.
        values: The values.

    Raises:
        UserError: for the first that is not one.

    Example:
        >>> check_patterns("frozen", ["(backbone.*"])
        Traceback (most recent call last):
        accelnet.errors.UserError: frozen has '(backbone.*', which is no regular expression: missing ), ...
    """
    for value in values:
        try:
            re.compile(word(f"a pattern of {name}", value))
        except re.error as error:
            raise UserError(f"{name} has {shown(value)}, which is no regular expression: {error}") from None


def shown(value: Any) -> str:
    r"""Return a value in the form that messages show: short, on one line, without control characters.

    Args:
        value: Anything.

    Returns:
        About 80 characters at most.

    Example:
        >>> import numpy as np
        >>> shown("red\x1b[31m"), shown(np.zeros((3, 4))), shown(len)
        ("'red\\x1b[31m'", 'an array of float64 [3, 4]', 'builtin_function_or_method len')
    """
    if hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value, "ndim", 0):
        return f"an array of {value.dtype} {list(value.shape)}"
    if callable(value):
        return f"{type(value).__name__} {getattr(value, '__name__', '')}".strip()
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001, a repr of the user's own may fail in any way
        text = f"a {type(value).__name__}"
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__})"


def listed(values: Iterable[Any]) -> str:
    """Return values in the form that messages show, separated by commas; of more than 20, the first.

    Example:
        >>> listed(["a", "b"]), listed([])
        ("'a', 'b'", 'none')
    """
    values = list(values)
    rest = f" and {len(values) - _MOST_NAMES} more" if len(values) > _MOST_NAMES else ""
    return (", ".join(map(shown, values[:_MOST_NAMES])) or "none") + rest


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """Return the end of a message that names the choice that was probably meant, or nothing.

    Args:
        value: What came.
        choices: What is allowed.

    Example:
        >>> did_you_mean("prize", ["price", "size"])
        "; did you mean 'price'?"
    """
    close = get_close_matches(value, list(choices), n=1) if isinstance(value, str) else []
    return f"; did you mean {shown(close[0])}?" if close else ""


def _check(name: str, value: Any, good: object, expected: str) -> None:
    if not good:
        raise UserError(f"{name} is {shown(value)}, expected {expected}")


def _within(value: Any, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "" if high is None else f" of at most {high}"
    return f" of at least {low}" if high is None else f" from {low} to {high}"
