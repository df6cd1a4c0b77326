"""Effects are checked, not names: that dropout drops, and that batch statistics move, when a step is traced.

A flag that nobody passes on lets a network train happily, without dropout or with statistics that stay 0 and 1. So the
layers themselves are looked at while they are called: what came out, not what was asked for.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from typing import Any

from flax import linen, nnx

from accelnet.errors import UserError
from accelnet.scopes import layer_scope

Interceptor = Callable[[Any, Callable[[], Any], Any, Any], Any]

_INTENDED = "effects_are_intended"
_PATH = "_accelnet_path"
_REMEDY = (
    "pass the flag on to the layer (def __call__(self, x, train): ... deterministic=not train, "
    "use_running_average=not train), or let .train() and .eval() set it (nnx); where a module's configuration holds "
    "the flag, give one module for each mode: an.models.per_mode(training=..., evaluation=...). If this is meant, give "
    f"the layer's class, or that of a module around it, the attribute {_INTENDED} = True"
)
_ATTENTION = (nnx.MultiHeadAttention, linen.MultiHeadDotProductAttention)


@dataclass
class LayerEffects:
    """What was seen of the layers of one call.

    Attributes:
        train: Whether the call is one of training.
        found: Sentences, each with the path of a layer.
        paths: Path in the model by a layer's identity; a copy that nnx.scan or its like makes has none.
    """

    train: bool
    found: list[str] = field(default_factory=list)
    paths: Mapping[int, str] = field(default_factory=dict)

    def see_dropout(self, path: str, kind: str, rate: Any, dropped: bool) -> None:
        """Note a dropout layer that did not do what its mode asks for."""
        if dropped != self.train:
            what = "dropped nothing in training" if self.train else "drops in evaluation"
            self.found.append(f"{path} ({kind} of rate {rate}) {what}")

    def see_statistics(self, path: str, kind: str, moved: bool) -> None:
        """Note a layer whose running averages did not do what its mode asks for."""
        if moved != self.train:
            what = "leaves its statistics alone in training" if self.train else "moves its statistics in evaluation"
            self.found.append(f"{path} ({kind}) {what}")


_watch: ContextVar[LayerEffects | None] = ContextVar("effects", default=None)


@contextmanager
def watched(train: bool, paths: Mapping[int, str] | None = None) -> Iterator[None]:
    """Look at the layers that are called inside.

    Args:
        train: Whether the call is one of training.
        paths: Path in the model by a layer's identity, as `watch_layers` returns them.

    Raises:
        UserError: at the end, if a layer did not do what its mode asks for.
    """
    watch = LayerEffects(train, paths=paths or {})
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)
    if watch.found:
        found = list(dict.fromkeys(watch.found))
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(f"{'; '.join(found[:3])}{more}: {_REMEDY}")


def watch_layers(module: nnx.Module, frozen: Sequence[str]) -> dict[int, str]:
    """Let the layers of an nnx module name their operations, and those with effects report what they do.

    These are dropout, attention and batch normalization. Statistics of layers among the frozen parameters may stay. The
    module must be a copy that is thrown away.

    Returns:
        The path of each layer by its identity; not every class takes an attribute that is not its own.
    """
    layers = [(".".join(map(str, path)), layer) for path, layer in nnx.iter_modules(module)]
    intended = [path for path, layer in layers if getattr(layer, _INTENDED, False)]
    for path, layer in layers:
        # A class that does something when it gets a subclass must not get one here.
        if callable(layer) and type(layer).__init_subclass__.__func__ is nnx.Module.__init_subclass__.__func__:
            intercept_calls(layer, _name)
        around = any(one == "" or path == one or path.startswith(f"{one}.") for one in intended)
        if around or not isinstance(layer, nnx.Dropout | nnx.BatchNorm | nnx.MultiHeadAttention):
            continue
        if isinstance(layer, nnx.BatchNorm) and is_frozen(path, frozen):
            continue
        intercept_calls(layer, _report)
        setattr(layer, _PATH, path or "the model")
    return {id(layer): path for path, layer in layers}


def intercept_calls(module: nnx.Module, interceptor: Interceptor) -> None:
    """Let `interceptor(module, run, args, kwargs)` give the outputs of a module's calls, which `run()` would give.

    The module must be a copy that is thrown away, since its class changes, which survives the split and merge of
    nnx.jit, nnx.scan and their like. A call of `super()` inside is none of its own.
    """
    object.__setattr__(module, "__class__", _intercepted(type(module), interceptor))


@cache
def _intercepted(kind: type, interceptor: Interceptor) -> type:
    @wraps(kind.__call__)  # the signature, by which a call is given what it names
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return interceptor(self, partial(kind.__call__, self, *args, **kwargs), args, kwargs)

    return type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def is_frozen(path: str, frozen: Sequence[str]) -> bool:
    """Say whether a layer lies among frozen parameters.

    Example:
        >>> is_frozen("backbone.norm", ["backbone.*"]), is_frozen("head", ["backbone.*"])
        (True, False)
    """
    return any(re.fullmatch(pattern, f"{path}.scale") for pattern in frozen)


def _name(layer: Any, run: Callable[[], Any], _args: Any, _kwargs: Any) -> Any:
    watch = _watch.get()
    with layer_scope(layer, "" if watch is None else watch.paths.get(id(layer), "")):
        return run()


def _report(layer: Any, run: Callable[[], Any], args: Any, kwargs: Any) -> Any:
    watch = _watch.get()
    return run() if watch is None else _see(watch, getattr(layer, _PATH), layer, run, args, kwargs)


def _see(watch: LayerEffects, path: str, layer: Any, run: Callable[[], Any], args: Any, kwargs: Any) -> Any:
    """Call a layer and note what it did."""
    kind = type(layer).__name__
    if isinstance(layer, nnx.BatchNorm | linen.BatchNorm):
        before = _mean(layer)
        outputs = run()
        if isinstance(layer, linen.BatchNorm) or before is not None:
            watch.see_statistics(path, kind, _mean(layer) is not before)
        return outputs
    outputs = run()
    if isinstance(layer, _ATTENTION):
        if not _is_zero(layer.dropout_rate):
            given = kwargs.get("deterministic")
            deterministic = layer.deterministic if given is None else given
            watch.see_dropout(path, kind, layer.dropout_rate, not deterministic)
    elif not _is_zero(layer.rate):
        watch.see_dropout(path, kind, layer.rate, outputs is not (args[0] if args else kwargs["inputs"]))
    return outputs


def _mean(layer: nnx.BatchNorm | linen.BatchNorm) -> Any:
    if isinstance(layer, linen.BatchNorm):
        return layer.get_variable("batch_stats", "mean")
    return None if layer.mean is None else layer.mean.get_value()


def _is_zero(rate: Any) -> bool:
    return isinstance(rate, int | float) and rate == 0


def watch_linen(frozen: Sequence[str]) -> Callable[..., Any]:
    """Return an interceptor, as of `flax.linen.intercept_methods`, that names and reports what layers do."""

    def intercept(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        with layer_scope(context.module, ".".join(context.module.path)):
            return reported(next_call, args, kwargs, context)

    def reported(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        watch = _watch.get()
        layer: Any = context.module
        kinds = (linen.Dropout, linen.BatchNorm, *_ATTENTION)
        if watch is None or context.method_name != "__call__" or not isinstance(layer, kinds) or _is_intended(layer):
            return next_call(*args, **kwargs)
        path = ".".join(context.module.path) or "the model"
        if isinstance(layer, linen.BatchNorm) and (is_frozen(path, frozen) or layer.is_initializing()):
            return next_call(*args, **kwargs)
        return _see(watch, path, layer, partial(next_call, *args, **kwargs), args, kwargs)

    return intercept


def _is_intended(layer: Any) -> bool:
    while isinstance(layer, linen.Module):
        if getattr(layer, _INTENDED, False):
            return True
        layer = layer.parent
    return False
