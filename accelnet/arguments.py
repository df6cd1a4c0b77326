"""Checks of arguments, one for each kind: numbers, sizes, flags, functions, words, paths, names, instances.

Each takes the argument's name, for the message, and the value, and returns the value in its plain type. A value of
another kind or out of range raises `UserError`, which tells what came and what was expected.
"""

import contextlib
import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.errors import UserError
from accelnet.wording import did_you_mean, listed, shown


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
    _ask(operator.index, value)
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    _check(name, value, good and _within(value, low, high), f"a whole number{_range(low, high)}")
    return int(value)


def number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    varies: bool = False,
) -> float:
    """Return a finite number.

    Args:
        name: Name of the argument, for the message.
        value: An int, a float or a NumPy number. Booleans, text, NaN and infinity are refused.
        low: Least value that is allowed, None for any.
        high: Largest value that is allowed, None for any.
        above: Value that it must exceed, None for any.
        below: Value that it must stay below, None for any.
        varies: Whether it may be one that differs between members of a population, which answers for all of them.

    Raises:
        UserError: if it is of another kind or out of range.

    Example:
        >>> number("epochs", 2, above=0)
        2.0
        >>> number("epochs", "3", above=0)
        Traceback (most recent call last):
        accelnet.errors.UserError: epochs is '3', expected a finite number above 0
    """
    varies = varies and hasattr(type(value), "__jax_array__")
    if not varies:
        _ask(float, value)
    plain: Any = value
    good = varies or (isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value))
    good = good and _within(plain, low, high) and (above is None or plain > above) and (below is None or plain < below)
    bound = f" above {above}" if above is not None else ""
    bound += _range(low, high) + (f" and below {below}" if below is not None else "")
    _check(name, value, good, f"a finite number{bound}")
    return plain if varies else float(plain)


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


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Return several whole numbers of at least 1, such as the widths of layers; anything else raises `UserError`.

    Example:
        >>> sizes("widths", (16, 0))
        Traceback (most recent call last):
        accelnet.errors.UserError: a number of widths is 0, expected a whole number of at least 1
    """
    return tuple(integer(f"a number of {name}", one, 1) for one in sequence(name, value))


def sequence(name: str, value: Any) -> tuple[Any, ...]:
    """Return a list or tuple as a tuple; another thing, text too, raises `UserError`."""
    _check(name, value, isinstance(value, Sequence) and not isinstance(value, str | bytes), "a list")
    return tuple(value)


def flag(name: str, value: Any) -> bool:
    """Return True or False; another value raises `UserError`, since what Python takes for true is often a slip.

    Example:
        >>> flag("resume", "no")
        Traceback (most recent call last):
        accelnet.errors.UserError: resume is 'no', expected True or False
    """
    _check(name, value, isinstance(value, bool | np.bool_), "True or False")
    return bool(value)


def flags(**values: Any) -> None:
    """Refuse, by name, the first of several values that is no `flag`."""
    for name, value in values.items():
        flag(name, value)


def function(name: str, value: Any, expected: str) -> Any:
    """Return what can be called; another value raises `UserError`.

    Example:
        >>> function("activation", "relu", "a function, such as nnx.relu")
        Traceback (most recent call last):
        accelnet.errors.UserError: activation is 'relu', expected a function, such as nnx.relu
    """
    _check(name, value, callable(value), expected)
    return value


def instance(name: str, value: Any, kind: Any, expected: str) -> Any:
    """Return an object of a class; another one, the class itself too, raises `UserError`.

    Args:
        name: Name of the argument, for the message.
        value: The object.
        kind: Class, or several, as of `isinstance`.
        expected: What was expected, in words.

    Example:
        >>> instance("config", [1], dict, "a dict")
        Traceback (most recent call last):
        accelnet.errors.UserError: config is [1], expected a dict
    """
    _check(name, value, isinstance(value, kind) and not isinstance(value, type), expected)
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
    _check(
        name,
        value,
        isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping),
        f"a list of names{such}",
    )
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


def _check(name: str, value: Any, good: object, expected: str) -> None:
    if not good:
        raise UserError(f"{name} is {shown(value)}, expected {expected}")


def _ask(convert: Callable[[Any], Any], value: Any) -> None:
    """Let a number that differs between the members of a population say itself why it cannot be used here."""
    if hasattr(type(value), "__jax_array__"):
        with contextlib.suppress(TypeError):
            convert(value)


def _within(value: Any, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "" if high is None else f" of at most {high}"
    return f" of at least {low}" if high is None else f" from {low} to {high}"
