"""Operand: a number of a Config that differs between the members of a population."""

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from accelnet.errors import UserError


def _comparison(compare: Callable[[Any, Any], Any], words: str) -> Callable[["MemberNumber", Any], Any]:
    return lambda self, other: self._ask(compare, other, f"whether it is {words} {other}")


def _arithmetic(compute: Callable[[Any, Any], Any]) -> tuple[Callable[["MemberNumber", Any], Any], ...]:
    """Return an operation with the operand on its left, and with the operand on its right."""

    def forward(self: "MemberNumber", other: Any) -> Any:
        return compute(self.traced, other.traced if isinstance(other, MemberNumber) else other)

    return forward, lambda self, other: compute(other, self.traced)


class MemberNumber:
    """A number to the program, one of many to Python.

    In arithmetic it is the traced value of one member, so that the number enters the compiled program as an operand.
    What Python asks (`rate < 1.0`) is answered where all members have the same answer, and refused where they differ:
    one program cannot follow two paths.

    Args:
        name: Name of the Config's field, for messages.
        traced: Value of the member that is being traced, scalar.
        values: Numbers of all members, [P].

    Example:
        >>> rate = MemberNumber("dropout", jax.numpy.float32(0.5), np.array([0.1, 0.5]))
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
        answers = compare(self.values, other.values if isinstance(other, MemberNumber) else other)
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

    __lt__ = _comparison(operator.lt, "below")
    __le__ = _comparison(operator.le, "at most")
    __gt__ = _comparison(operator.gt, "above")
    __ge__ = _comparison(operator.ge, "at least")

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

    def __deepcopy__(self, memo: Any) -> "MemberNumber":
        return self

    # Arithmetic leaves a traced scalar behind, which jax's functions take; what Python asks of that is refused by jax.

    def __neg__(self) -> Any:
        return -self.traced

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return abs(self.traced)

    __add__, __radd__ = _arithmetic(operator.add)
    __sub__, __rsub__ = _arithmetic(operator.sub)
    __mul__, __rmul__ = _arithmetic(operator.mul)
    __truediv__, __rtruediv__ = _arithmetic(operator.truediv)
    __pow__, __rpow__ = _arithmetic(operator.pow)
