"""Averages of the weights to evaluate with."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from accelnet.errors import UserError
from accelnet.optim.ranges import Range, check_number


class AverageState(NamedTuple):
    """The state of `average_params`: updates done, int32 scalar, and the average, a pytree like the params."""

    num_updates: jax.Array
    average: Any


class SlowParamsState(NamedTuple):
    """The state of an `optax.lookahead` in `adapt_optimizer`, which keeps the slow weights.

    Attributes:
        slow: Slow weights, a pytree like the params.
        inner: State of the optimizer itself.
    """

    slow: Any
    inner: Any


def average_params(decay: float = 0.999) -> optax.GradientTransformationExtraArgs:
    """Keep an exponential moving average of the params; last in a chain, it changes no update.

    `average = sum_i decay^(t-i) p_i / sum_i decay^(t-i)` over the params p_1 .. p_t after each update: the
    initial ones do not count, and there is no bias to correct. Get it by `eval_params(opt_state, params)`.

    Args:
        decay: number in [0, 1). The average reaches back about 1 / (1 - decay) updates.

    Returns:
        The transformation, which needs params in update. The average is float32 or wider.

    Raises:
        UserError: decay is out of its range, or, when used, params are missing.

    Example:
        >>> optimizer = optax.chain(optax.sgd(1.0), average_params(0.5))
        >>> params = jnp.array([0.0])
        >>> state = optimizer.init(params)
        >>> for gradient in (-1.0, -3.0):
        ...     updates, state = optimizer.update(jnp.array([gradient]), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params.tolist(), eval_params(state, params).tolist()
        ([4.0], [3.0])

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 7.2.
    """
    decay = check_number("decay", decay, Range.parse("[0, 1)"))
    log_decay = math.log(decay) if decay > 0.0 else -math.inf

    def init(params: Any) -> AverageState:
        # A copy: the same buffer in params and state could not be donated.
        average = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32), copy=True), params)
        return AverageState(jnp.zeros((), jnp.int32), average)

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, AverageState]:
        if params is None:
            raise UserError("average_params needs the params: call optimizer.update(grads, opt_state, params)")
        num_updates = jnp.asarray(optax.safe_increment(state.num_updates))
        # (1 - decay) / (1 - decay^t). In float32, 1 - 0.9999 would be off by 2e-4.
        share = (1.0 - decay) / -jnp.expm1(num_updates.astype(jnp.float32) * log_decay)

        def follow(average: jax.Array, new: jax.Array) -> jax.Array:
            return average + share.astype(average.dtype) * (new.astype(average.dtype) - average)

        average = jax.tree.map(follow, state.average, optax.apply_updates(params, updates))
        return updates, AverageState(num_updates, average)

    return optax.GradientTransformationExtraArgs(init, update)


def eval_params(opt_state: Any, params: Any) -> Any:
    """Return the params to evaluate with: their average if the optimizer keeps one, else themselves.

    These are, by falling priority: an average by `average_params`, the slow weights of `optax.lookahead`, the average
    of `optax.contrib.schedule_free`, and the weights that `optax.contrib.sam` looks around from.

    Args:
        opt_state: state of any chain or nesting. An average of some of the parameters counts for these.
        params: pytree of arrays that are trained.

    Returns:
        A tree like params, of the same dtypes.

    Example:
        >>> from accelnet.optim import sgd
        >>> params = jnp.array([1.0])
        >>> eval_params(sgd(0.1).init(params), params) is params
        True

    Source: for schedule-free, Defazio et al., "The road less scheduled", 2024, x of algorithm 1; for lookahead, Zhang
    et al., "Lookahead optimizer: k steps forward, 1 step back", 2019.
    """
    found = params
    # The last one counts.
    for kind, field, evaluated in _KEPT:
        for state in reversed(_states(opt_state, kind)):
            if (kept := getattr(state, field)) is not None:
                found = jax.tree.map(
                    partial(_evaluated, partial(evaluated, state)), kept, params, found, is_leaf=_is_masked
                )
    return found


def _evaluated(evaluated: Any, kept: Any, param: jax.Array, found: jax.Array) -> jax.Array:
    return found if _is_masked(kept) else evaluated(kept, param).astype(param.dtype)


def _before_sam(state: Any, cache: jax.Array, param: jax.Array) -> jax.Array:
    # In between, the params are those of the adversary.
    return jnp.where(state.steps_since_sync == 0, param, cache)


# State, its field that holds weights, and what they and the params say of the weights to evaluate with.
_KEPT: tuple[tuple[type, str, Callable[[Any, jax.Array, jax.Array], jax.Array]], ...] = (
    (optax.contrib.SAMState, "cache", _before_sam),
    (optax.contrib.ScheduleFreeState, "z", lambda state, z, y: (y - (1.0 - state.b1) * z) / state.b1),
    (SlowParamsState, "slow", lambda _, slow, __: slow),
    (AverageState, "average", lambda _, average, __: average),
)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _states(opt_state: Any, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
