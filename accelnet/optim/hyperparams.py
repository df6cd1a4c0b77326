"""Hyperparameters as arrays in the optimizer's state: operands of the step, to read and change."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from accelnet.errors import UserError

# Name: lowest, highest, and whether the highest itself is allowed.
_RANGES = {
    "learning_rate": (0.0, math.inf, False),
    "weight_decay": (0.0, math.inf, False),
    "eps": (0.0, math.inf, False),
    "initial_accumulator": (0.0, math.inf, False),
    "trust_coefficient": (0.0, math.inf, False),
    "momentum": (0.0, 1.0, False),
    "b1": (0.0, 1.0, False),
    "b2": (0.0, 1.0, False),
    "decay": (0.0, 1.0, False),
    "decay_rate": (0.0, 1.0, True),
}


def check_hyperparam(name: str, value: Any) -> Any:
    """Check that a hyperparameter is one number in its range; what is being traced cannot be looked at.

    Args:
        name: one of those that algorithms take.
        value: a number or a scalar array.

    Returns:
        A float, so that no array of the caller's ends up in a state whose buffers are donated; a tracer as
        float32.

    Raises:
        UserError: the value is no number, not finite, or out of range.

    Example:
        >>> check_hyperparam("momentum", 1.5)
        Traceback (most recent call last):
        accelnet.errors.UserError: momentum is 1.5, expected a number in [0, 1)

    Source: original.
    """
    low, high, closed = _RANGES[name]
    bound = f"in [{low:g}, {high:g}{']' if closed else ')'}" if high < math.inf else f"of at least {low:g}"
    if not isinstance(value, Tracer) and hasattr(value, "__jax_array__"):
        value = value.__jax_array__()
    if isinstance(value, Tracer):
        return value.astype(jnp.float32)
    if callable(value):
        raise UserError(f"{name} is a function, expected a number {bound}: give functions of the step as schedule=")
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or np.shape(value) == ()):
        raise UserError(f"{name} is {value!r}, expected one number {bound}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {value!r}, expected a number {bound}") from None
    if not math.isfinite(number) or number < low or number > high or (number == high and not closed):
        raise UserError(f"{name} is {number:g}, expected a number {bound}")
    return number


def inject(
    make: Callable[..., optax.GradientTransformation],
    learning_rate: Any,
    schedule: optax.Schedule,
    **hyperparams: Any,
) -> optax.GradientTransformationExtraArgs:
    """Build an algorithm whose hyperparameters are float32 scalars in its state.

    Moments and updates are float32 (or wider, where the parameters are): a bfloat16 second moment with
    b2 = 0.999 never changes, and a state whose dtype changes cannot be carried through a loop.

    Args:
        make: from keyword arguments `learning_rate`, `schedule` (its factor at this step) and the names in
            `hyperparams` to a transformation. It is called while tracing, each time.
        learning_rate: the peak.
        schedule: from step, int32, to a factor.
        **hyperparams: further operands.

    Returns:
        The transformation. Its state is `optax.InjectStatefulHyperparamsState`.

    Raises:
        UserError: a value is out of range or the schedule is no function.

    Example:
        >>> make = lambda learning_rate, schedule: optax.sgd(learning_rate * schedule)
        >>> optimizer = inject(make, 0.1, lambda step: 1.0)
        >>> sorted(optimizer.init({"w": jnp.zeros(3)}).hyperparams)
        ['learning_rate', 'schedule']

    Source: original.
    """
    values = {"learning_rate": learning_rate, **hyperparams}
    values = {name: check_hyperparam(name, value) for name, value in values.items()}
    if not callable(schedule):
        raise UserError(f"schedule is {schedule!r}, expected a function of the step such as schedules.cosine(1000)")
    inner = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(schedule=schedule, **values)
    return in_float32(inner)


def in_float32(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Give a transformation float32 parameters and gradients where they are narrower.

    Example:
        >>> optimizer = in_float32(optax.with_extra_args_support(optax.scale_by_adam()))
        >>> optimizer.init(jnp.zeros(3, jnp.bfloat16)).mu.dtype.name
        'float32'

    Source: original.
    """

    def widen(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)

    def init(params: Any) -> Any:
        return inner.init(widen(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        return inner.update(widen(updates), state, widen(params), **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def learning_rate(opt_state: Any) -> jax.Array | None:
    """Return the learning rate in effect: peak times schedule, times what a plateau has left of it.

    It is the rate of the last update; before the first update, the rate that the first will use. Where
    several algorithms were combined, it is the first one's.

    Args:
        opt_state: of any chain or nesting.

    Returns:
        A float32 scalar, or None if no part of the state has a learning rate.

    Example:
        >>> from accelnet.optim import adam, schedules
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam(0.5, schedule=schedules.constant()))
        >>> float(learning_rate(optimizer.init(jnp.zeros(2))))
        0.5

    Source: original.
    """
    for state in _injected(opt_state):
        if "learning_rate" in state.hyperparams:
            rate = state.hyperparams["learning_rate"] * state.hyperparams.get("schedule", 1.0)
            for plateau in _states(opt_state, optax.contrib.ReduceLROnPlateauState):
                rate = rate * plateau.scale
            return rate
    return None


def hyperparams(opt_state: Any) -> dict[str, jax.Array]:
    """Return the hyperparameters that `with_hyperparams` can change, by name: float32 scalars.

    Args:
        opt_state: of any chain or nesting. Where several algorithms were combined, the first one's are
            returned.

    Returns:
        For example "learning_rate" (the peak), "weight_decay", "b1".

    Example:
        >>> from accelnet.optim import adamw
        >>> sorted(hyperparams(adamw(1e-3).init(jnp.zeros(2))))
        ['b1', 'learning_rate', 'weight_decay']

    Source: original.
    """
    found: dict[str, jax.Array] = {}
    for state in _injected(opt_state):
        for name in _own(state):
            found.setdefault(name, state.hyperparams[name])
    return found


def with_hyperparams(opt_state: Any, **values: Any) -> Any:
    """Return the state with other hyperparameters; types, shapes and shardings stay, so nothing recompiles.

    Args:
        opt_state: of any chain or nesting. Where several algorithms were combined, it changes in each that
            has it.
        **values: numbers or scalar arrays by name. `learning_rate` is the peak, which the schedule
            multiplies. In the state of a population, arrays of one value per member too.

    Returns:
        A new state; the one given stays as it is.

    Raises:
        UserError: no part of the state has a hyperparameter of that name, or the value is out of range.

    Example:
        >>> from accelnet.optim import adamw
        >>> state = with_hyperparams(adamw(1e-3).init(jnp.zeros(2)), learning_rate=0.25)
        >>> float(learning_rate(state))
        0.25

    Source: original.
    """
    known = hyperparams(opt_state)
    for name, value in values.items():
        if name not in known:
            raise UserError(f"the optimizer has no hyperparameter {name!r}, only: {', '.join(sorted(known)) or 'none'}")
        for one in [value] if isinstance(value, Tracer) else np.ravel(np.asarray(value)):
            check_hyperparam(name, one)

    def change(node: Any) -> Any:
        if not isinstance(node, optax.InjectStatefulHyperparamsState):
            return node
        new = {name: _like(name, values[name], node.hyperparams[name]) for name in _own(node) if name in values}
        inner = jax.tree.map(change, node.inner_state, is_leaf=_is_injected)
        return node._replace(hyperparams={**node.hyperparams, **new}, inner_state=inner)

    return jax.tree.map(change, opt_state, is_leaf=_is_injected)


def _like(name: str, value: Any, old: Any) -> jax.Array:
    new = jnp.asarray(value, old.dtype)
    if new.shape not in ((), old.shape):
        raise UserError(f"{name} has shape {new.shape}, expected one number or shape {old.shape}")
    new = jnp.array(jnp.broadcast_to(new, old.shape))
    # A committed array's sharding is part of what a program was compiled for.
    if isinstance(old, jax.Array) and not isinstance(old, Tracer) and old.committed:
        new = jax.device_put(new, old.sharding)
    return new


def _own(state: Any) -> list[str]:
    # A scheduled one is computed anew at each update, whatever the state says.
    return [name for name in state.hyperparams if name not in state.hyperparams_states]


def _is_injected(node: Any) -> bool:
    return isinstance(node, optax.InjectStatefulHyperparamsState)


def _injected(opt_state: Any) -> list[Any]:
    found = []
    for state in _states(opt_state, optax.InjectStatefulHyperparamsState):
        found += [state, *_injected(state.inner_state)]
    return found


def _states(opt_state: Any, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
