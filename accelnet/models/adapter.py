"""Turn any Flax module into two pure functions over plain nested dicts.

Only this file, `nnx_modules` and `linen_modules` split and merge Flax objects. Everything behind them sees `params` and
`model_state`, dicts with string keys, and functions that jit, grad, vmap and scan can take.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen, nnx
from jax.sharding import PartitionSpec

from accelnet.errors import UserError
from accelnet.models.compressed import Compressed
from accelnet.models.linen_modules import LinenModel
from accelnet.models.nnx_modules import NnxModel
from accelnet.models.pure import CallSettings, ModelState, Params, PureModel
from accelnet.models.replacing import Change
from accelnet.signature import name_of, wants


def adapt(model: Any, *, frozen: Sequence[str] = ()) -> PureModel:
    """Give the pure functions of a Flax model.

    A module's call gets, by the names of its parameters, what it asks for: the inputs (an array first, a dict by
    name, or as it is where the call has one argument of another name); a training flag under any of the names in use
    (`train`, `training`, `is_training`, `is_train`; `deterministic`, `use_running_average`, `evaluate` for its
    opposite); `rngs`, an `nnx.Rngs`; a PRNG key under `key`, `rng`, `prng_key` or a name that ends in `_key` or `_rng`;
    and whatever `apply` is offered, such as `step` and `progress`. Noise that has a default is given in training only.

    Args:
        model: a callable `model(rngs=nnx.Rngs) -> nnx.Module`, an `nnx.Module` instance (training starts
            from its weights), a Linen module instance (bound: training starts from its variables), or one of these
            compressed.
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
        >>> import jax, jax.numpy as jnp
        >>> pure = adapt(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
        >>> params, model_state = pure.init(jax.random.key(0), jnp.zeros((1, 3)))
        >>> outputs, _ = pure.apply(params, model_state, jnp.ones((5, 3)), key=jax.random.key(1), train=True)
        >>> outputs.shape
        (5, 2)
    """
    check_model(model)
    if isinstance(model, PureModel):
        return model
    if isinstance(model, Compressed) and model.is_linen:
        return LinenModel(model.linen_module(), frozen, model.changes)
    return LinenModel(model, frozen) if isinstance(model, linen.Module) else NnxModel(model, frozen)


def check_model(model: Any) -> None:
    """Refuse, without calling it, what `adapt` cannot take for a model.

    Raises:
        UserError: if it is no model.
    """
    if isinstance(model, PureModel | linen.Module | nnx.Module):
        return
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


def per_mode(*, training: Any, evaluation: Any) -> PureModel:
    """Make a model of two modules of the same variables, one for each mode.

    For modules whose configuration says the mode, as `deterministic` in that of many Linen Transformers.

    Args:
        training: Model as in `adapt`, which makes the variables.
        evaluation: Model as in `adapt`.

    Returns:
        The `PureModel`, which `Experiment(model=...)` takes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> one, other = (linen.Dropout(0.5, deterministic=flag) for flag in (False, True))
        >>> pure = per_mode(training=one, evaluation=other)
        >>> pure.apply({}, {}, jnp.ones(3), key=jax.random.key(0), train=False)[0].tolist()
        [1.0, 1.0, 1.0]
    """
    return _PerMode(adapt(training), adapt(evaluation))


class _PerMode(PureModel):
    def __init__(self, training: PureModel, evaluation: PureModel) -> None:
        self._models, self.source = {True: training, False: evaluation}, evaluation.source

    def init(self, key: jax.Array, inputs: Any = None) -> tuple[Params, ModelState]:
        return self._models[True].init(key, inputs)

    def call(self, params: Params, model_state: ModelState, inputs: Any, settings: CallSettings) -> Any:
        return self._models[settings.train].call(params, model_state, inputs, settings)

    def module(self, params: Params, model_state: ModelState) -> Any:
        return self._models[False].module(params, model_state)

    def layers(self, params: Params, model_state: ModelState, inputs: Any = None) -> dict[str, nnx.Module]:
        return self._models[False].layers(params, model_state, inputs)

    def changed(self, changes: Sequence[Change]) -> PureModel:
        return _PerMode(*(self._models[mode].changed(changes) for mode in (True, False)))

    def values_after(
        self, params: Params, model_state: ModelState, changes: Sequence[Change], inputs: Any = None
    ) -> dict[tuple[str, ...], Any]:
        return self._models[False].values_after(params, model_state, changes, inputs)

    def rules(self, inputs: Any) -> Sequence[tuple[str, PartitionSpec]]:
        return self._models[True].rules(inputs)
