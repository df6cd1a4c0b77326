"""Values of a Config, from the JSON that a run keeps of them."""

import contextlib
import enum
import math
import types
import typing
from pathlib import Path
from typing import Any

from accelnet.errors import UserError


def value_from_json(name: str, kind: Any, value: Any, default: Any, source: str = "the run was started") -> Any:
    """Return the value of a field.

    Args:
        name: Name of the field, for messages.
        kind: Annotation of the field.
        value: JSON value.
        default: Default of the field. JSON has no infinities and no NaN, which are written as null: where the field
            cannot be None, null becomes the default, if that is not finite.
        source: Where the value comes from, for messages.

    Raises:
        UserError: if the value does not suit the annotation.

    Example:
        >>> value_from_json("widths", tuple[int, ...], [64, 64], ()), value_from_json("limit", float, None, math.inf)
        ((64, 64), inf)
    """
    try:
        return _read(kind, value)
    except ValueError:
        if value is None and isinstance(default, float) and not math.isfinite(default):
            return default
    raise UserError(
        f"{source} with {name} = {value!r}, and the Config's annotation of {name} is "
        f"{getattr(kind, '__name__', kind)}: change one of them"
    )


def _read(kind: Any, value: Any) -> Any:
    """Return a JSON value as one of this kind, or raise ValueError."""
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Annotated:
        return _read(args[0], value)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            with contextlib.suppress(ValueError):
                return _read(option, value)
    elif origin in (tuple, list, set, frozenset) and isinstance(value, list):
        if not args:
            return origin(tuple(one) if isinstance(one, list) else one for one in value)
        kinds = args[:1] * len(value) if len(args) == 1 or args[-1] is ... else args
        return origin([_read(kind, one) for kind, one in zip(kinds, value, strict=True)])
    elif isinstance(origin, type) and issubclass(origin, enum.Enum):
        for member in origin:
            if value in (str(member), member.value):
                return member
    elif _suits(origin, args, value):
        return origin(value) if origin is float or (isinstance(origin, type) and issubclass(origin, Path)) else value
    raise ValueError


def _suits(origin: Any, args: tuple[Any, ...], value: Any) -> bool:
    if origin is typing.Literal:
        return value in args
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(origin, type) and issubclass(origin, Path):
        return isinstance(value, str)
    # Any other annotation is not checked.
    return origin not in (bool, int, str, types.NoneType, dict, tuple, list, set, frozenset) or type(value) is origin
