"""Hyperparameters as arrays in the optimizer's state: operands of the step, to read and change."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from accelnet.errors import UserError
from accelnet.optim.declare import ScheduleState
from accelnet.optim.ranges import NOT_NEGATIVE, REAL, Range, check_number


def hyperparams(opt_state: Any) -> dict[str, jax.Array]:
    """Return the hyperparameters that `with_hyperparams` can change, by name: float32 scalars.

    Args:
        opt_state: state of any chain or nesting. Where several algorithms were combined, the first one's are
            returned.

    Returns:
        For example "learning_rate" (the peak), "weight_decay", "b1".

    Example:
        >>> from accelnet.optim import adamw
        >>> sorted(hyperparams(adamw(1e-3).init(jnp.zeros(2))))
        ['b1', 'learning_rate', 'weight_decay']
    """
    found: dict[str, jax.Array] = {}
    for state in _injected(opt_state):
        for name in _own(state):
            found.setdefault(name, state.hyperparams[name])
    return found


def with_hyperparams(opt_state: Any, **values: Any) -> Any:
    """Return the state with other hyperparameters; types, shapes and shardings stay, so nothing recompiles.

    Args:
        opt_state: state of any chain or nesting. Where several algorithms were combined, it changes in each that
            has it.
        **values: numbers or scalar arrays by name. `learning_rate` is the peak, which the schedule
            multiplies. In the state of a population, arrays of one value per member too.

    Returns:
        A new state; the one given stays as it is.

    Raises:
        UserError: no part of the state has a hyperparameter of that name, or the value is out of range.

    Example:
        >>> from accelnet.optim import adamw, learning_rate
        >>> state = with_hyperparams(adamw(1e-3).init(jnp.zeros(2)), learning_rate=0.25)
        >>> float(learning_rate(state))
        0.25
    """
    known = hyperparams(opt_state)
    for name in values:
        if name not in known:
            raise UserError(f"the optimizer has no hyperparameter {name!r}, only: {', '.join(sorted(known)) or 'none'}")

    def change(node: Any) -> Any:
        if not _is_injected(node):
            return node
        new = {name: _like(name, values[name], node) for name in _own(node) if name in values}
        inner = jax.tree.map(change, node.inner_state, is_leaf=_is_injected)
        return node._replace(hyperparams={**node.hyperparams, **new}, inner_state=inner)

    return jax.tree.map(change, opt_state, is_leaf=_is_injected)


def _like(name: str, value: Any, state: Any) -> jax.Array:
    old, valid = state.hyperparams[name], _range(name, state)
    for one in [value] if isinstance(value, Tracer) else np.ravel(np.asarray(value)):
        number = value if isinstance(value, Tracer) else check_number(name, one, valid)
        if jnp.issubdtype(old.dtype, jnp.integer) and not isinstance(number, Tracer) and number != int(number):
            raise UserError(f"{name} is {number:g}, expected a whole number")
    new = jnp.asarray(value, old.dtype)
    if new.shape not in ((), old.shape):
        raise UserError(f"{name} has shape {new.shape}, expected one number or shape {old.shape}")
    new = jnp.array(jnp.broadcast_to(new, old.shape))
    # A committed array's sharding is part of what a program was compiled for.
    if isinstance(old, jax.Array) and not isinstance(old, Tracer) and old.committed:
        new = jax.device_put(new, old.sharding)
    return new


def _range(name: str, state: Any) -> Range:
    schedule = state.hyperparams_states.get("schedule")
    declared = dict(schedule.ranges) if isinstance(schedule, ScheduleState) else {}
    return declared.get(name, NOT_NEGATIVE if name == "learning_rate" else REAL)


def _own(state: Any) -> list[str]:
    # A scheduled one is computed anew at each update, whatever the state says.
    return [name for name in state.hyperparams if name not in state.hyperparams_states]


def _is_injected(node: Any) -> bool:
    return isinstance(node, optax.InjectStatefulHyperparamsState)


def _injected(opt_state: Any) -> Iterator[Any]:
    for state in jax.tree.leaves(opt_state, is_leaf=_is_injected):
        if _is_injected(state):
            yield state
            yield from _injected(state.inner_state)
