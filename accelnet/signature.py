"""Ask the signature: a user's function names what it wants, and gets that and nothing else."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError, user_code


class Wants:
    """Hold what a function asks for, by the names of its parameters.

    Args:
        function: Any callable. One without a signature (some built-in functions) wants its positional arguments alone.

    Attributes:
        positional: Names that positional arguments can fill, in order.
        positional_only: Names that only they can fill.
        any_positional: Whether it takes any further positional argument (`*args`).
        required: Names without a default.
        names: All names that can be given.
        anything: Whether it takes any keyword (`**kwargs`).

    Example:
        >>> wants = Wants(lambda outputs, batch, *, step, key=None: 0)
        >>> wants.positional, wants.required, sorted(wants.names)
        (['outputs', 'batch'], ['outputs', 'batch', 'step'], ['batch', 'key', 'outputs', 'step'])
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        kinds = inspect.Parameter
        try:
            # Of a class its constructor's, which a metaclass may hide.
            target = function.__init__ if inspect.isclass(function) else function
            parameters = list(inspect.signature(target).parameters.values())[int(target is not function) :]
        except (TypeError, ValueError):
            parameters = [kinds("arguments", kinds.VAR_POSITIONAL)]
        self.positional = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self.positional_only = {p.name for p in parameters if p.kind is kinds.POSITIONAL_ONLY}
        self.any_positional = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
        self.anything = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
        self.names = {p.name for p in named}
        self.required = [p.name for p in named if p.default is kinds.empty]


_wants = lru_cache(maxsize=512)(Wants)


def wants(function: Callable[..., Any]) -> Wants:
    """Return what a function asks for."""
    try:
        return _wants(function)
    except TypeError:  # a callable that cannot be hashed
        return Wants(function)


def arguments(
    role: str, function: Callable[..., Any], positional: Sequence[Any], offered: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Choose the arguments of a user's function from those that are offered.

    Args:
        role: Role of the function, for messages: "the loss".
        function: The user's function.
        positional: Arguments that it always gets, first.
        offered: Arguments that it can ask for by name; one in an `Offer` is made when it is asked for.

    Returns:
        Positional and keyword arguments.

    Raises:
        UserError: if it takes fewer positional arguments, or requires a name that is not offered.

    Example:
        >>> arguments("the loss", lambda outputs, batch, step: 0, ["o", "b"], {"step": 3, "key": 1})
        (['o', 'b'], {'step': 3})
    """
    asked = wants(function)
    if len(asked.positional) < len(positional) and not asked.any_positional:
        raise UserError(
            f"{role}, {name_of(function)}, takes {len(asked.positional)} positional arguments, expected "
            f"{len(positional)} first"
        )
    taken = set(asked.positional[: len(positional)])
    named = {name: value for name, value in offered.items() if name in asked.names - taken}
    missing = [name for name in asked.required if name not in taken and name not in named]
    if missing:
        raise UserError(
            f"{role}, {name_of(function)}, asks for {', '.join(missing)}, which it cannot have: beside its first "
            f"{len(positional)} arguments it can ask for {', '.join(sorted(offered)) or 'nothing'}, or give the "
            "parameter a default"
        )
    later = asked.positional[len(positional) :]
    extra = [named.pop(name) for name in later if name in asked.positional_only and name in named]
    return [*positional, *extra], {n: value.make() if isinstance(value, Offer) else value for n, value in named.items()}


class Offer:
    """Hold an argument that is made only for a function that asks for it.

    Args:
        make: Function without arguments that makes it.

    Example:
        >>> arguments("the loss", lambda o, b, key: 0, [1, 2], {"key": Offer(lambda: "made")})[1]
        {'key': 'made'}
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def call(role: str, function: Callable[..., Any], *positional: Any, **offered: Any) -> Any:
    """Call a user's function with what it asks for.

    Args:
        role: Role of the function, for messages: "the loss".
        function: The user's function.
        *positional: Arguments that it always gets.
        **offered: Arguments that it can ask for by name.

    Raises:
        UserError: as in `arguments`.
        UserCodeError: if the function fails; the message has its role, its arguments and its own frames.

    Example:
        >>> call("the loss", lambda outputs, batch, step: outputs + step, 1, {}, step=3, key=None)
        4
    """
    given, named = arguments(role, function, positional, offered)
    with user_code(role, described([*given, *named.values()])):
        return function(*given, **named)


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function in messages.

    Example:
        >>> name_of(len)
        'len'
    """
    if inspect.ismethod(function) and not inspect.isclass(function.__self__):
        return f"{type(function.__self__).__name__}.{function.__name__}"
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


def described(values: Sequence[Any]) -> str:
    """Describe arguments by shapes and dtypes.

    Example:
        >>> described([np.zeros((2, 3), np.float32), {"targets": np.zeros(2, np.int32)}])
        'float32[2,3], {targets: int32[2]}'
    """
    return ", ".join(_described(value) for value in values)


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_described(one)}" for name, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_described, value)) + ")"
    if isinstance(value, np.ndarray | jax.Array | jax.ShapeDtypeStruct):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return repr(value) if isinstance(value, bool | int | float | str | None) else type(value).__name__
