"""An nnx module as pure functions."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from accelnet.errors import UserError, user_code
from accelnet.models.batch_statistics import leave_padding_out, without_padding
from accelnet.models.effects import watch_layers, watched
from accelnet.models.pure import CallSettings, ModelState, Params, PureModel, call_arguments, call_module, is_trained
from accelnet.models.replacing import Change, changed
from accelnet.signature import described

Path = tuple[Any, ...]
Leaf = Any  # an nnx.Variable, or an array that a module holds as an attribute


def _built(model: Any, key: jax.Array) -> nnx.Module:
    if isinstance(model, nnx.Module):
        return model
    # An array that a constructor makes is traced here, and what it holds must not count as a static attribute.
    for array in (jnp.zeros(()), jax.random.key_data(key)):
        nnx.register_data_type(type(array))
    # Without it, partitioned initializers ask for a mesh where the module is made.
    with user_code("the model's constructor"), nnx.use_eager_sharding(False):
        module = model(rngs=nnx.Rngs(key))
    if not isinstance(module, nnx.Module):
        raise UserError(
            f"model(rngs=...) returned {described([module])}, expected an nnx.Module: pass "
            "`lambda rngs: MyModule(..., rngs=rngs)`"
        )
    return module


def abstract_split(model: Any) -> tuple[Any, nnx.State]:
    """Split an nnx module, or what `model(rngs=...)` makes, into its structure and the shapes of its state.

    Raises:
        UserError: If what is made is no nnx module.

    Example:
        >>> _, state = abstract_split(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
        >>> state["kernel"].get_value().shape
        (3, 2)
    """
    graphs: list[Any] = []

    def leaves() -> list[Leaf]:
        # Split where it is made: what the trace of another function made cannot be told from a static attribute.
        graphdef, state = nnx.split(_built(model, jax.random.key(0)))
        flat = nnx.to_flat_state(state)
        graphs.append((graphdef, [path for path, _ in flat]))
        return [leaf for _, leaf in flat]

    like = jax.eval_shape(leaves)
    graphdef, paths = graphs[-1]
    return graphdef, nnx.from_flat_state(list(zip(paths, like, strict=True)))


class NnxModel(PureModel):
    """The pure functions of an nnx module, which starts from its own values, or of what `model(rngs=...)` makes."""

    def __init__(self, model: Any, frozen: Sequence[str] = ()) -> None:
        self.source, self._frozen = model, frozen
        self._graphdef, state = abstract_split(model)
        self._template = dict(nnx.to_flat_state(state))
        self._kinds = {path: _kind(leaf) for path, leaf in self._template.items()}

    def init(self, key: jax.Array, inputs: Any = None) -> tuple[Params, ModelState]:
        flat = dict(nnx.to_flat_state(nnx.split(_built(self.source, key))[1]))
        return jax.tree.map(jnp.array, (self._plain(flat, "params"), self._plain(flat, "model_state")))

    def call(self, params: Params, model_state: ModelState, inputs: Any, settings: CallSettings) -> Any:
        module = self._merge(params, model_state, settings.key)
        module.train() if settings.train else module.eval()
        _configure(module, settings)  # first, so that what is watched is what BatchNorm does without padding
        paths = watch_layers(module, self._frozen)
        call = _method(module, settings.method)
        given, named = call_arguments(call, inputs, settings, bound=True)
        with watched(settings.train, paths), without_padding(settings.mask), warnings.catch_warnings():
            # Whatever type of variable is sown: nnx.capture asks for the types.
            warnings.filterwarnings("ignore", r"Using 'Module\.sow\(\)' outside", DeprecationWarning)
            outputs = call_module(call, given, named)
        flat = dict(nnx.to_flat_state(nnx.split(module)[1]))
        after = self._after(flat) if settings.train else model_state
        # What the call made anew lives for this call alone: what was sown, among it.
        left = {_names(path): _value(leaf) for path, leaf in flat.items() if path not in self._template}
        return (outputs, after, unflatten_dict(left)) if settings.sown else (outputs, after)

    def module(self, params: Params, model_state: ModelState) -> nnx.Module:
        module = self._merge(params, model_state, jax.random.key(0))
        module.eval()
        return module

    def layers(self, params: Params, model_state: ModelState, inputs: Any = None) -> dict[str, nnx.Module]:
        module = self.module(params, model_state)
        return {".".join(_names(path)): layer for path, layer in nnx.iter_modules(module)}

    def changed(self, changes: Sequence[Change]) -> "NnxModel":
        def made(rngs: nnx.Rngs) -> nnx.Module:
            return changed(self.source(rngs=rngs), changes, rngs)

        return NnxModel(made, self._frozen)

    def values_after(
        self, params: Params, model_state: ModelState, changes: Sequence[Change], inputs: Any = None
    ) -> dict[tuple[str, ...], Any]:
        module = changed(self.module(params, model_state), changes, nnx.Rngs(0))
        return {_names(path): _value(leaf) for path, leaf in nnx.to_flat_state(nnx.split(module)[1])}

    def rules(self, inputs: Any) -> list[tuple[str, PartitionSpec]]:
        found = []
        for path, leaf in self._template.items():
            names = leaf.get_metadata().get("out_sharding") if isinstance(leaf, nnx.Variable) else None
            if names:
                found.append((re.escape(".".join(_names(path))), PartitionSpec(*names)))
        module = nnx.merge(self._graphdef, nnx.from_flat_state(list(self._template.items())))
        for path, part in nnx.iter_modules(module):
            before = "".join(re.escape(f"{name}.") for name in _names(path))
            found += [(before + pattern, spec) for pattern, spec in getattr(part, "sharding_rules", ())]
        return found

    def _plain(self, flat: dict[Path, Leaf], kind: str) -> dict[str, Any]:
        return unflatten_dict({_names(path): _value(flat[path]) for path, k in self._kinds.items() if k == kind})

    def _merge(self, params: Params, model_state: ModelState, key: jax.Array) -> Any:
        values = flatten_dict(params) | flatten_dict(model_state)
        num_random = 0
        filled = []
        for path, leaf in self._template.items():
            if self._kinds[path] == "random":
                # Every stream has its own key, so that two layers never draw the same noise.
                filled.append((path, _random(leaf, jax.random.fold_in(key, num_random))))
                num_random += 1
            elif self._kinds[path] == "fixed":
                filled.append((path, leaf))
            else:
                value = values[_names(path)]
                filled.append((path, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value))
        # copy: a Variable made under another trace (BatchNorm's statistics) may not be written to.
        return nnx.merge(self._graphdef, nnx.from_flat_state(filled), copy=True)

    def _after(self, flat: dict[Path, Leaf]) -> ModelState:
        """Return the model's state after a call, or say what of it cannot be kept."""
        for path, leaf in flat.items():
            if path not in self._template and isinstance(leaf, nnx.Param):
                raise UserError(
                    f"the model's call made a parameter, {'.'.join(_names(path))}, which would not be trained: make it "
                    "in __init__"
                )
        for path, before in self._template.items():
            if self._kinds[path] != "model_state":
                continue
            if path not in flat:
                raise UserError(f"the model's call removed its variable {'.'.join(_names(path))}: keep it")
            old, new = _value(before), _value(flat[path])
            if np.shape(new) != old.shape or jnp.result_type(new) != old.dtype:
                raise UserError(
                    f"the model's call changed its variable {'.'.join(_names(path))} from {old.dtype}{list(old.shape)} "
                    f"to {jnp.result_type(new)}{list(np.shape(new))}: a variable that lasts keeps its shape and dtype"
                )
        return self._plain(flat, "model_state")


def _configure(module: nnx.Module, settings: CallSettings) -> None:
    """Set the layers' dtype, and of which examples BatchNorm takes its statistics."""
    for _, layer in nnx.iter_modules(module):
        if settings.dtype is not None and getattr(layer, "dtype", settings.dtype) is None:
            setattr(layer, "dtype", settings.dtype)  # noqa: B010, not every module has one
        if settings.dtype is not None and isinstance(layer, nnx.Embed) and layer.dtype == layer.param_dtype:
            layer.dtype = settings.dtype  # the weights' own, where it is told none
        if isinstance(layer, nnx.BatchNorm):
            if settings.axes and layer.axis_name is None:
                layer.axis_name = settings.axes  # pyright: ignore[reportAttributeAccessIssue]
            if settings.batch_statistics:
                layer.momentum = 0.0
            if settings.train:
                leave_padding_out(layer)


def _names(path: Path) -> tuple[str, ...]:
    return tuple(map(str, path))


def _value(leaf: Leaf) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _kind(leaf: Leaf) -> str:
    """Say where a leaf of a module's state belongs: params, model_state, random, or fixed (no array, or dropped)."""
    value = _value(leaf)
    if isinstance(leaf, nnx.Intermediate) or not hasattr(value, "dtype"):
        return "fixed"
    if isinstance(leaf, nnx.RngState) or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "random"
    return "params" if isinstance(leaf, nnx.Param) and is_trained(value) else "model_state"


def _random(leaf: Leaf, key: jax.Array) -> Leaf:
    value = _value(leaf)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        new = jax.random.split(key, value.shape) if value.shape else key
    else:
        new = jnp.zeros(value.shape, value.dtype)
    return leaf.replace(new) if isinstance(leaf, nnx.Variable) else new


def _method(module: nnx.Module, name: str | None) -> Callable[..., Any]:
    if name is None and not callable(module):
        raise UserError(f"the model, {type(module).__name__}, has no __call__: define one of the inputs")
    call = getattr(module, name or "__call__", None)
    if not callable(call):
        raise UserError(f"the model, {type(module).__name__}, has no method {name!r}")
    return call
