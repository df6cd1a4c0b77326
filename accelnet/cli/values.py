"""Values of a Config, from the JSON that a run keeps of them."""

import enum
import math
import types
import typing
from pathlib import Path
from typing import Any

from accelnet.errors import UserError


def value_from_json(name: str, kind: Any, value: Any, default: Any) -> Any:
    """Return the value of a field.

    Args:
        name: Name of the field, for messages.
        kind: Annotation of the field.
        value: JSON value.
        default: Default of the field. JSON has no infinities and no NaN, which are written as null: where the field
            cannot be None, null becomes the default, if that is not finite.

    Raises:
        UserError: if the value does not suit the annotation.

    Example:
        >>> value_from_json("widths", tuple[int, ...], [64, 64], ()), value_from_json("limit", float, None, math.inf)
        ((64, 64), inf)
    """
    found = [read for option in _options(kind) for read in _read(option, value)]
    if found:
        return found[0]
    if value is None and isinstance(default, float) and not math.isfinite(default):
        return default
    raise UserError(
        f"the run was started with {name} = {value!r}, and the Config's annotation of {name} is "
        f"{getattr(kind, '__name__', kind)}: use the annotation of that time, or another --workdir"
    )


def _options(kind: Any) -> tuple[Any, ...]:
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _read(kind: Any, value: Any) -> list[Any]:
    """Return a list of the value as this kind, an empty one if it is none."""
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return [value] if value in typing.get_args(kind) else []
    if origin in (tuple, list, set, frozenset):
        return [origin(items) for items in _read_items(typing.get_args(kind), value)]
    if not isinstance(origin, type):
        return [value]
    if issubclass(origin, enum.Enum):
        return [member for member in origin if value in (str(member), member.value)]
    if issubclass(origin, Path):
        return [origin(value)] if isinstance(value, str) else []
    if origin is float:
        return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
    if origin in (bool, int, str, types.NoneType, dict):
        return [value] if type(value) is origin else []
    return [value]


def _read_items(kinds: tuple[Any, ...], values: Any) -> list[list[Any]]:
    """Return a list of the items, an empty one if they are none of these kinds; no kinds stand for any."""
    if not isinstance(values, list):
        return []
    if not kinds:
        return [[tuple(value) if isinstance(value, list) else value for value in values]]
    expected = kinds[:1] * len(values) if len(kinds) == 1 or kinds[-1] is ... else kinds
    if len(expected) != len(values):
        return []
    items = [
        [found for option in _options(kind) for found in _read(option, value)]
        for kind, value in zip(expected, values, strict=True)
    ]
    return [[found[0] for found in items]] if all(items) else []
