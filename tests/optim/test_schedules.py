import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from accelnet.errors import UserError
from accelnet.optim import schedules


def half_cosine(fraction):
    return (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2


def one_cycle(step):
    if step < 30:
        return 1 - (1 - 0.04) * half_cosine(step / 30)
    return 4e-6 + (1 - 4e-6) * half_cosine((step - 30) / 70)


CASES = {
    "constant": (schedules.constant(), lambda n: 1.0),
    "step": (schedules.step([10, 40], factor=0.3), lambda n: 0.3 ** ((n >= 10) + (n >= 40))),
    "exponential": (schedules.exponential(20, factor=0.5), lambda n: 0.5 ** (n / 20)),
    "cosine": (schedules.cosine(100, final=0.1), lambda n: 0.1 + 0.9 * half_cosine(n / 100)),
    "warmup_cosine": (
        schedules.warmup_cosine(100, warmup_steps=20),
        lambda n: n / 20 if n < 20 else half_cosine((n - 20) / 80),
    ),
    "warmup_cosine without warm-up": (
        schedules.warmup_cosine(100, warmup_steps=0),
        lambda n: half_cosine(n / 100),
    ),
    "one_cycle": (schedules.one_cycle(100), one_cycle),
    "warmup_stable_decay": (
        schedules.warmup_stable_decay(100, warmup_steps=10, decay_steps=40, final=0.2),
        lambda n: min(n / 10, 1.0) * (0.2 + 0.8 * min(max((100 - n) / 40, 0.0), 1.0)),
    ),
    "warm-up and no decay": (schedules.warmup_stable_decay(100, warmup_steps=10), lambda n: min(n / 10, 1.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_follows_its_formula_at_every_step_and_after_the_last(name):
    schedule, formula = CASES[name]
    steps = jnp.arange(0, 130)
    expected = [formula(int(n)) for n in steps]
    # A cosine near its zero is a difference of numbers near 1: absolute, not relative.
    np.testing.assert_allclose(jax.vmap(schedule)(steps), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_float32_scalar_whose_peak_is_one(name):
    schedule = CASES[name][0]
    value = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    assert (value.shape, value.dtype, value.weak_type) == ((), jnp.float32, False)
    assert max(float(factor) for factor in jax.vmap(schedule)(jnp.arange(130))) == pytest.approx(1.0)
    # Fused operations round differently.
    np.testing.assert_allclose(schedule(3), jax.jit(schedule)(3), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.step([0]), "milestones is 0, expected a whole number of steps, at least 1"),
        (lambda: schedules.step([20, 10]), "expected each above the one before"),
        (lambda: schedules.step([10], factor=0.0), r"factor is 0.0, expected a number in \(0, 1\]"),
        (lambda: schedules.step([10], factor=1.5), "factor is 1.5"),
        (lambda: schedules.exponential(-5, factor=0.5), "decay_steps is -5"),
        (lambda: schedules.exponential(5, factor=-0.5), "factor is -0.5"),
        (lambda: schedules.cosine(0), "num_steps is 0"),
        (lambda: schedules.cosine(10.5), "num_steps is 10.5, expected a whole number"),
        (lambda: schedules.cosine(10, final=-1.0), r"final is -1.0, expected a number in \[0, 1\]"),
        (lambda: schedules.cosine(10, final=float("nan")), "final is nan"),
        (lambda: schedules.warmup_cosine(10, warmup_steps=-1), "warmup_steps is -1"),
        (lambda: schedules.warmup_cosine(10, warmup_steps=10), "expected fewer than num_steps, 10"),
        (lambda: schedules.one_cycle(1), "num_steps is 1"),
        (lambda: schedules.one_cycle(3, warmup_fraction=0.1), "warmup_fraction is 0.1"),
        (lambda: schedules.one_cycle(100, initial=0.0), "initial is 0.0"),
        (lambda: schedules.one_cycle(100, final=2.0), "final is 2.0"),
        (
            lambda: schedules.warmup_stable_decay(10, warmup_steps=6, decay_steps=6),
            "more than num_steps, 10",
        ),
        (lambda: schedules.warmup_stable_decay(10, decay_steps=-6), "decay_steps is -6"),
        (lambda: schedules.warmup_stable_decay(True), "num_steps is True"),
    ],
)
def test_an_argument_out_of_range_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_schedules_of_optax_can_be_used_too():
    from accelnet import optim

    optimizer = optim.sgd(0.5, schedule=optax.linear_schedule(1.0, 0.0, 2))
    params = jnp.ones(1)
    state = optimizer.init(params)
    steps = []
    for _ in range(3):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        steps.append(float(updates[0]))
    assert steps == [-0.5, -0.25, 0.0]
