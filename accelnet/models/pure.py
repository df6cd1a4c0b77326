"""A model as two pure functions over plain nested dicts, and what a module's call is given."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
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
