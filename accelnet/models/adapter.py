"""Turn any Flax module into two pure functions over plain nested dicts.

This is the only file that splits and merges Flax objects. Everything behind it sees `params` and
`model_state`, dicts with string keys, and functions that jit, grad, vmap and scan can take.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from accelnet.errors import UserError

Params = dict[str, Any]
ModelState = dict[str, Any]

_TRAIN_ARGUMENTS = ("train", "training", "is_training")
_EVAL_ARGUMENTS = ("deterministic", "use_running_average", "evaluate")
# What a module's variables are split into: params, random number state, and all the rest (model_state).
_KINDS = (nnx.Param, nnx.RngState, ...)


@dataclass(frozen=True)
class PureModel:
    """A Flax module as pure functions.

    Attributes:
        init: `init(key, inputs) -> (params, model_state)`. `inputs` as for `apply`; only shapes and dtypes matter.
        apply: `apply(params, model_state, inputs, *, key, train, dtype=None, axes=()) -> (outputs, model_state)`.
            `inputs` is an array [B, ...] or a dict of keyword arguments; `key` feeds dropout and other noise;
            `train` is a Python bool. In evaluation the returned `model_state` is the given one. `dtype` is that
            of layers which do not say their own: without it, float32 batch statistics would make all that
            comes after them float32. `axes` names the mesh axes along which the batch is cut: Flax's BatchNorm
            takes its statistics over all of them.
        module: `module(params, model_state)` gives the live `nnx` module in evaluation mode, or a bound
            Linen module.
    """

    init: Callable[..., tuple[Params, ModelState]]
    apply: Callable[..., tuple[Any, ModelState]]
    module: Callable[[Params, ModelState], Any]


def adapt(model: Any) -> PureModel:
    """Give the pure functions of a Flax model.

    Args:
        model: a callable `model(rngs=nnx.Rngs) -> nnx.Module`, an `nnx.Module` instance (training starts
            from its weights), or a Linen module instance.

    Returns:
        The `PureModel`. Parameters are the variables of type `nnx.Param` (Linen: the collection
        "params"); every other variable but random number state is `model_state`.

    Raises:
        UserError: if `model` is none of these.

    Example:
        >>> pure = adapt(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
        >>> params, model_state = pure.init(jax.random.key(0), jnp.zeros((1, 3)))
        >>> outputs, _ = pure.apply(params, model_state, jnp.ones((5, 3)), key=jax.random.key(1), train=True)
        >>> outputs.shape
        (5, 2)

    Source: original.
    """
    if isinstance(model, PureModel):
        return model
    if isinstance(model, linen.Module):
        return _adapt_linen(model)
    if isinstance(model, nnx.Module):
        return _adapt_nnx(nnx.clone(model))
    if callable(model):
        abstract = nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0)))
        if not isinstance(abstract, nnx.Module):
            raise UserError(
                f"model(rngs=...) returned {type(abstract).__name__}, expected an nnx.Module: pass "
                "`lambda rngs: MyModule(..., rngs=rngs)`"
            )
        return _adapt_nnx(abstract, construct=cast(Callable[..., nnx.Module], model))
    raise UserError(
        f"model is of type {type(model).__name__}, expected a callable that takes rngs= and returns an "
        "nnx.Module, an nnx.Module, or a Linen module"
    )


def _call(function: Callable[..., Any], inputs: Any, **flags: Any) -> Any:
    if isinstance(inputs, Mapping):
        return function(**inputs, **flags)
    return function(inputs, **flags)


def _plain(state: nnx.State) -> dict[str, Any]:
    flat = nnx.to_flat_state(state)
    return unflatten_dict({tuple(map(str, path)): variable.get_value() for path, variable in flat})


def _adapt_nnx(template: nnx.Module, construct: Callable[..., nnx.Module] | None = None) -> PureModel:
    """`template` gives the structure; its own values are the initial ones if there is no `construct`."""
    graphdef, params_like, random_like, state_like = nnx.split(template, *_KINDS)
    likes = {"params": params_like, "model_state": state_like}

    def state_of(name: str, values: dict[str, Any]) -> nnx.State:
        flat = flatten_dict(values)
        return nnx.from_flat_state(
            [(path, variable.replace(flat[tuple(map(str, path))])) for path, variable in nnx.to_flat_state(likes[name])]
        )

    def random_state(key: jax.Array) -> nnx.State:
        """Give every stream its own key, so that two layers never draw the same noise."""
        return nnx.from_flat_state(
            [
                (path, variable.replace(_random_value(variable, jax.random.fold_in(key, index))))
                for index, (path, variable) in enumerate(nnx.to_flat_state(random_like))
            ]
        )

    def merge(params: Params, model_state: ModelState, key: jax.Array) -> Any:
        # copy: a Variable made under another trace (BatchNorm's statistics) may not be written to.
        return nnx.merge(
            graphdef,
            state_of("params", params),
            random_state(key),
            state_of("model_state", model_state),
            copy=True,
        )

    def init(key: jax.Array, _inputs: Any = None) -> tuple[Params, ModelState]:
        module = template if construct is None else construct(rngs=nnx.Rngs(key))
        _, params, _, model_state = nnx.split(module, *_KINDS)
        return jax.tree.map(jnp.array, (_plain(params), _plain(model_state)))

    def apply(
        params: Params,
        model_state: ModelState,
        inputs: Any,
        *,
        key: jax.Array,
        train: bool,
        dtype: Any = None,
        axes: tuple[str, ...] = (),
    ) -> tuple[Any, ModelState]:
        module = merge(params, model_state, key)
        module.train() if train else module.eval()
        for _, layer in nnx.iter_modules(module):
            if dtype is not None and getattr(layer, "dtype", dtype) is None:
                setattr(layer, "dtype", dtype)  # noqa: B010, not every module has one
            if axes and isinstance(layer, nnx.BatchNorm) and layer.axis_name is None:
                layer.axis_name = axes  # pyright: ignore[reportAttributeAccessIssue]
        outputs = _call(module, inputs)
        if not train:
            return outputs, model_state
        nnx.pop(module, nnx.Intermediate)  # what `sow` left behind is no state
        _, _, _, after = nnx.split(module, *_KINDS)
        return outputs, _plain(after)

    def live(params: Params, model_state: ModelState) -> nnx.Module:
        module = merge(params, model_state, jax.random.key(0))
        module.eval()
        return module

    return PureModel(init, apply, live)


def _random_value(variable: Any, key: jax.Array) -> jax.Array:
    if isinstance(variable, nnx.RngKey):
        return jax.random.split(key, variable.shape) if variable.shape else key
    return jnp.zeros(variable.shape, variable.dtype)


def _adapt_linen(model: linen.Module) -> PureModel:
    names = inspect.signature(type(model).__call__).parameters

    def flags(train: bool) -> dict[str, bool]:
        # An attribute of the same name (`deterministic` on the module) is the author's choice, not ours.
        return {n: train for n in _TRAIN_ARGUMENTS if n in names} | {
            n: not train for n in _EVAL_ARGUMENTS if n in names
        }

    def streams(key: jax.Array) -> dict[str, jax.Array]:
        return {"params": jax.random.fold_in(key, 0), "dropout": jax.random.fold_in(key, 1)}

    def init(key: jax.Array, inputs: Any) -> tuple[Params, ModelState]:
        variables = dict(_call(lambda *a, **k: model.init(streams(key), *a, **k), inputs, **flags(False)))
        params = variables.pop("params", {})
        variables.pop("intermediates", None)  # what `sow` left behind is no state
        return jax.tree.map(jnp.array, (dict(params), variables))

    def apply(
        params: Params,
        model_state: ModelState,
        inputs: Any,
        *,
        key: jax.Array,
        train: bool,
        dtype: Any = None,
        axes: tuple[str, ...] = (),
    ) -> tuple[Any, ModelState]:
        variables = {"params": params, **model_state}

        def adjust(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if axes and isinstance(module, linen.BatchNorm) and module.axis_name is None:
                object.__setattr__(module, "axis_name", axes)  # of this call's own copy of a frozen dataclass
            outputs = next_call(*args, **kwargs)
            if dtype is None or getattr(module, "dtype", dtype) is not None or context.method_name != "__call__":
                return outputs
            return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, outputs)

        def bound(*args: Any, **kwargs: Any) -> Any:
            if not train:
                return model.apply(variables, *args, **kwargs), model_state
            return model.apply(variables, *args, rngs=streams(key), mutable=list(model_state), **kwargs)

        with linen.intercept_methods(adjust) if dtype is not None or axes else contextlib.nullcontext():
            outputs, after = _call(bound, inputs, **flags(train))
        return outputs, dict(after)

    def live(params: Params, model_state: ModelState) -> linen.Module:
        return model.bind({"params": params, **model_state})

    return PureModel(init, apply, live)
