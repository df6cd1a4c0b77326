"""Turn any Flax module into two pure functions over plain nested dicts.

Only this file, `nnx_modules` and `linen_modules` split and merge Flax objects. Everything behind them sees `params` and
`model_state`, dicts with string keys, and functions that jit, grad, vmap and scan can take.
"""

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax.sharding import PartitionSpec

from accelnet.errors import UserError, user_code
from accelnet.signature import described, name_of, wants

Params = dict[str, Any]
ModelState = dict[str, Any]

TRAIN_FLAGS = ("train", "training", "is_training", "is_train")
EVAL_FLAGS = ("deterministic", "use_running_average", "evaluate")
FLAGS = (*TRAIN_FLAGS, *EVAL_FLAGS)
_KEYS = ("key", "rng", "prng_key")
_KEY_ENDINGS = ("_key", "_rng")


def _no_rules(_inputs: Any) -> tuple[Any, ...]:
    return ()


@dataclass(frozen=True)
class PureModel:
    """A Flax module as pure functions.

    Attributes:
        init: `init(key, inputs) -> (params, model_state)`. `inputs` as for `apply`; only shapes and dtypes matter.
        apply: `apply(params, model_state, inputs, *, key, train, dtype=None, axes=(), batch_statistics=False,
            mask=None, method=None, sown=False, **offered) -> (outputs, model_state)`, with `sown=True` `(outputs,
            model_state, sown)`. `inputs` is an array [B, ...] or a dict; `key` feeds dropout and other noise; `train`
            is a Python bool. In evaluation the returned `model_state` is the given one. `dtype` is that of layers
            which do not say their own: without it, float32 batch statistics would make all that comes after them
            float32. `axes` names the mesh axes along which the batch is cut: Flax's BatchNorm takes its statistics
            over all of them. `batch_statistics` makes BatchNorm's running averages those of this batch alone. `mask`,
            bool[B], is False for padding, which accelnet's BatchNorm leaves out of its statistics. `method` is
            another method than the module's call. `sown` is what the module's `sow` left behind, as nested dicts.
            `offered` holds further values that the call may ask for by name.
        module: `module(params, model_state)` gives the live `nnx` module in evaluation mode, or a bound
            Linen module.
        rules: `rules(inputs)` gives the sharding rules that the module's partitioned initializers make: pairs of a
            regular expression for a parameter's path and a `PartitionSpec`; so does a class attribute `sharding_rules`
            of an nnx module, for paths below the module.
        source: the Flax module, or what makes it, in evaluation mode.
    """

    init: Callable[..., tuple[Params, ModelState]]
    apply: Callable[..., Any]
    module: Callable[[Params, ModelState], Any]
    rules: Callable[[Any], Sequence[tuple[str, PartitionSpec]]] = _no_rules
    source: Any = None


def adapt(model: Any, *, frozen: Sequence[str] = ()) -> PureModel:
    """Give the pure functions of a Flax model.

    A module's call gets, by the names of its parameters, what it asks for: the inputs (an array first, a dict by
    name, or as it is where the call has one argument of another name); a training flag under any of the names in use
    (`train`, `training`, `is_training`, `is_train`; `deterministic`, `use_running_average`, `evaluate` for its
    opposite); `rngs`, an `nnx.Rngs`; a PRNG key under `key`, `rng`, `prng_key` or a name that ends in `_key` or `_rng`;
    and whatever `apply` is offered, such as `step` and `progress`. Noise that has a default is given in training only.

    Args:
        model: a callable `model(rngs=nnx.Rngs) -> nnx.Module`, an `nnx.Module` instance (training starts
            from its weights), or a Linen module instance (bound: training starts from its variables).
        frozen: regular expressions of the paths of parameters that are not trained; batch statistics of layers among
            them may stay as they are.

    Returns:
        The `PureModel`. Parameters are the floating-point variables of type `nnx.Param` (Linen: of the collection
        "params"). Every other variable, and every array that an `nnx` module holds as an attribute, is `model_state`,
        but for random number state and what `sow` leaves behind.

    Raises:
        UserError: if `model` is none of these. When a function is traced: if dropout drops nothing in training or
            something in evaluation, if BatchNorm leaves its statistics alone in training or moves them in evaluation,
            or if the call asks for what there is not. A layer that means it, or one around it, has a class attribute
            `effects_are_intended = True`.

    Example:
        >>> pure = adapt(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
        >>> params, model_state = pure.init(jax.random.key(0), jnp.zeros((1, 3)))
        >>> outputs, _ = pure.apply(params, model_state, jnp.ones((5, 3)), key=jax.random.key(1), train=True)
        >>> outputs.shape
        (5, 2)
    """
    from accelnet.models.linen_modules import adapt_linen  # they import what stands above
    from accelnet.models.nnx_modules import adapt_nnx

    if isinstance(model, PureModel):
        return model
    if isinstance(model, linen.Module):
        return adapt_linen(model, frozen)
    if isinstance(model, nnx.Module):
        return adapt_nnx(model, frozen)
    if inspect.isclass(model) and issubclass(model, linen.Module):
        raise UserError(f"model is the class {model.__name__}, expected a Linen module: call it, {model.__name__}(...)")
    if not callable(model):
        raise UserError(
            f"model is of type {type(model).__name__}, expected a callable that takes rngs= and returns an "
            "nnx.Module, an nnx.Module, or a Linen module"
        )
    asked = wants(model)
    if "rngs" not in asked.names and not asked.anything:
        raise UserError(
            f"model is {name_of(model)}, which does not take rngs: pass `lambda rngs: MyModule(..., rngs=rngs)`, an "
            "nnx.Module or a Linen module"
        )
    if other := [name for name in asked.required if name != "rngs"]:
        raise UserError(
            f"model is {name_of(model)}, which also requires {', '.join(other)}: pass "
            f"`lambda rngs: {name_of(model)}({', '.join(f'{name}=...' for name in other)}, rngs=rngs)`"
        )
    return adapt_nnx(model, frozen)


def per_mode(*, training: Any, evaluation: Any) -> PureModel:
    """Make a model of two modules of the same variables, one for each mode.

    For modules whose configuration says the mode, as `deterministic` in that of many Linen Transformers.

    Args:
        training: as of `adapt`; it makes the variables.
        evaluation: likewise.

    Returns:
        The `PureModel`, which `Experiment(model=...)` takes.

    Example:
        >>> one, other = (linen.Dropout(0.5, deterministic=flag) for flag in (False, True))
        >>> pure = per_mode(training=one, evaluation=other)
        >>> pure.apply({}, {}, jnp.ones(3), key=jax.random.key(0), train=False)[0].tolist()
        [1.0, 1.0, 1.0]
    """
    first, second = adapt(training), adapt(evaluation)

    def apply(*args: Any, train: bool, **settings: Any) -> Any:
        return (first if train else second).apply(*args, train=train, **settings)

    return PureModel(first.init, apply, second.module, first.rules, second.source)


def call_arguments(
    call: Callable[..., Any], inputs: Any, *, train: bool, key: jax.Array, offered: Mapping[str, Any], bound: bool
) -> tuple[list[Any], dict[str, Any]]:
    """Choose what a module's call gets.

    Args:
        call: the method.
        inputs: an array or a dict.
        train: the mode.
        key: of the noise.
        offered: what else it can ask for.
        bound: whether `self` is given already.

    Returns:
        Positional and keyword arguments.

    Raises:
        UserError: if it requires what there is not, or does not know one of the inputs' names.
    """
    asked = wants(call)
    names = asked.positional if bound else asked.positional[1:]
    known, required = asked.names - ({"self"} - set(names)), [n for n in asked.required if bound or n != "self"]
    flags = dict.fromkeys(TRAIN_FLAGS, train) | dict.fromkeys(EVAL_FLAGS, not train)
    given: list[Any] = []
    named: dict[str, Any] = {}
    if isinstance(inputs, Mapping) and (set(inputs) & known or asked.anything or len(names) != 1):
        if unknown := [name for name in inputs if name not in known and not asked.anything]:
            raise UserError(
                f"the data's inputs are named {', '.join(inputs)}, and the model's call, {name_of(call)}, does not "
                f"take {', '.join(unknown)}, only {', '.join(names) or 'nothing'}: give them the same names"
            )
        named = dict(inputs)
    else:
        given = [inputs]
    free = known - set(named) - set(names[: len(given)])
    for name in sorted(free):
        if name in flags:
            named[name] = flags[name]
        elif name in offered:
            named[name] = offered[name]
        elif (name == "rngs" or _is_key(name)) and (train or name in required):
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            named[name] = nnx.Rngs(own) if name == "rngs" else own
    if missing := [name for name in required if name in free and name not in named]:
        raise UserError(
            f"the model's call, {name_of(call)}, asks for {', '.join(missing)}, which it cannot have: beside the "
            f"inputs it can ask for a flag ({', '.join(flags)}), for rngs, for a key (key, rng, a name that ends in "
            f"_key or _rng) and for {', '.join(sorted(offered)) or 'nothing else'}; give other parameters a default, "
            "or put them into the data's inputs"
        )
    return given, named


def _is_key(name: str) -> bool:
    return name in _KEYS or name.endswith(_KEY_ENDINGS)


def call_module(call: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Call a module's method; where it fails, say so with the shapes of what it was given."""
    with user_code("the model", described([*given, *named.values()])):
        return call(*given, **named)


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested dicts whose leaves have different paths.

    Example:
        >>> merged({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3})
        {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    result: dict[str, Any] = {}
    for tree in trees:
        for name, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
            result[name] = merged(result[name], value) if both else value
    return result


def is_trained(value: Any) -> bool:
    """Say whether a parameter can be trained: whether it is of floating-point (or complex) numbers."""
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)
