"""The learning rates in effect, read from the optimizer's state."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def learning_rate(opt_state: Any) -> jax.Array | None:
    """Return the learning rate in effect: peak times schedule, times what a plateau has left of it.

    It is the rate of the last update; before the first update, the rate at the start of the run. Where groups of
    parameters have rates of their own, it is the first one's.

    Args:
        opt_state: state of any chain or nesting.

    Returns:
        A float32 scalar, or None if no part of the state has a learning rate.

    Example:
        >>> from accelnet.optim import adam, schedules
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam(0.5, schedule=schedules.constant()))
        >>> float(learning_rate(optimizer.init(jnp.zeros(2))))
        0.5
    """
    return next(iter(learning_rates(opt_state).values()), None)


def learning_rates(opt_state: Any) -> dict[str, jax.Array]:
    """Return the learning rates in effect, one for each group of parameters that shows one.

    Args:
        opt_state: state of any chain or nesting.

    Returns:
        Float32 scalars by name, "learning_rate" for one rate, "learning_rate/<group>" for the groups of an
        `optax.partition`; empty if the state shows none, as that of `optax.adam(1e-3)`.

    Example:
        >>> from accelnet.optim import adam, sgd
        >>> optimizer = optax.partition({"w": sgd(0.5), "b": adam(0.25)}, {"kernel": "w", "bias": "b"})
        >>> state = optimizer.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
        >>> {name: float(rate) for name, rate in learning_rates(state).items()}
        {'learning_rate/b': 0.25, 'learning_rate/w': 0.5}
    """
    rates, scale = _rates(opt_state)
    if len(rates) == 1:
        rates = {"": next(iter(rates.values()))}
    return {"/".join(["learning_rate", *filter(None, [group])]): rate * scale for group, rate in sorted(rates.items())}


def _rates(state: Any) -> tuple[dict[str, jax.Array], Any]:
    """Return the rates of a state by group, and what plateaus within it leave of all rates beside it."""
    if isinstance(state, optax.contrib.ReduceLROnPlateauState):
        return {}, state.scale
    if isinstance(state, optax.PartitionState):
        found: dict[str, jax.Array] = {}
        for group, inner in state.inner_states.items():
            rates, scale = _rates(inner)
            found |= {"/".join(filter(None, [str(group), name])): rate * scale for name, rate in rates.items()}
        return found, 1.0
    if isinstance(state, optax.InjectStatefulHyperparamsState) and "learning_rate" in state.hyperparams:
        rate = jnp.asarray(state.hyperparams["learning_rate"] * state.hyperparams.get("schedule", 1.0), jnp.float32)
        return {"": rate}, 1.0
    merged: dict[str, jax.Array] = {}
    scale: Any = 1.0
    for inner in _parts(state):
        rates, left = _rates(inner)
        merged, scale = rates | merged, scale * left
    return {name: rate * scale for name, rate in merged.items()}, 1.0 if merged else scale


def _parts(state: Any) -> Iterable[Any]:
    if isinstance(state, dict):
        return state.values()
    return state if isinstance(state, tuple | list) else ()
