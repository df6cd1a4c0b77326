"""With which arguments a model of accelnet's was made."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from flax import nnx

Init = TypeVar("Init", bound=Callable[..., None])
Built = tuple[type, Mapping[str, Any]]

_log: ContextVar[dict[int, tuple[Any, Built]] | None] = ContextVar("built", default=None)


def remembered(init: Init) -> Init:
    """Let `last_built` see with which arguments a constructor was called.

    Args:
        init: `__init__` of a model that takes `rngs`.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def remembering(self: Any, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        if (log := _log.get()) is not None:
            bound = signature.bind(self, *args, **named)
            bound.apply_defaults()
            given = {name: value for name, value in list(bound.arguments.items())[1:] if name != "rngs"}
            log[id(self)] = self, (type(self), given)

    return remembering  # pyright: ignore[reportReturnType]


def last_built(make: Callable[[], Any]) -> tuple[type | None, Mapping[str, Any]]:
    """Make a model, as shapes alone, and return its class and the arguments; None where it is not accelnet's.

    Args:
        make: Function that makes it.

    Example:
        >>> from accelnet.models import MLP
        >>> kind, arguments = last_built(lambda: MLP(2, [4], 1, rngs=nnx.Rngs(0)))
        >>> kind.__name__, arguments["hidden_features"], arguments["dropout"]
        ('MLP', [4], 0.0)
    """
    found: list[Any] = []

    def made() -> Any:
        model = make()
        found.append(log.get(id(model), (None, (None, {})))[1])
        return model

    with _logging() as log:
        nnx.eval_shape(made)
    return found[0]


@contextmanager
def _logging() -> Iterator[dict[int, tuple[Any, Built]]]:
    log: dict[int, tuple[Any, Built]] = {}
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)
