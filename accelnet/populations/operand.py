"""Operand: a number of a Config that differs between the members of a population."""

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from accelnet.errors import UserError


class Operand:
    """A number to the program, one of many to Python.

    In arithmetic it is the traced value of one member, so that the number enters the compiled program as an operand.
    What Python asks (`rate < 1.0`) is answered where all members have the same answer, and refused where they differ:
    one program cannot follow two paths.

    Args:
        name: of the Config's field, for messages.
        traced: scalar, that of the member which is being traced.
        values: numbers [P], those of all members.

    Example:
        >>> rate = Operand("dropout", jax.numpy.float32(0.5), np.array([0.1, 0.5]))
        >>> 0.0 <= rate < 1.0, float((1.0 - rate) * jax.numpy.ones(()))
        (True, 0.5)
        >>> rate > 0.3
        Traceback (most recent call last):
        accelnet.errors.UserError: dropout takes values from 0.1 to 0.5, and Python asks ...
    """

    __array_ufunc__ = None  # NumPy leaves `array * operand` to us

    def __init__(self, name: str, traced: Any, values: np.ndarray) -> None:
        self.name = name
        self.traced = traced
        self.values = values

    def __jax_array__(self) -> Any:
        return self.traced

    def _refuse(self, question: str) -> NoReturn:
        raise UserError(
            f"{self.name} takes values from {self.values.min():g} to {self.values.max():g}, and Python asks {question} "
            "of it: what decides shapes, sizes or which code runs cannot vary within one program. Vary a field that "
            "enters the computation as a number, as a learning rate does; where 0 is a special case, take one near it"
        )

    def _ask(self, compare: Callable[[Any, Any], Any], other: Any, question: str) -> Any:
        if isinstance(other, jax.Array):
            return compare(self.traced, other)
        answers = compare(self.values, other.values if isinstance(other, Operand) else other)
        if not (np.ndim(answers) and (np.all(answers) or not np.any(answers))):
            self._refuse(question)
        return bool(np.all(answers))

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, int | float | np.number | jax.Array):
            return other is self
        if isinstance(other, int | float | np.number) and other != 0 and self.values.dtype.kind == "f":
            # jax compares a module's attributes, this one among them, with those of modules that it has met before.
            return bool(np.all(self.values == other))
        return self._ask(operator.eq, other, f"whether it is {other}")

    __hash__ = object.__hash__  # flax keeps a module's plain attributes in something that is hashed

    def __lt__(self, other: Any) -> Any:
        return self._ask(operator.lt, other, f"whether it is below {other}")

    def __le__(self, other: Any) -> Any:
        return self._ask(operator.le, other, f"whether it is at most {other}")

    def __gt__(self, other: Any) -> Any:
        return self._ask(operator.gt, other, f"whether it is above {other}")

    def __ge__(self, other: Any) -> Any:
        return self._ask(operator.ge, other, f"whether it is at least {other}")

    def __bool__(self) -> bool:
        return self != 0

    def __float__(self) -> float:
        self._refuse("for one float")

    def __int__(self) -> int:
        self._refuse("for one int")

    def __index__(self) -> int:  # noqa: PLE0305, it never returns
        self._refuse("for one size")

    def __repr__(self) -> str:
        return f"{self.name} of {len(self.values)} members"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __deepcopy__(self, memo: Any) -> "Operand":
        return self

    # Arithmetic leaves a traced scalar behind, which jax's functions take; what Python asks of that is refused by jax.

    def __neg__(self) -> Any:
        return -self.traced

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return abs(self.traced)

    def __add__(self, other: Any) -> Any:
        return self.traced + _plain(other)

    def __radd__(self, other: Any) -> Any:
        return other + self.traced

    def __sub__(self, other: Any) -> Any:
        return self.traced - _plain(other)

    def __rsub__(self, other: Any) -> Any:
        return other - self.traced

    def __mul__(self, other: Any) -> Any:
        return self.traced * _plain(other)

    def __rmul__(self, other: Any) -> Any:
        return other * self.traced

    def __truediv__(self, other: Any) -> Any:
        return self.traced / _plain(other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.traced

    def __pow__(self, other: Any) -> Any:
        return self.traced ** _plain(other)

    def __rpow__(self, other: Any) -> Any:
        return other**self.traced


def _plain(other: Any) -> Any:
    return other.traced if isinstance(other, Operand) else other
