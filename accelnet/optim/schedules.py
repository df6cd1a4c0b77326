"""Schedules: functions from the progress of a run to a factor of the learning rate, whose peak is 1.

The progress is the share of the run's updates that are done, from 0 to 1, so no schedule has to know how long the run
is. The rate of an update is `learning_rate * schedule(progress)`. All durations are shares of the run. The algorithms
of `accelnet.optim` also take plain Optax schedules, which are functions of the step: a function is one of progress if
it has a parameter of that name.
"""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from accelnet.errors import UserError
from accelnet.optim.ranges import Range, check_number
from accelnet.wording import shown

Schedule = Callable[[Any], Any]

_CLOSED = Range.parse("[0, 1]")
_ABOVE_ZERO = Range.parse("(0, 1]")
_BELOW_ONE = Range.parse("[0, 1)")
_OPEN = Range.parse("(0, 1)")
# Progress is a quotient in float32, which may come out two units in the last place too small.
_ROUNDING = 1.0 + 2.0**-22


def constant() -> Schedule:
    """Keep the rate as it is: `1`.

    Returns:
        From progress, float32 scalar in [0, 1], to 1, float32 scalar.

    Example:
        >>> float(constant()(0.5))
        1.0
    """
    return _schedule("constant", lambda _: 1.0)


def step(milestones: Sequence[float], *, factor: float = 0.1) -> Schedule:
    """Multiply the rate at milestones: `factor ^ (number of milestones <= progress)`.

    Args:
        milestones: shares of the run, each in (0, 1) and above the one before.
        factor: number in (0, 1].

    Returns:
        From progress, float32 scalar in [0, 1], to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = step([0.5, 0.75], factor=0.5)
        >>> [float(schedule(p)) for p in (0.49, 0.5, 0.75)]
        [1.0, 0.5, 0.25]

    Source: He et al., "Deep residual learning for image recognition", 2016, section 4.2.
    """
    if isinstance(milestones, str) or not isinstance(milestones, Sequence):
        raise UserError(
            f"milestones are {shown(milestones)}, expected a list of shares of the run, such as [0.5, 0.75]"
        )
    shares = [_share("a milestone", one, _OPEN) for one in milestones]
    if any(later <= earlier for earlier, later in itertools.pairwise(shares)):
        raise UserError(f"milestones are {shares}, expected each above the one before")
    factor = check_number("factor", factor, _ABOVE_ZERO)

    def of(progress: jax.Array) -> Any:
        reached = sum((progress * _ROUNDING >= share).astype(jnp.float32) for share in shares)
        return factor**reached if shares else 1.0

    return _schedule("step", of)


def exponential(*, factor: float) -> Schedule:
    """Let the rate decay evenly on a logarithmic scale: `factor ^ progress`.

    Args:
        factor: number in (0, 1], reached at the end of the run.

    Returns:
        From progress, float32 scalar in [0, 1], to a factor, float32 scalar.

    Raises:
        UserError: factor is out of range.

    Example:
        >>> float(exponential(factor=0.25)(0.5))
        0.5
    """
    factor = check_number("factor", factor, _ABOVE_ZERO)
    return _schedule("exponential", lambda progress: factor ** jnp.clip(progress, 0.0, 1.0))


def cosine(*, final: float = 0.0) -> Schedule:
    """Let the rate fall along half a cosine: `final + (1 - final) (1 + cos(pi progress)) / 2`.

    Args:
        final: factor at the end of the run, in [0, 1].

    Returns:
        From progress, float32 scalar in [0, 1], to a factor, float32 scalar.

    Raises:
        UserError: final is out of range.

    Example:
        >>> [round(float(cosine()(p)), 4) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5.
    """
    return warmup_cosine(warmup=0.0, final=final)


def warmup_cosine(*, warmup: float = 0.05, final: float = 0.0) -> Schedule:
    """Let the rate rise linearly from 0, then fall along half a cosine.

    Args:
        warmup: share of the run in which the factor rises from 0 to 1, in [0, 1).
        final: factor at the end of the run, in [0, 1].

    Returns:
        From progress, float32 scalar in [0, 1], to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = warmup_cosine(warmup=0.1)
        >>> [round(float(schedule(p)), 4) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]

    Source: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2, for the warm-up; `cosine` for
    the rest.
    """
    warmup, final = _share("warmup", warmup, _BELOW_ONE), check_number("final", final, _CLOSED)

    def of(progress: jax.Array) -> Any:
        fall = final + (1.0 - final) * _half_cosine((progress - warmup) / (1.0 - warmup))
        return fall if warmup == 0.0 else jnp.where(progress < warmup, progress / warmup, fall)

    return _schedule("warmup_cosine" if warmup else "cosine", of)


def one_cycle(*, warmup: float = 0.3, initial: float = 0.04, final: float = 4e-6) -> Schedule:
    """Let the rate rise along half a cosine from `initial` to 1, then fall along another to `final`.

    Args:
        warmup: share of the run in which the factor rises, in (0, 1).
        initial: factor at the start, in (0, 1].
        final: factor at the end of the run, in [0, 1].

    Returns:
        From progress, float32 scalar in [0, 1], to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = one_cycle()
        >>> [round(float(schedule(p)), 4) for p in (0.0, 0.15, 0.3, 0.65, 1.0)]
        [0.04, 0.52, 1.0, 0.5, 0.0]

    Source: Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2018, with cosines for lines.
    """
    warmup = _share("warmup", warmup, _OPEN)
    initial, final = check_number("initial", initial, _ABOVE_ZERO), check_number("final", final, _CLOSED)

    def of(progress: jax.Array) -> Any:
        rise = 1.0 - (1.0 - initial) * _half_cosine(progress / warmup)
        fall = final + (1.0 - final) * _half_cosine((progress - warmup) / (1.0 - warmup))
        return jnp.where(progress < warmup, rise, fall)

    return _schedule("one_cycle", of)


def warmup_stable_decay(*, warmup: float = 0.0, decay: float = 0.0, final: float = 0.0) -> Schedule:
    """Let the rate rise linearly from 0, stay at 1, and fall linearly to `final` at the end.

    Args:
        warmup: share of the run in which the factor rises from 0 to 1, in [0, 1]; with 0 it begins at 1.
        decay: share of the run, its last part, in which the factor falls, in [0, 1]; with 0 it stays at 1.
        final: factor at the end of the decay, in [0, 1].

    Returns:
        From progress, float32 scalar in [0, 1], to a factor, float32 scalar.

    Raises:
        UserError: an argument is out of range, or warm-up and decay overlap.

    Example:
        >>> schedule = warmup_stable_decay(warmup=0.1, decay=0.2)
        >>> [round(float(schedule(p)), 4) for p in (0.0, 0.05, 0.1, 0.8, 0.9, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Source: Hu et al., "MiniCPM", 2024, section 4.2, equation 1, with a linear decay.
    """
    warmup, decay = _share("warmup", warmup, _CLOSED), _share("decay", decay, _CLOSED)
    final = check_number("final", final, _CLOSED)
    if warmup + decay > _ROUNDING:
        raise UserError(f"warmup {warmup:g} and decay {decay:g} overlap, expected a sum of at most 1")

    def of(progress: jax.Array) -> Any:
        factor = jnp.clip(progress / warmup, 0.0, 1.0) if warmup else 1.0
        return factor * (final + (1.0 - final) * jnp.clip((1.0 - progress) / decay, 0.0, 1.0)) if decay else factor

    return _schedule("warmup_stable_decay", of)


def is_of_progress(schedule: Callable[..., Any]) -> bool:
    """Say whether a schedule is a function of progress, by the name of its parameter, or else of the step.

    Example:
        >>> is_of_progress(lambda progress: 1 - progress), is_of_progress(lambda count: 1 / count)
        (True, False)
    """
    try:
        return "progress" in inspect.signature(schedule).parameters
    except (TypeError, ValueError):  # a builtin, without a signature
        return False


def _half_cosine(share: jax.Array) -> jax.Array:
    return (1.0 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0))) / 2.0


def _schedule(name: str, factor: Callable[[jax.Array], Any]) -> Schedule:
    def schedule(progress: Any) -> jax.Array:
        if not isinstance(progress, int | float) and not hasattr(progress, "dtype"):
            raise UserError(f"schedules.{name} got {shown(progress)}, expected the progress of the run, from 0 to 1")
        # Optax calls a schedule with its count of steps: each from the second on would be the end of the run.
        is_end = isinstance(progress, int) and progress in (0, 1)
        if not is_end and jnp.issubdtype(jnp.result_type(progress), jnp.integer):
            raise UserError(
                f"schedules.{name} got a step, expected the progress of the run, from 0 to 1: give it as schedule= to "
                "an optimizer of accelnet.optim, as in adamw(1e-3, schedule=...)"
            )
        return jnp.asarray(factor(jnp.asarray(progress, jnp.float32)), jnp.float32)

    return schedule


def _share(name: str, value: Any, valid: Range) -> float:
    share = check_number(name, value, valid)
    if isinstance(share, Tracer):
        raise UserError(f"{name} is a traced number, expected a plain one: it decides which code runs")
    return share
