"""Algorithms that divide by the size of past gradients: Adagrad, Adadelta, RMSProp, Adafactor."""

from typing import Any

import optax

from accelnet.optim.decay import Mask, decayed, descend
from accelnet.optim.declare import CONSTANT, algorithm
from accelnet.optim.schedules import Schedule


@algorithm(fixed={"initial_accumulator": "[0, inf)", "eps": "[0, inf)"})
def adagrad(
    learning_rate: Any, *, schedule: Schedule = CONSTANT, initial_accumulator: float = 0.1, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Divide by the root of all squared gradients: `s = s + g^2`, `p = p - rate * g / sqrt(s + eps)`.

    s starts at initial_accumulator.

    Source: Duchi et al., "Adaptive subgradient methods for online learning and stochastic optimization",
    2011.
    """
    return descend(optax.scale_by_rss(initial_accumulator, eps), learning_rate * schedule)


@algorithm(fixed={"decay": "[0, 1)", "eps": "[0, inf)"})
def adadelta(
    learning_rate: Any, *, schedule: Schedule = CONSTANT, decay: float = 0.9, eps: float = 1e-6
) -> optax.GradientTransformation:
    """Give steps the parameter's own unit.

    `v = decay * v + (1 - decay) g^2`, `d = sqrt(u + eps) / sqrt(v + eps) g`, `u = decay * u + (1 - decay)
    d^2`, `p = p - rate * d`. The published rate is 1.

    Source: Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1.
    """
    return descend(optax.scale_by_adadelta(decay, eps), learning_rate * schedule)


@algorithm(fixed={"decay": "[0, 1)", "eps": "[0, inf)"})
def rmsprop(
    learning_rate: Any, *, schedule: Schedule = CONSTANT, decay: float = 0.9, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Divide by a running root mean square.

    `v = decay * v + (1 - decay) g^2`, `p = p - rate * g / (sqrt(v) + eps)`.

    Source: Hinton et al., "Neural networks for machine learning", lecture 6e, 2012.
    """
    return descend(optax.scale_by_rms(decay, eps, eps_in_sqrt=False), learning_rate * schedule)


@algorithm(weight_decay="[0, inf)", fixed={"decay_rate": "[0, 1]", "min_factored_size": "[1, inf)"})
def adafactor(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    decay_rate: float = 0.8,
    min_factored_size: int = 128,
    weight_decay: Any = 0.0,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Keep row and column means of squared gradients, not one per weight; step relative to the weights.

    `u = g / sqrt(v)` with `v` the outer product of the means, clipped to a root mean square of 1; then
    `p = p - rate (max(rms(p), 0.001) u + weight_decay * p)`. So the rate is relative: 0.01 is usual. The means decay
    at step t, from 1, by `1 - t^(-decay_rate)`. Arrays of one axis, or whose two largest axes are shorter than
    min_factored_size, keep a full second moment.

    Source: Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018,
    algorithms 4 and 5, without momentum.
    """
    direction = optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_factored_size),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    return descend(direction, learning_rate * schedule, weight_decay, decay_mask)
