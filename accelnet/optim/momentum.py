"""Algorithms of gradient and momentum: SGD, Polyak, Nesterov, LARS, Lion."""

from typing import Any

import optax

from accelnet.optim.decay import Mask, decayed, descend
from accelnet.optim.declare import CONSTANT, algorithm
from accelnet.optim.schedules import Schedule


@algorithm(weight_decay="[0, inf)")
def sgd(
    learning_rate: Any, *, schedule: Schedule = CONSTANT, weight_decay: Any = 0.0, decay_mask: Mask = decayed
) -> optax.GradientTransformation:
    """Descend the gradient: `p = p - rate (g + weight_decay * p)`.

    It is also plain gradient descent, where the batch is the whole training set.

    Source: Robbins and Monro, "A stochastic approximation method", 1951.
    """
    return descend(optax.identity(), learning_rate * schedule, weight_decay, decay_mask)


@algorithm(momentum="[0, 1)", weight_decay="[0, inf)")
def momentum(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    momentum: Any = 0.9,
    weight_decay: Any = 0.0,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Descend a decaying sum of gradients: `t = momentum * t + g`, `p = p - rate (t + weight_decay * p)`.

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    return descend(optax.trace(momentum), learning_rate * schedule, weight_decay, decay_mask)


@algorithm(momentum="[0, 1)", weight_decay="[0, inf)")
def nesterov(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    momentum: Any = 0.9,
    weight_decay: Any = 0.0,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Look ahead along the momentum.

    `t = momentum * t + g`, `p = p - rate (g + momentum * t + weight_decay * p)`.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013,
    section 2, in the form of Bengio et al., "Advances in optimizing recurrent networks", 2013, equation 7.
    """
    return descend(optax.trace(momentum, nesterov=True), learning_rate * schedule, weight_decay, decay_mask)


@algorithm(momentum="[0, 1)", weight_decay="[0, inf)", fixed={"trust_coefficient": "[0, inf)"})
def lars(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    momentum: Any = 0.9,
    trust_coefficient: float = 0.001,
    weight_decay: Any = 0.0,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Scale each layer's step to the size of its weights.

    `d = g + weight_decay * p`, `t = momentum * t + rate * trust_coefficient |p| / |d| * d`, `p = p - t`. Parameters
    outside of the mask (biases, norms) neither decay nor are scaled. Here the decay is part of what is scaled, as
    published.

    Source: You et al., "Large batch training of convolutional networks", 2017, algorithm 1.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), decay_mask),
        optax.scale_by_learning_rate(learning_rate * schedule),
        optax.trace(momentum),
    )


@algorithm(b1="[0, 1)", weight_decay="[0, inf)", fixed={"b2": "[0, 1)"})
def lion(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    b1: Any = 0.9,
    b2: float = 0.99,
    weight_decay: Any = 0.1,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Step by the sign of an average.

    `p = p - rate (sign(b1 * m + (1 - b1) g) + weight_decay * p)`, `m = b2 * m + (1 - b2) g`. Its rate is
    usually 3 to 10 times lower than AdamW's, its weight decay as much higher.

    Source: Chen et al., "Symbolic discovery of optimization algorithms", 2023, program 1.
    """
    return descend(optax.scale_by_lion(b1, b2), learning_rate * schedule, weight_decay, decay_mask)
