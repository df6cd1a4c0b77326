"""Algorithms of the Adam family: Adam, AdamW, NAdam, AdaBelief, LAMB, schedule-free AdamW."""

from typing import Any

import optax

from accelnet.optim.decay import Mask, decayed, descend
from accelnet.optim.declare import CONSTANT, algorithm
from accelnet.optim.schedules import Schedule


@algorithm(b1="[0, 1)", fixed={"b2": "[0, 1)", "eps": "[0, inf)"})
def adam(
    learning_rate: Any, *, schedule: Schedule = CONSTANT, b1: Any = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Divide a running mean by a running root mean square, both freed of their start at 0.

    `m = b1 * m + (1 - b1) g`, `v = b2 * v + (1 - b2) g^2`,
    `p = p - rate * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`, t from 1.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    """
    return descend(optax.scale_by_adam(b1, b2, eps), learning_rate * schedule)


@algorithm(b1="[0, 1)", weight_decay="[0, inf)", fixed={"b2": "[0, 1)", "eps": "[0, inf)"})
def adamw(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    b1: Any = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Any = 0.01,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Step as Adam does and shrink the weights beside it: `p = p - rate (adam(g) + weight_decay * p)`.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """
    return descend(optax.scale_by_adam(b1, b2, eps), learning_rate * schedule, weight_decay, decay_mask)


@algorithm(b1="[0, 1)", fixed={"b2": "[0, 1)", "eps": "[0, inf)"})
def nadam(
    learning_rate: Any, *, schedule: Schedule = CONSTANT, b1: Any = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Look ahead as Nesterov does, within Adam.

    As `adam`, with `b1 * m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)` for the mean.

    Source: Dozat, "Incorporating Nesterov momentum into Adam", 2016, algorithm 2, with a constant b1.
    """
    return descend(optax.scale_by_adam(b1, b2, eps, nesterov=True), learning_rate * schedule)


@algorithm(b1="[0, 1)", weight_decay="[0, inf)", fixed={"b2": "[0, 1)", "eps": "[0, inf)"})
def adabelief(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    b1: Any = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    weight_decay: Any = 0.0,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Divide the mean by how far gradients are from it, so that steps are long where they agree.

    `m = b1 * m + (1 - b1) g`, `s = b2 * s + (1 - b2) (g - m)^2 + eps`,
    `p = p - rate * (m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + eps) + weight_decay * p)`, t from 1.

    Source: Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", 2020,
    algorithm 2, with decoupled weight decay.
    """
    return descend(optax.scale_by_belief(b1, b2, eps, eps), learning_rate * schedule, weight_decay, decay_mask)


@algorithm(b1="[0, 1)", weight_decay="[0, inf)", fixed={"b2": "[0, 1)", "eps": "[0, inf)"})
def lamb(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    b1: Any = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: Any = 0.01,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Scale each layer's AdamW step to the size of its weights.

    `d = adam(g) + weight_decay * p`, `p = p - rate * |p| / |d| * d`, with norms over a layer. Parameters
    outside of the mask (biases, norms) neither decay nor are scaled.

    Source: You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020,
    algorithm 2.
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.masked(optax.scale_by_trust_ratio(), decay_mask),
        optax.scale_by_learning_rate(learning_rate * schedule),
    )


@algorithm(weight_decay="[0, inf)", fixed={"b1": "(0, 1)", "b2": "[0, 1)", "eps": "[0, inf)"})
def schedule_free_adamw(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Any = 0.0,
    decay_mask: Mask = decayed,
) -> optax.GradientTransformation:
    """Take gradients between AdamW's own iterate z and its average x, and evaluate at x, without a schedule.

    `y = (1 - b1) z + b1 x` are the params that are trained; `z = z - rate (g / (sqrt(v / (1 - b2^t)) + eps) +
    weight_decay * y)`; `x = (1 - c) x + c z` with `c = m_t^2 / (m_1^2 + ... + m_t^2)`, where m_i is the largest rate
    of the updates 1 to i. x is recovered from y and z by b1, which is therefore above 0 and no operand. Evaluate with
    `eval_params(opt_state, params)`. A warm-up still helps: `schedules.warmup_stable_decay(warmup=0.05)`.

    Source: Defazio et al., "The road less scheduled", 2024, algorithm 1.
    """
    rate = learning_rate * schedule
    scale = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    return optax.contrib.schedule_free(descend(scale, rate, weight_decay, decay_mask), rate, b1=b1)
