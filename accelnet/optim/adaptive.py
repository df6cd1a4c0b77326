"""Algorithms that divide by the size of past gradients: Adagrad, Adadelta, RMSProp, Adafactor."""

from typing import Any

import optax

from accelnet.errors import UserError
from accelnet.optim.decay import Mask, decayed, descend
from accelnet.optim.hyperparams import check_hyperparam, inject
from accelnet.optim.schedules import CONSTANT


def adagrad(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    initial_accumulator: float = 0.1,
    eps: float = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    """Divide by the root of all squared gradients: `s = s + g^2`, `p = p - rate * g / sqrt(s + eps)`.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        initial_accumulator: s at the start, at least 0.
        eps: at least 0.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = adagrad(0.1), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.0988'

    Source: Duchi et al., "Adaptive subgradient methods for online learning and stochastic optimization",
    2011.
    """
    check_hyperparam("initial_accumulator", initial_accumulator)
    check_hyperparam("eps", eps)

    def make(learning_rate: Any, schedule: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_rss(initial_accumulator, eps),
            optax.scale_by_learning_rate(learning_rate * schedule),
        )

    return inject(make, learning_rate, schedule)


def adadelta(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    decay: float = 0.9,
    eps: float = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Give steps the parameter's own unit.

    `v = decay * v + (1 - decay) g^2`, `d = sqrt(u + eps) / sqrt(v + eps) g`, `u = decay * u + (1 - decay)
    d^2`, `p = p - rate * d`. The published rate is 1.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        decay: in [0, 1).
        eps: at least 0.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = adadelta(1.0), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.0032'

    Source: Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1.
    """
    check_hyperparam("decay", decay)
    check_hyperparam("eps", eps)

    def make(learning_rate: Any, schedule: Any) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_adadelta(decay, eps), optax.scale_by_learning_rate(learning_rate * schedule))

    return inject(make, learning_rate, schedule)


def rmsprop(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    decay: float = 0.9,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Divide by a running root mean square.

    `v = decay * v + (1 - decay) g^2`, `p = p - rate * g / (sqrt(v) + eps)`.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        decay: in [0, 1).
        eps: at least 0.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = rmsprop(0.1), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.3162'

    Source: Hinton et al., "Neural networks for machine learning", lecture 6e, 2012.
    """
    check_hyperparam("decay", decay)
    check_hyperparam("eps", eps)

    def make(learning_rate: Any, schedule: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_rms(decay, eps, eps_in_sqrt=False),
            optax.scale_by_learning_rate(learning_rate * schedule),
        )

    return inject(make, learning_rate, schedule)


def adafactor(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    decay_rate: float = 0.8,
    min_factored_size: int = 128,
    weight_decay: Any = 0.0,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformationExtraArgs:
    """Keep row and column means of squared gradients, not one per weight; step relative to the weights.

    `u = g / sqrt(v)` with `v` the outer product of the means, clipped to a root mean square of 1; then
    `p = p - rate (max(rms(p), 0.001) u + weight_decay * p)`. So the rate is relative: 0.01 is usual. Arrays
    of one axis, or whose two largest axes are shorter than min_factored_size, keep a full second moment.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        decay_rate: in [0, 1]; the moment's decay at step t, from 1, is `1 - t^(-decay_rate)`.
        min_factored_size: at least 1.
        weight_decay: at least 0; an operand. Each update subtracts rate * weight_decay * weight.
        decay_mask: which parameters it applies to, as a pytree of bools or a function of the params.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = adafactor(0.1), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.1000'

    Source: Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018,
    algorithms 4 and 5, without momentum.
    """
    check_hyperparam("decay_rate", decay_rate)
    if min_factored_size < 1:
        raise UserError(f"min_factored_size is {min_factored_size}, expected at least 1")

    def make(learning_rate: Any, schedule: Any, weight_decay: Any) -> optax.GradientTransformation:
        direction = optax.chain(
            optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_factored_size),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
        return descend(direction, learning_rate * schedule, weight_decay, decay_mask)

    return inject(make, learning_rate, schedule, weight_decay=weight_decay)
