"""Ranges of hyperparameters, written as in mathematics: "[0, 1)", "(0, 1)", "[0, inf)"."""

import contextlib
import math
import numbers
import re
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from accelnet.errors import UserError
from accelnet.wording import shown


@dataclass(frozen=True)
class Range:
    """Numbers from one bound to another.

    Attributes:
        low: Lower bound, finite.
        high: Upper bound; infinity for none.
        has_low: Whether the lower bound itself belongs to it.
        has_high: Whether the upper bound itself belongs to it.

    Example:
        >>> 1.0 in Range.parse("[0, 1)"), 1.0 in Range.parse("[0, 1]"), str(Range.parse("[0, inf)"))
        (False, True, 'of at least 0')
    """

    low: float
    high: float
    has_low: bool = True
    has_high: bool = False

    @staticmethod
    def parse(text: str) -> "Range":
        """Read an interval in the notation of mathematics."""
        match = re.fullmatch(r"([\[(])\s*(\S+)\s*,\s*(\S+)\s*([\])])", text if isinstance(text, str) else "")
        with contextlib.suppress(ValueError):
            if match and (low := float(match[2])) < (high := float(match[3])) and math.isfinite(low):
                return Range(low, high, match[1] == "[", match[4] == "]")
        raise UserError(f'a range is {text!r}, expected an interval such as "[0, 1)" or "[0, inf)"')

    def __contains__(self, number: float) -> bool:
        above = number > self.low or (self.has_low and number == self.low)
        return above and (number < self.high or (self.has_high and number == self.high))

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "that is finite"
        if math.isinf(self.high):
            return f"{'of at least' if self.has_low else 'above'} {self.low:g}"
        return f"in {'[' if self.has_low else '('}{self.low:g}, {self.high:g}{']' if self.has_high else ')'}"


# What optax lets vary has no declared range; only its rate is known to be no negative number.
REAL = Range(-math.inf, math.inf, has_low=False)
NOT_NEGATIVE = Range(0.0, math.inf)


def check_number(name: str, value: Any, valid: Range) -> Any:
    """Check that a value is one number in a range; what is being traced cannot be looked at.

    Args:
        name: name of the value, for the message.
        value: a number or a scalar array.
        valid: range that it has to be in.

    Returns:
        A float, so that no array of the caller's ends up in a state whose buffers are donated; a tracer as
        float32.

    Raises:
        UserError: the value is no number, not finite, or out of range.

    Example:
        >>> check_number("momentum", 1.5, Range.parse("[0, 1)"))
        Traceback (most recent call last):
        accelnet.errors.UserError: momentum is 1.5, expected a number in [0, 1)
    """
    if not isinstance(value, Tracer) and hasattr(value, "__jax_array__"):
        value = value.__jax_array__()
    if isinstance(value, Tracer):
        if value.shape:
            raise UserError(f"{name} has shape {value.shape}, expected one number {valid}")
        return value.astype(jnp.float32)
    if callable(value):
        raise UserError(f"{name} is a function, expected a number {valid}: a schedule of the rate goes to schedule=")
    if isinstance(value, bool | str | bytes) or not (isinstance(value, numbers.Real) or np.shape(value) == ()):
        raise UserError(f"{name} is {shown(value)}, expected one number {valid}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {shown(value)}, expected a number {valid}") from None
    if not math.isfinite(number) or number not in valid:
        raise UserError(f"{name} is {number:g}, expected a number {valid}")
    return number
