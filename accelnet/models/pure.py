"""A model as two pure functions over plain nested dicts, and what a module's call is given."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from accelnet.errors import UserError, user_code
from accelnet.models.replacing import Change
from accelnet.signature import described, name_of, wants

Params = dict[str, Any]
ModelState = dict[str, Any]

TRAIN_FLAGS = ("train", "training", "is_training", "is_train")
EVAL_FLAGS = ("deterministic", "use_running_average", "evaluate")
FLAGS = (*TRAIN_FLAGS, *EVAL_FLAGS)
_KEYS = ("key", "rng", "prng_key")
_KEY_ENDINGS = ("_key", "_rng")


@dataclass(frozen=True)
class CallSettings:
    """What a model's call is given beside its inputs; `PureModel.apply` explains each."""

    key: jax.Array
    train: bool
    dtype: Any
    axes: tuple[str, ...]
    batch_statistics: bool
    mask: Any
    method: str | None
    sown: bool
    offered: Mapping[str, Any]


class PureModel(ABC):
    """A Flax module as pure functions over nested dicts; `adapt` makes it.

    Attributes:
        source: The Flax module, or what makes it, in evaluation mode.
    """

    source: Any

    @abstractmethod
    def init(self, key: jax.Array, inputs: Any = None) -> tuple[Params, ModelState]:
        """Make the parameters and the model's state; of `inputs`, as in `apply`, only shapes and dtypes matter."""

    @abstractmethod
    def call(self, params: Params, model_state: ModelState, inputs: Any, settings: CallSettings) -> Any:
        """Compute what `apply` returns."""

    @abstractmethod
    def module(self, params: Params, model_state: ModelState) -> Any:
        """Return the live `nnx` module in evaluation mode, or a bound Linen module."""

    @abstractmethod
    def layers(self, params: Params, model_state: ModelState, inputs: Any = None) -> dict[str, nnx.Module]:
        """Return the live layers in evaluation mode, by dotted path, "" for the module itself.

        Those of a Linen module are the nnx layers that compute the same as its dense layers, convolutions and
        embeddings; others are left out. Of `inputs`, as in `apply`, only shapes and dtypes matter.
        """

    @abstractmethod
    def changed(self, changes: Sequence[Change]) -> "PureModel":
        """Return the model with other layers in the places of some of `layers`."""

    @abstractmethod
    def values_after(
        self, params: Params, model_state: ModelState, changes: Sequence[Change], inputs: Any = None
    ) -> dict[tuple[str, ...], Any]:
        """Return the values of the model with other layers that are made of the live ones, by path."""

    @abstractmethod
    def rules(self, inputs: Any) -> Sequence[tuple[str, PartitionSpec]]:
        """Return the module's own sharding rules: pairs of a regular expression for a parameter's path and a spec.

        They are made by partitioned initializers and by the class attribute `sharding_rules` of an nnx module, whose
        paths begin at that module.
        """

    def apply(
        self,
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
        """Call the module.

        Args:
            params: Trained parameters, a nested dict.
            model_state: Other variables, a nested dict.
            inputs: An array [B, ...] or a dict.
            key: PRNG key of dropout and other noise.
            train: The mode.
            dtype: That of layers which do not say their own: without it, float32 batch statistics would make all that
                comes after them float32.
            axes: Mesh axes along which the batch is cut: Flax's BatchNorm takes its statistics over all of them.
            batch_statistics: Whether BatchNorm's running averages become those of this batch alone.
            mask: bool[B], False for padding, which BatchNorm leaves out of its statistics. None: there is none.
            method: Name of another method than the module's call.
            sown: Whether to return what the module's `sow` left behind, too.
            **offered: Further values that the call may ask for by name.

        Returns:
            `(outputs, model_state)`, or with `sown` `(outputs, model_state, sown)`, the last as nested dicts. In
            evaluation the model's state is the given one.
        """
        given = CallSettings(key, train, dtype, axes, batch_statistics, mask, method, sown, offered)
        return self.call(params, model_state, inputs, given)


def at_start(key: jax.Array) -> CallSettings:
    """Return the settings of a call in evaluation mode, before the first step."""
    return CallSettings(key, False, None, (), False, None, None, False, {"step": 0, "progress": 0.0})


def call_arguments(
    call: Callable[..., Any], inputs: Any, settings: CallSettings, *, bound: bool
) -> tuple[list[Any], dict[str, Any]]:
    """Choose the positional and keyword arguments of a module's method, of which `self` may be `bound` already.

    Raises:
        UserError: If it requires what there is not, or does not know one of the inputs' names.
    """
    train, key, offered = settings.train, settings.key, settings.offered
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
        elif name == "mask" and name in required:  # of an optional one nobody knows whether it means padding
            rows = jnp.ones(jnp.shape(jax.tree.leaves(inputs)[0])[:1], bool)
            named[name] = rows if settings.mask is None else settings.mask
    if missing := [name for name in required if name in free and name not in named]:
        raise UserError(
            f"the model's call, {name_of(call)}, asks for {', '.join(missing)}, which it cannot have: beside the "
            f"inputs it can ask for a flag ({', '.join(flags)}), for rngs, for a key (key, rng, a name that ends in "
            f"_key or _rng), for mask (bool[batch], False for padding) and for "
            f"{', '.join(sorted(offered)) or 'nothing else'}; give other parameters a default, "
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
