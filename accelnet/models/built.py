"""How a module was made, and how to make it again with other numbers."""

import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

_lock = threading.RLock()


@dataclass(frozen=True)
class Construction:
    """Hold how the outermost module of a model is made.

    Attributes:
        kind: Its class.
        arguments: Arguments of its constructor by name, defaults included, `rngs` left out.
        turn: How many modules the model's function begins to make before it.
    """

    kind: type
    arguments: Mapping[str, Any]
    turn: int


def construction(make: Callable[[], Any]) -> Construction | None:
    """Make a model, as shapes alone, and return how; None where no constructor made it.

    Args:
        make: Function that makes an nnx module.

    Example:
        >>> from accelnet.models import MLP
        >>> how = construction(lambda: MLP(2, [4], 1, rngs=nnx.Rngs(0)))
        >>> how.kind.__name__, how.arguments["hidden_features"], how.arguments["dropout"]
        ('MLP', [4], 0.0)
    """
    begun: list[Any] = []
    given: list[dict[str, Any]] = []
    found: list[Construction] = []

    def note(module: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        begun.append(module)
        given.append(arguments)
        return arguments

    def made() -> Any:
        with _constructing(note):
            module = make()
        # The last: what a constructor of another's hands on is made within it.
        found.extend(Construction(type(one), given[turn], turn) for turn, one in enumerate(begun) if one is module)
        return module

    nnx.eval_shape(made)
    return found[-1] if found else None


@contextmanager
def other_numbers(turn: int, numbers: Mapping[str, int]) -> Iterator[None]:
    """Make one of the modules that are made within it with other numbers.

    Args:
        turn: Which one, as in `Construction`.
        numbers: Numbers by their paths among its arguments, as `numbers_in` names them.

    Example:
        >>> from accelnet.models import MLP
        >>> with other_numbers(0, {"hidden_features.0": 3}):
        ...     MLP(2, [4], 1, rngs=nnx.Rngs(0)).head.in_features
        3
    """
    turns = iter(range(2**62))

    def change(_: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        return with_numbers(arguments, numbers) if next(turns) == turn else arguments

    with _constructing(change):
        yield


@contextmanager
def _constructing(seen: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Let a function see and change the arguments of every nnx module that this thread makes."""
    meta, thread = type(nnx.Module), threading.get_ident()
    with _lock:
        original = meta._pytree_meta_construct

        def construct(cls: Any, self: Any, *args: Any, **named: Any) -> None:
            if threading.get_ident() != thread:
                return original(cls, self, *args, **named)
            bound = inspect.signature(cls.__init__).bind(self, *args, **named)
            bound.apply_defaults()
            own = next(iter(bound.arguments))
            given = {name: value for name, value in bound.arguments.items() if name not in (own, "rngs")}
            bound.arguments.update(seen(self, given))
            return original(cls, *bound.args, **bound.kwargs)

        meta._pytree_meta_construct = construct  # type: ignore[method-assign]
        try:
            yield
        finally:
            meta._pytree_meta_construct = original  # type: ignore[method-assign]


def numbers_in(value: Any, path: str = "") -> dict[str, int]:
    """Return the whole numbers in a value by their paths, through tuples, lists, dicts, dataclasses and Linen modules.

    Example:
        >>> numbers_in({"channels": (16, 32), "residual": True, "rate": 0.5})
        {'channels.0': 16, 'channels.1': 32}
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return {path: int(value)}
    found: dict[str, int] = {}
    for name, part in _parts(value):
        found |= numbers_in(part, f"{path}.{name}" if path else name)
    return found


def with_numbers(value: Any, numbers: Mapping[str, int], path: str = "") -> Any:
    """Return a value with other numbers at the paths of `numbers_in`.

    Example:
        >>> with_numbers({"channels": (16, 32)}, {"channels.1": 24})
        {'channels': (16, 24)}
    """
    if path in numbers:
        return type(value)(numbers[path])
    if not path or any(one.startswith(f"{path}.") for one in numbers):
        parts = _parts(value)
        new = {name: with_numbers(part, numbers, f"{path}.{name}" if path else name) for name, part in parts}
        changed = {name: new[name] for name, part in parts if new[name] is not part}
        return _rebuilt(value, changed) if changed else value
    return value


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), part) for name, part in value.items()]
    if isinstance(value, tuple | list):
        return [(str(i), part) for i, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type | nnx.Module | jax.Array):
        skipped = ("parent", "name") if isinstance(value, linen.Module) else ()
        names = [field.name for field in dataclasses.fields(value) if field.init and field.name not in skipped]
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    return []


def _rebuilt(value: Any, changed: Mapping[str, Any]) -> Any:
    if isinstance(value, linen.Module):
        return value.clone(**changed)
    if isinstance(value, Mapping):
        return type(value)({name: changed.get(str(name), part) for name, part in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple | list):
        parts = [changed.get(str(i), part) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return dataclasses.replace(value, **changed)
