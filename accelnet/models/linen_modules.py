"""A Linen module as pure functions."""

import contextlib
import functools
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import DenyList
from flax.core.scope import Scope
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from accelnet.errors import UserError
from accelnet.models.batch_statistics import linen_without_padding, without_padding
from accelnet.models.effects import watch_linen, watched
from accelnet.models.linen_layers import Twin, below, is_below, replacing
from accelnet.models.pure import (
    FLAGS,
    CallSettings,
    ModelState,
    Params,
    PureModel,
    at_start,
    call_arguments,
    call_module,
    is_trained,
    merged,
)
from accelnet.models.replacing import Change, changed

_lock = threading.RLock()


@dataclass
class _Asked:
    """What a module asked of flax in one call.

    Attributes:
        streams: Names of the random number streams.
        sown: Collections that `sow` wrote into.
    """

    streams: set[str] = field(default_factory=set)
    sown: set[str] = field(default_factory=set)


@contextlib.contextmanager
def _recorded(*, noise: bool) -> Iterator[_Asked]:
    """Record which streams and collections a module asks for; without `noise` it is told that it has no stream.

    Flax keeps what a module asks for to itself: a stream that is missing is an error, or, after `has_rng`, silence.
    """
    asked, thread = _Asked(), threading.get_ident()
    make_rng, has_rng, sow = Scope.make_rng, linen.Module.has_rng, linen.Module.sow

    def is_here() -> bool:
        return threading.get_ident() == thread

    def make(self: Any, name: str = "params") -> Any:
        if is_here():
            asked.streams.add(name)
        return make_rng(self, name)

    def has(self: Any, name: str) -> bool:
        if is_here():
            asked.streams.add(name)
            if not noise or name == "params":
                return False
        return has_rng(self, name)

    def record(self: Any, col: str, *args: Any, **kwargs: Any) -> bool:
        if is_here():
            asked.sown.add(col)
        return sow(self, col, *args, **kwargs)

    with _lock:
        Scope.make_rng, linen.Module.has_rng, linen.Module.sow = make, has, record  # type: ignore[method-assign]
        try:
            yield asked
        finally:
            Scope.make_rng, linen.Module.has_rng, linen.Module.sow = make_rng, has_rng, sow  # type: ignore[method-assign]


class LinenModel(PureModel):
    """The pure functions of a Linen module; a bound one starts from its variables.

    Attributes:
        changes: Layers in the places of the module's own.
    """

    def __init__(self, model: linen.Module, frozen: Sequence[str] = (), changes: Sequence[Change] = ()) -> None:
        self._given: Mapping[str, Any] | None = None
        if model.scope is not None:
            model, self._given = model.unbind()
        self.source, self._frozen, self.changes = model, frozen, changes
        self._streams = {"dropout"}

    def init(self, key: jax.Array, inputs: Any = None) -> tuple[Params, ModelState]:
        twins: dict[str, Twin] = {}
        variables = jax.tree.map(jnp.array, linen.meta.unbox(self._variables(key, inputs, twins)))
        flat = flatten_dict(dict(variables.pop("params", {})))
        others = {(*_names(path), *rest) for path, twin in twins.items() if twin.changes for rest in twin.untrained()}
        trained = {path: value for path, value in flat.items() if is_trained(value) and path not in others}
        others = {path: value for path, value in flat.items() if path not in trained}
        state = {"params": unflatten_dict(others)} if others else {}
        return unflatten_dict(trained), state | {name: _plain(value) for name, value in variables.items()}

    def call(self, params: Params, model_state: ModelState, inputs: Any, settings: CallSettings) -> Any:
        function = getattr(type(self.source), settings.method or "__call__", None)
        if function is None:
            raise UserError(f"the model, {type(self.source).__name__}, has no method {settings.method!r}")
        args, kwargs = self._arguments(function, inputs, settings)
        variables = merged({"params": params}, model_state)

        def applied(rngs: dict[str, jax.Array]) -> Any:
            def bound(*args: Any, **kwargs: Any) -> Any:
                # All collections may be written to: what evaluation changes is dropped, and BatchNorm is watched.
                mutable = DenyList(("params",))
                return self.source.apply(variables, *args, rngs=rngs, mutable=mutable, method=settings.method, **kwargs)

            with (
                watched(settings.train),
                without_padding(settings.mask),
                linen.intercept_methods(watch_linen(self._frozen)),
                linen.intercept_methods(functools.partial(_configured, settings)),
                linen.intercept_methods(linen_without_padding),
                linen.intercept_methods(replacing(self.changes)),  # the innermost
            ):
                return call_module(bound, args, kwargs)

        (outputs, after), asked = self._traced(applied, settings.key, noise=settings.train)
        left = {name: after[name] for name in after if name in asked.sown and name not in model_state}
        state = _after(model_state, after, left) if settings.train else model_state
        return (outputs, state, _plain(left)) if settings.sown else (outputs, state)

    def module(self, params: Params, model_state: ModelState) -> linen.Module:
        if self.changes:
            raise UserError(
                "layers of this Linen module are others than its own, which it cannot be bound to: take "
                "run.predict(inputs), or experiment.pure_model.apply(...)"
            )
        return self.source.bind(merged({"params": params}, model_state))

    def layers(self, params: Params, model_state: ModelState, inputs: Any = None) -> dict[str, nnx.Module]:
        found = {}
        for path, twin in self._twins(inputs).items():
            layer = self._filled(path, twin, params, model_state)
            for names, one in () if layer is None else nnx.iter_modules(layer):
                found[".".join((*filter(None, [path]), *map(str, names)))] = one
        return found

    def changed(self, changes: Sequence[Change]) -> "LinenModel":
        source = self.source if self._given is None else self.source.bind(self._given)
        return LinenModel(source, self._frozen, [*self.changes, *changes])

    def values_after(
        self, params: Params, model_state: ModelState, changes: Sequence[Change], inputs: Any = None
    ) -> dict[tuple[str, ...], Any]:
        values: dict[Any, Any] = flatten_dict(params) | flatten_dict(model_state)
        for path, twin in self._twins(inputs).items():
            own, layer = below(changes, path), self._filled(path, twin, params, model_state)
            if not own or layer is None:
                continue
            for rest, leaf in nnx.to_flat_state(nnx.split(changed(layer, own, nnx.Rngs(0)))[1]):
                kind = () if isinstance(leaf, nnx.Param) else ("params",)
                values[*kind, *_names(path), *map(str, rest)] = leaf.get_value()
        return values

    def _twins(self, inputs: Any) -> dict[str, Twin]:
        """Return the layers that can have others in their places, as they are now, by path."""
        found: dict[str, Twin] = {}
        jax.eval_shape(lambda inputs: self._variables(jax.random.key(0), inputs, found), inputs)
        return found

    def _filled(self, path: str, twin: Twin, params: Params, model_state: ModelState) -> Any:
        return twin.filled(_values_below(path, params) | _values_below(path, model_state.get("params", {})))

    def rules(self, inputs: Any) -> list[tuple[str, PartitionSpec]]:
        variables = jax.eval_shape(lambda inputs: self._variables(jax.random.key(0), inputs), inputs)
        flat: dict[Any, Any] = flatten_dict(_plain(linen.get_partition_spec(variables).get("params", {})))
        return [(re.escape(".".join(path)), spec) for path, spec in flat.items() if spec is not None and any(spec)]

    def _variables(self, key: jax.Array, inputs: Any, found: dict[str, Twin] | None = None) -> dict[str, Any]:
        args, kwargs = self._arguments(type(self.source).__call__, inputs, at_start(key))
        found = {} if found is None else found

        def made(rngs: dict[str, jax.Array]) -> Any:
            with linen.intercept_methods(replacing(self.changes, found)):
                return call_module(lambda *a, **k: self.source.init(rngs, *a, **k), args, kwargs)

        variables, asked = self._traced(made, key, noise=False)
        names = {path for path, _ in self.changes}
        if unknown := sorted(name for name in names if not any(is_below(name, path) for path in found)):
            raise UserError(
                f"the model has no layer {', '.join(unknown)} that can be replaced. In a Linen module these are "
                f"flax's Dense, DenseGeneral, Conv and Embed, {', '.join(sorted(found)) or 'none'}"
            )
        variables = {name: value for name, value in variables.items() if name not in {"intermediates", *asked.sown}}
        return variables if self._given is None else {**variables, **self._given}

    def _arguments(self, function: Any, inputs: Any, settings: CallSettings) -> tuple[list[Any], dict[str, Any]]:
        given, named = call_arguments(function, inputs, settings, bound=False)
        # An attribute of the same name (`deterministic` of the module) is the author's choice, and linen refuses both.
        chosen = [name for name in named if name in FLAGS and getattr(self.source, name, None) is not None]
        return given, {name: value for name, value in named.items() if name not in chosen}

    def _traced(
        self, function: Callable[[dict[str, jax.Array]], Any], key: jax.Array, *, noise: bool
    ) -> tuple[Any, _Asked]:
        """Call, and again where the module asked for a stream that it did not have."""
        while True:
            others = sorted(self._streams - {"dropout"})
            rngs = {"params": jax.random.fold_in(key, 0), "dropout": jax.random.fold_in(key, 1)}
            rngs |= {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in others}
            with _recorded(noise=noise) as asked:
                result = function(rngs)
            if asked.streams <= set(rngs):
                return result, asked
            self._streams |= asked.streams - {"params"}


def _configured(settings: CallSettings, next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Call a layer in the run's dtype, with BatchNorm's statistics of the examples that the settings name."""
    module, dtype = context.module, settings.dtype
    if isinstance(module, linen.BatchNorm):  # this call's own copy of a frozen dataclass
        if settings.axes and module.axis_name is None:
            object.__setattr__(module, "axis_name", settings.axes)
        if settings.batch_statistics:
            object.__setattr__(module, "momentum", 0.0)
    outputs = next_call(*args, **kwargs)
    if dtype is None or getattr(module, "dtype", dtype) is not None or context.method_name != "__call__":
        return outputs
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, outputs)


def _names(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _values_below(path: str, tree: Any) -> dict[tuple[str, ...], Any]:
    for name in _names(path):
        tree = tree.get(name, {})
    return flatten_dict(tree)


def _plain(tree: Any) -> Any:
    return {name: _plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


def _after(before: ModelState, after: Mapping[str, Any], left: Mapping[str, Any]) -> ModelState:
    """Return the model's state after a call, or say what of it cannot be kept."""
    new = flatten_dict(_plain({name: value for name, value in after.items() if name not in {*left, "intermediates"}}))
    old = flatten_dict(before)
    for path in new:
        if path not in old:
            raise UserError(
                f"the model makes the variable {'.'.join(path[1:])} of the collection {path[0]!r} in training only: "
                "make it when the module is initialized, which is done in evaluation mode, too"
            )
    return unflatten_dict({path: new.get(path, value) for path, value in old.items()})
