"""Algorithms of the Adam family: Adam, AdamW, NAdam, LAMB, schedule-free AdamW."""

from typing import Any

import optax

from accelnet.errors import UserError
from accelnet.optim.decay import Mask, decayed, descend
from accelnet.optim.hyperparams import check_hyperparam, inject
from accelnet.optim.schedules import CONSTANT


def adam(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    b1: Any = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Divide a running mean by a running root mean square, both freed of their start at 0.

    `m = b1 * m + (1 - b1) g`, `v = b2 * v + (1 - b2) g^2`,
    `p = p - rate * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`, t from 1.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        b1: in [0, 1); an operand.
        b2: in [0, 1).
        eps: at least 0.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = adam(0.1), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.1000'

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    """
    check_hyperparam("b2", b2)
    check_hyperparam("eps", eps)

    def make(learning_rate: Any, schedule: Any, b1: Any) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate * schedule))

    return inject(make, learning_rate, schedule, b1=b1)


def adamw(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    b1: Any = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Any = 0.01,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformationExtraArgs:
    """Step as Adam does and shrink the weights beside it: `p = p - rate (adam(g) + weight_decay * p)`.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        b1: in [0, 1); an operand.
        b2: in [0, 1).
        eps: at least 0.
        weight_decay: at least 0; an operand. Each update subtracts rate * weight_decay * weight.
        decay_mask: which parameters it applies to, as a pytree of bools or a function of the params.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = adamw(0.1), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.1000'

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """
    check_hyperparam("b2", b2)
    check_hyperparam("eps", eps)

    def make(learning_rate: Any, schedule: Any, b1: Any, weight_decay: Any) -> optax.GradientTransformation:
        return descend(optax.scale_by_adam(b1, b2, eps), learning_rate * schedule, weight_decay, decay_mask)

    return inject(make, learning_rate, schedule, b1=b1, weight_decay=weight_decay)


def nadam(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    b1: Any = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Look ahead as Nesterov does, within Adam.

    As `adam`, with `b1 * m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)` for the mean.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        b1: in [0, 1); an operand.
        b2: in [0, 1).
        eps: at least 0.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = nadam(0.1), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.1474'

    Source: Dozat, "Incorporating Nesterov momentum into Adam", 2016, algorithm 2, with a constant b1.
    """
    check_hyperparam("b2", b2)
    check_hyperparam("eps", eps)

    def make(learning_rate: Any, schedule: Any, b1: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(b1, b2, eps, nesterov=True),
            optax.scale_by_learning_rate(learning_rate * schedule),
        )

    return inject(make, learning_rate, schedule, b1=b1)


def lamb(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    b1: Any = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: Any = 0.01,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformationExtraArgs:
    """Scale each layer's AdamW step to the size of its weights.

    `d = adam(g) + weight_decay * p`, `p = p - rate * |p| / |d| * d`, with norms over a layer. Parameters
    outside of the mask (biases, norms) neither decay nor are scaled.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        b1: in [0, 1); an operand.
        b2: in [0, 1).
        eps: at least 0.
        weight_decay: at least 0; an operand.
        decay_mask: which parameters decay and are scaled, as a pytree of bools or a function of the params.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = lamb(0.1), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.1000'

    Source: You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020,
    algorithm 2.
    """
    check_hyperparam("b2", b2)
    check_hyperparam("eps", eps)

    def make(learning_rate: Any, schedule: Any, b1: Any, weight_decay: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(b1, b2, eps),
            optax.add_decayed_weights(weight_decay, mask=decay_mask),
            optax.masked(optax.scale_by_trust_ratio(), decay_mask),
            optax.scale_by_learning_rate(learning_rate * schedule),
        )

    return inject(make, learning_rate, schedule, b1=b1, weight_decay=weight_decay)


def schedule_free_adamw(
    learning_rate: Any,
    *,
    schedule: optax.Schedule = CONSTANT,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Any = 0.0,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformationExtraArgs:
    """Take gradients between AdamW's own iterate z and its average x, and evaluate at x, without a schedule.

    `y = (1 - b1) z + b1 x` are the params that are trained; `z = z - rate (g / (sqrt(v / (1 - b2^t)) + eps) +
    weight_decay * y)`; `x = (1 - c) x + c z` with c the share of this rate squared in the sum of all.
    Evaluate with `eval_params(opt_state, params)`. A warm-up still helps: `warmup_stable_decay(num_steps,
    warmup_steps=...)`.

    Args:
        learning_rate: the peak, at least 0; an operand.
        schedule: from step to a factor of the rate.
        b1: in (0, 1). No operand: x is recovered from y and z by it, at any time.
        b2: in [0, 1).
        eps: at least 0.
        weight_decay: at least 0; an operand. Each update subtracts rate * weight_decay * weight.
        decay_mask: which parameters it applies to, as a pytree of bools or a function of the params.

    Returns:
        The transformation. It needs the params in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = schedule_free_adamw(0.1), jnp.array([1.0])
        >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
        >>> f"{updates[0]:.4f}"
        '-0.1000'

    Source: Defazio et al., "The road less scheduled", 2024, algorithm 1.
    """
    check_hyperparam("b2", b2)
    check_hyperparam("eps", eps)
    if check_hyperparam("b1", b1) == 0.0:
        raise UserError("b1 is 0, expected a number in (0, 1): x cannot be recovered from y and z without it")

    def make(learning_rate: Any, schedule: Any, weight_decay: Any) -> optax.GradientTransformation:
        rate = learning_rate * schedule
        scale = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
        return optax.contrib.schedule_free(descend(scale, rate, weight_decay, decay_mask), rate, b1=b1)

    return inject(make, learning_rate, schedule, weight_decay=weight_decay)
