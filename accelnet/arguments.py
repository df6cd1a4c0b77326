"""Arguments of one kind are checked in one place: whole numbers, numbers, fractions, words, paths, names."""

import math
import numbers
import os
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.errors import UserError

_MOST_NAMES = 20  # in a message


def whole(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return a whole number, or raise an error that says what came.

    Args:
        name: what the argument is called in the message.
        value: an int or NumPy integer. Booleans, floats such as 64.0 and text are refused.
        low: least value that is allowed, None for any.
        high: largest value that is allowed, None for any.

    Returns:
        The number as an int.

    Raises:
        UserError: if it is of another kind or out of range.

    Example:
        >>> whole("window", np.int32(8), low=1)
        8
        >>> whole("window", 1.5, low=1)
        Traceback (most recent call last):
        accelnet.errors.UserError: window is 1.5, expected a whole number of at least 1
    """
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)
    if not good or not _within(value, low, high):
        raise UserError(f"{name} is {shown(value)}, expected a whole number{_range(low, high)}")
    return int(value)


def number(
    name: str, value: Any, low: float | None = None, high: float | None = None, *, above: float | None = None
) -> float:
    """Return a finite number, or raise an error that says what came.

    Args:
        name: what the argument is called in the message.
        value: an int, a float or a NumPy number. Booleans, text, NaN and infinity are refused.
        low: least value that is allowed, None for any.
        high: largest value that is allowed, None for any.
        above: value that it must exceed, None for any.

    Returns:
        The number as a float.

    Raises:
        UserError: if it is of another kind or out of range.

    Example:
        >>> number("epochs", 2, above=0)
        2.0
        >>> number("epochs", "3", above=0)
        Traceback (most recent call last):
        accelnet.errors.UserError: epochs is '3', expected a finite number above 0
    """
    good = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)
    if not good or not _within(value, low, high) or (above is not None and not float(value) > above):
        bound = f" above {above}" if above is not None else ""
        raise UserError(f"{name} is {shown(value)}, expected a finite number{bound}{_range(low, high)}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """Return a fraction of something, at least 0 and below 1, or raise an error that says what came.

    Args:
        name: what the argument is called in the message.
        value: as of `number`.

    Returns:
        The number as a float.

    Raises:
        UserError: if it is of another kind or out of range.

    Example:
        >>> fraction("test", 0.1)
        0.1
        >>> fraction("test", 5)
        Traceback (most recent call last):
        accelnet.errors.UserError: test is 5, expected a fraction of the rows: a number of at least 0 and below 1
    """
    try:
        if (found := number(name, value, low=0)) < 1:
            return found
    except UserError:
        pass
    raise UserError(f"{name} is {shown(value)}, expected a fraction of the rows: a number of at least 0 and below 1")


def word(name: str, value: Any, choices: Collection[str] | None = None) -> str:
    """Return text, or raise an error that says what came.

    Args:
        name: what the argument is called in the message.
        value: a str that is not empty.
        choices: what is allowed, None for any text.

    Returns:
        The text.

    Raises:
        UserError: if it is no text, empty, or none of the choices.

    Example:
        >>> word("held_out", "ends", ("end", "blocks"))
        Traceback (most recent call last):
        accelnet.errors.UserError: held_out is 'ends', expected one of 'end', 'blocks'; did you mean 'end'?
    """
    if choices is not None and not (isinstance(value, str) and value in choices):
        raise UserError(f"{name} is {shown(value)}, expected one of {listed(choices)}{did_you_mean(value, choices)}")
    if not isinstance(value, str) or not value:
        raise UserError(f"{name} is {shown(value)}, expected text that is not empty")
    return value


def names(name: str, value: Any) -> tuple[str, ...]:
    """Return several different names, or raise an error that says what came.

    Args:
        name: what the argument is called in the message.
        value: a list or tuple of text. A single text is refused: it would be taken for its letters.

    Returns:
        The names.

    Raises:
        UserError: if it is of another kind or has a name twice.

    Example:
        >>> names("features", ["size", "colour"])
        ('size', 'colour')
        >>> names("features", "size")
        Traceback (most recent call last):
        accelnet.errors.UserError: features is 'size', expected a list of names, such as ['size']
    """
    if isinstance(value, str):
        raise UserError(f"{name} is {shown(value)}, expected a list of names, such as [{shown(value)}]")
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise UserError(f"{name} is {shown(value)}, expected a list of names")
    found = tuple(value)
    for one in found:
        if not isinstance(one, str):
            raise UserError(f"{name} has {shown(one)} in it, expected names only")
        if found.count(one) > 1:
            raise UserError(f"{name} has {shown(one)} more than once: leave out all but one")
    return found


def path(name: str, value: Any) -> Path:
    """Return a path, or raise an error that says what came.

    Args:
        name: what the argument is called in the message.
        value: text or a path, not empty.

    Returns:
        The path.

    Raises:
        UserError: if it is of another kind or empty.

    Example:
        >>> path("path", None)
        Traceback (most recent call last):
        accelnet.errors.UserError: path is None, expected the path of a file or directory
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise UserError(f"{name} is {shown(value)}, expected the path of a file or directory")
    return Path(text)


def check_patterns(name: str, values: Iterable[Any]) -> None:
    """Refuse what is no regular expression.

    Args:
        name: what the argument is called in the message.
        values: what should be regular expressions.

    Raises:
        UserError: for the first that is none.

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
        value: anything.

    Returns:
        At most about 80 characters.

    Example:
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

    Args:
        values: anything.

    Returns:
        One line.

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
        value: what came.
        choices: what is allowed.

    Returns:
        "; did you mean 'x'?" or "".

    Example:
        >>> did_you_mean("prize", ["price", "size"])
        "; did you mean 'price'?"
    """
    close = get_close_matches(value, list(choices), n=1) if isinstance(value, str) else []
    return f"; did you mean {shown(close[0])}?" if close else ""


def _within(value: Any, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "" if high is None else f" of at most {high}"
    return f" of at least {low}" if high is None else f" from {low} to {high}"
