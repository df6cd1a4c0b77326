"""Schedules: functions from the step to a factor of the learning rate, whose peak is 1.

The effective rate of an update is `learning_rate * schedule(step)`, the step counting from 0. All durations
are steps: `Data.num_steps(epochs, batch_size)` translates epochs.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from accelnet.errors import UserError

Schedule = Callable[[Any], jax.Array]


def constant() -> Schedule:
    """Keep the rate as it is: `1`.

    Returns:
        From step, int32 scalar, to 1, float32 scalar.

    Example:
        >>> float(constant()(10))
        1.0

    Source: original.
    """
    return _schedule(optax.constant_schedule(1.0))


def step(milestones: Sequence[int], *, factor: float = 0.1) -> Schedule:
    """Multiply the rate at milestones: `factor ^ (number of milestones <= step)`.

    Args:
        milestones: steps, each above 0 and above the one before.
        factor: in (0, 1].

    Returns:
        From step, int32 scalar, to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = step([10, 20], factor=0.5)
        >>> [float(schedule(n)) for n in (9, 10, 20)]
        [1.0, 0.5, 0.25]

    Source: He et al., "Deep residual learning for image recognition", 2016, section 4.2.
    """
    milestones = [_count("milestones", one, 1) for one in milestones]
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise UserError(f"milestones are {milestones}, expected each above the one before")
    _fraction("factor", factor, zero=False)
    return _schedule(optax.piecewise_constant_schedule(1.0, dict.fromkeys(milestones, factor)))


def exponential(decay_steps: int, *, factor: float) -> Schedule:
    """Let the rate decay evenly on a logarithmic scale: `factor ^ (step / decay_steps)`.

    Args:
        decay_steps: at least 1.
        factor: in (0, 1], reached after decay_steps; the decay goes on after it.

    Returns:
        From step, int32 scalar, to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> float(exponential(10, factor=0.25)(5))
        0.5

    Source: original.
    """
    _fraction("factor", factor, zero=False)
    return _schedule(optax.exponential_decay(1.0, _count("decay_steps", decay_steps, 1), factor))


def cosine(num_steps: int, *, final: float = 0.0) -> Schedule:
    """Let the rate fall along half a cosine: `final + (1 - final) (1 + cos(pi step / num_steps)) / 2`.

    Args:
        num_steps: at least 1; from there on the factor is `final`.
        final: in [0, 1].

    Returns:
        From step, int32 scalar, to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = cosine(100)
        >>> [round(float(schedule(n)), 4) for n in (0, 50, 100)]
        [1.0, 0.5, 0.0]

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5.
    """
    _fraction("final", final)
    return _schedule(optax.cosine_decay_schedule(1.0, _count("num_steps", num_steps, 1), alpha=final))


def warmup_cosine(num_steps: int, *, warmup_steps: int, final: float = 0.0) -> Schedule:
    """Let the rate rise linearly from 0, then fall along half a cosine.

    Args:
        num_steps: of the whole schedule, warm-up included; from there on the factor is `final`.
        warmup_steps: at least 0 and below num_steps. The factor is 0 at step 0 and 1 at step warmup_steps.
        final: in [0, 1].

    Returns:
        From step, int32 scalar, to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = warmup_cosine(110, warmup_steps=10)
        >>> [round(float(schedule(n)), 4) for n in (0, 5, 10, 60, 110)]
        [0.0, 0.5, 1.0, 0.5, 0.0]

    Source: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2, for the warm-up; `cosine` for
    the rest.
    """
    num_steps = _count("num_steps", num_steps, 1)
    warmup_steps = _count("warmup_steps", warmup_steps, 0)
    if warmup_steps >= num_steps:
        raise UserError(f"warmup_steps is {warmup_steps}, expected fewer than num_steps, {num_steps}")
    fall = cosine(num_steps - warmup_steps, final=final)
    if warmup_steps == 0:
        return fall
    return _schedule(optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup_steps), fall], [warmup_steps]))


def one_cycle(num_steps: int, *, warmup_fraction: float = 0.3, initial: float = 0.04, final: float = 4e-6) -> Schedule:
    """Let the rate rise along half a cosine from `initial` to 1, then fall along another to `final`.

    Args:
        num_steps: of the whole cycle, at least 2; from there on the factor is `final`.
        warmup_fraction: the rise's share of the steps, in (0, 1).
        initial: in (0, 1].
        final: in (0, 1].

    Returns:
        From step, int32 scalar, to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range, or the rise would take no step.

    Example:
        >>> schedule = one_cycle(100)
        >>> [round(float(schedule(n)), 4) for n in (0, 15, 30, 65, 100)]
        [0.04, 0.52, 1.0, 0.5, 0.0]

    Source: Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2018, with cosines for lines.
    """
    num_steps = _count("num_steps", num_steps, 2)
    _fraction("initial", initial, zero=False)
    _fraction("final", final, zero=False)
    if not 0.0 < warmup_fraction < 1.0 or int(warmup_fraction * num_steps) < 1:
        raise UserError(f"warmup_fraction is {warmup_fraction}, expected in (0, 1) and a step or more of {num_steps}")
    return _schedule(optax.cosine_onecycle_schedule(num_steps, 1.0, warmup_fraction, 1.0 / initial, initial / final))


def warmup_stable_decay(num_steps: int, *, warmup_steps: int = 0, decay_steps: int = 0, final: float = 0.0) -> Schedule:
    """Let the rate rise linearly from 0, stay at 1, and fall linearly to `final` at the end.

    Args:
        num_steps: of the whole schedule, at least 1; from there on the factor is `final`.
        warmup_steps: at least 0. The factor is 0 at step 0 and 1 at step warmup_steps.
        decay_steps: the last steps, at least 0; with 0 the rate stays at 1 for good.
        final: in [0, 1].

    Returns:
        From step, int32 scalar, to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range, or warm-up and decay overlap.

    Example:
        >>> schedule = warmup_stable_decay(100, warmup_steps=10, decay_steps=20)
        >>> [round(float(schedule(n)), 4) for n in (0, 5, 10, 80, 90, 100)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Source: Hu et al., "MiniCPM", 2024, section 4.2, equation 1, with a linear decay.
    """
    num_steps = _count("num_steps", num_steps, 1)
    warmup_steps, decay_steps = _count("warmup_steps", warmup_steps, 0), _count("decay_steps", decay_steps, 0)
    _fraction("final", final)
    if warmup_steps + decay_steps > num_steps:
        raise UserError(
            f"warmup_steps {warmup_steps} and decay_steps {decay_steps} are more than num_steps, {num_steps}"
        )

    def schedule(step: Any) -> jax.Array:
        rise = jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else jnp.ones(())
        left = jnp.clip((num_steps - step) / decay_steps, 0.0, 1.0) if decay_steps else jnp.ones(())
        return rise * (final + (1.0 - final) * left)

    return _schedule(schedule)


def _schedule(schedule: Callable[[Any], Any]) -> Schedule:
    # int32 steps become float32 inside: exact up to 16.7 million steps, off by 1 in 10^7 beyond.
    return lambda step: jnp.asarray(schedule(step), jnp.float32)


def _count(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < low:
        raise UserError(f"{name} is {value!r}, expected a whole number of steps, at least {low}")
    return int(value)


def _fraction(name: str, value: float, *, zero: bool = True) -> None:
    if not 0.0 <= value <= 1.0 or (value == 0.0 and not zero):
        raise UserError(f"{name} is {value!r}, expected a number in {'[' if zero else '('}0, 1]")


# A default argument: one function, made once.
CONSTANT = constant()
