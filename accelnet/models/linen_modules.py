"""A Linen module as pure functions."""

import contextlib
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.core import DenyList
from flax.core.scope import Scope
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from accelnet.errors import UserError
from accelnet.models.effects import watch_linen, watched
from accelnet.models.normalization import without_padding
from accelnet.models.pure import (
    FLAGS,
    ModelState,
    Params,
    PureModel,
    call_arguments,
    call_module,
    is_trained,
    merged,
)

_lock = threading.RLock()
# What a call may ask for when its parameters are made.
_AT_START = {"step": 0, "progress": 0.0}


@dataclass
class _Asked:
    """What a module asked of flax in one call.

    Attributes:
        streams: names of the random number streams.
        sown: collections that `sow` wrote into.
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


def adapt_linen(model: linen.Module, frozen: Sequence[str] = ()) -> PureModel:
    """Give the pure functions of a Linen module.

    Args:
        model: the module; a bound one starts from its variables.
        frozen: as of `adapt`.
    """
    given: Mapping[str, Any] | None = None
    if model.scope is not None:
        model, given = model.unbind()
    names = {"dropout"}
    call = type(model).__call__

    def arguments(function: Any, inputs: Any, **settings: Any) -> tuple[list[Any], dict[str, Any]]:
        given, named = call_arguments(function, inputs, bound=False, **settings)
        # An attribute of the same name (`deterministic` of the module) is the author's choice, and linen refuses both.
        chosen = [name for name in named if name in FLAGS and getattr(model, name, None) is not None]
        return given, {name: value for name, value in named.items() if name not in chosen}

    def streams(key: jax.Array) -> dict[str, jax.Array]:
        fixed = {"params": jax.random.fold_in(key, 0), "dropout": jax.random.fold_in(key, 1)}
        others = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in sorted(names - set(fixed))}
        return fixed | others

    def traced(function: Callable[[dict[str, jax.Array]], Any], key: jax.Array, *, noise: bool) -> tuple[Any, _Asked]:
        """Call, and again where the module asked for a stream that it did not have."""
        while True:
            with _recorded(noise=noise) as asked:
                result = function(streams(key))
            if asked.streams <= names | {"params"}:
                return result, asked
            names.update(asked.streams - {"params"})

    def variables_of(key: jax.Array, inputs: Any) -> dict[str, Any]:
        args, kwargs = arguments(call, inputs, train=False, key=key, offered=_AT_START)

        def made(rngs: dict[str, jax.Array]) -> Any:
            return call_module(lambda *a, **k: model.init(rngs, *a, **k), args, kwargs)

        variables, asked = traced(made, key, noise=False)
        variables = {name: value for name, value in variables.items() if name not in {"intermediates", *asked.sown}}
        return variables if given is None else {**variables, **given}

    def init(key: jax.Array, inputs: Any) -> tuple[Params, ModelState]:
        variables = jax.tree.map(jnp.array, linen.meta.unbox(variables_of(key, inputs)))
        flat = flatten_dict(dict(variables.pop("params", {})))
        trained = {path: value for path, value in flat.items() if is_trained(value)}
        others = {path: value for path, value in flat.items() if path not in trained}
        state = {"params": unflatten_dict(others)} if others else {}
        return unflatten_dict(trained), state | {name: _plain(value) for name, value in variables.items()}

    def apply(
        params: Params,
        model_state: ModelState,
        inputs: Any,
        *,
        key: jax.Array,
        train: bool,
        dtype: Any = None,
        axes: tuple[str, ...] = (),
        batch_statistics: bool = False,
        mask: Any = None,
        method: str | None = None,
        sown: bool = False,
        **offered: Any,
    ) -> Any:
        function = call if method is None else getattr(type(model), method, None)
        if function is None:
            raise UserError(f"the model, {type(model).__name__}, has no method {method!r}")
        args, kwargs = arguments(function, inputs, train=train, key=key, offered=offered)
        variables = merged({"params": params}, model_state)

        def adjust(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if isinstance(module, linen.BatchNorm):  # this call's own copy of a frozen dataclass
                if axes and module.axis_name is None:
                    object.__setattr__(module, "axis_name", axes)
                if batch_statistics:
                    object.__setattr__(module, "momentum", 0.0)
            outputs = next_call(*args, **kwargs)
            if dtype is None or getattr(module, "dtype", dtype) is not None or context.method_name != "__call__":
                return outputs
            return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, outputs)

        def applied(rngs: dict[str, jax.Array]) -> Any:
            def bound(*args: Any, **kwargs: Any) -> Any:
                # All collections may be written to: what evaluation changes is dropped, and BatchNorm is watched.
                mutable = DenyList(("params",))
                return model.apply(variables, *args, rngs=rngs, mutable=mutable, method=method, **kwargs)

            with (
                watched(train),
                without_padding(mask),
                linen.intercept_methods(watch_linen(frozen)),
                linen.intercept_methods(adjust),
            ):
                return call_module(bound, args, kwargs)

        (outputs, after), asked = traced(applied, key, noise=train)
        left = {name: after[name] for name in after if name in asked.sown and name not in model_state}
        state = _after(model_state, after, left) if train else model_state
        return (outputs, state, _plain(left)) if sown else (outputs, state)

    def live(params: Params, model_state: ModelState) -> linen.Module:
        return model.bind(merged({"params": params}, model_state))

    def rules(inputs: Any) -> list[tuple[str, PartitionSpec]]:
        variables = jax.eval_shape(lambda inputs: variables_of(jax.random.key(0), inputs), inputs)
        flat: dict[Any, Any] = flatten_dict(_plain(linen.get_partition_spec(variables).get("params", {})))
        return [(re.escape(".".join(path)), spec) for path, spec in flat.items() if spec is not None and any(spec)]

    return PureModel(init, apply, live, rules, model)


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
