import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import accelnet as an
from accelnet import optim
from accelnet.errors import UserError
from accelnet.optim import schedules

PARAMS = jnp.ones(1)


def half_cosine(fraction):
    return (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2


def one_cycle(p):
    if p < 0.3:
        return 1 - (1 - 0.04) * half_cosine(p / 0.3)
    return 4e-6 + (1 - 4e-6) * half_cosine((p - 0.3) / 0.7)


CASES = {
    "constant": (schedules.constant(), lambda p: 1.0),
    "step": (schedules.step([0.1, 0.4], factor=0.3), lambda p: 0.3 ** ((p >= 0.1) + (p >= 0.4))),
    "no step": (schedules.step([]), lambda p: 1.0),
    "exponential": (schedules.exponential(factor=0.5), lambda p: 0.5 ** min(p, 1.0)),
    "cosine": (schedules.cosine(final=0.1), lambda p: 0.1 + 0.9 * half_cosine(p)),
    "warmup_cosine": (
        schedules.warmup_cosine(warmup=0.2),
        lambda p: p / 0.2 if p < 0.2 else half_cosine((p - 0.2) / 0.8),
    ),
    "warmup_cosine without warm-up": (schedules.warmup_cosine(warmup=0.0), half_cosine),
    "one_cycle": (schedules.one_cycle(), one_cycle),
    "warmup_stable_decay": (
        schedules.warmup_stable_decay(warmup=0.1, decay=0.4, final=0.2),
        lambda p: min(p / 0.1, 1.0) * (0.2 + 0.8 * min(max((1 - p) / 0.4, 0.0), 1.0)),
    ),
    "warm-up and no decay": (schedules.warmup_stable_decay(warmup=0.1), lambda p: min(p / 0.1, 1.0)),
    "all of it warm-up and decay": (
        schedules.warmup_stable_decay(warmup=0.3, decay=0.7),
        lambda p: min(p / 0.3, max(1 - p, 0.0) / 0.7, 1.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_follows_its_formula_during_the_run_and_after_it(name):
    schedule, formula = CASES[name]
    expected = [formula(number / 100) for number in range(130)]
    # A cosine near its zero is a difference of numbers near 1: absolute, not relative.
    actual = jax.vmap(schedule)(jnp.arange(130, dtype=jnp.float32) / 100)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_float32_scalar_whose_peak_is_one(name):
    schedule = CASES[name][0]
    value = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.float32))
    assert (value.shape, value.dtype, value.weak_type) == ((), jnp.float32, False)
    assert max(float(factor) for factor in jax.vmap(schedule)(jnp.linspace(0.0, 1.0, 101))) == pytest.approx(1.0)
    # Fused operations round differently.
    np.testing.assert_allclose(schedule(0.03), jax.jit(schedule)(0.03), rtol=1e-6)
    assert schedule(0).dtype == schedule(1).dtype == jnp.float32


def test_a_milestone_is_reached_at_its_step_whatever_the_rounding_of_progress():
    for total in (7, 10, 49, 97):
        schedule = jax.vmap(schedules.step([number / total for number in range(1, total)], factor=0.5))
        exact = np.arange(total, dtype=np.float32) / np.float32(total)
        for progress in (exact, exact * np.float32(1 - 2.0**-23)):
            np.testing.assert_allclose(-np.log2(schedule(progress)), np.arange(total), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.step([0.0]), r"a milestone is 0, expected a number in \(0, 1\)"),
        (lambda: schedules.step([10, 20]), "a milestone is 10"),
        (lambda: schedules.step([0.2, 0.1]), "expected each above the one before"),
        (lambda: schedules.step(5), r"milestones are 5, expected a list of shares of the run, such as \[0.5, 0.75\]"),
        (lambda: schedules.step("0.5"), "milestones are '0.5'"),
        (lambda: schedules.step([0.1], factor=0.0), r"factor is 0, expected a number in \(0, 1\]"),
        (lambda: schedules.step([0.1], factor=1.5), "factor is 1.5"),
        (lambda: schedules.exponential(factor=-0.5), "factor is -0.5"),
        (lambda: schedules.cosine(final="a"), "final is 'a', expected"),
        (lambda: schedules.cosine(final=-1.0), r"final is -1, expected a number in \[0, 1\]"),
        (lambda: schedules.cosine(final=float("nan")), "final is nan"),
        (lambda: schedules.warmup_cosine(warmup=-1), "warmup is -1"),
        (lambda: schedules.warmup_cosine(warmup=1.0), r"warmup is 1, expected a number in \[0, 1\)"),
        (lambda: schedules.one_cycle(warmup=0.0), "warmup is 0"),
        (lambda: schedules.one_cycle(initial=0.0), "initial is 0"),
        (lambda: schedules.one_cycle(final=2.0), "final is 2"),
        (lambda: schedules.warmup_stable_decay(warmup=0.6, decay=0.6), "warmup 0.6 and decay 0.6 overlap"),
        (lambda: schedules.warmup_stable_decay(decay=-6), "decay is -6"),
        (lambda: schedules.warmup_stable_decay(warmup=True), "warmup is True"),
        (
            lambda: optim.sgd(0.1, schedule=lambda progress: jnp.ones(2) * progress),
            r"array of shape \(2,\), expected one",
        ),
        (lambda: optim.sgd(0.1, schedule=lambda step: 1 / 0), "schedule raised ZeroDivisionError: division by zero"),
        (
            lambda: optim.sgd(0.1, schedule=lambda progress: 1.0 if progress < 0.5 else 0.1),
            r"schedule raised TracerBoolConversionError: .*choose by jnp.where, not by if",
        ),
        (lambda: optim.sgd(0.1, schedule=lambda step: None), "schedule raised"),
        (
            lambda: optim.sgd(0.1, schedule=schedules.cosine),
            "schedule is schedules.cosine itself, expected what it returns: call it",
        ),
    ],
)
def test_an_argument_out_of_range_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def updates_of(optimizer, num_steps, **extra_args):
    state, steps = optimizer.init(PARAMS), []
    for number in range(num_steps):
        updates, state = optimizer.update(PARAMS, state, PARAMS, progress=number / num_steps, **extra_args)
        steps.append(round(float(updates[0]), 6))
    return steps


def test_schedules_of_optax_can_be_used_too():
    optimizer = optim.sgd(0.5, schedule=optax.linear_schedule(1.0, 0.0, 2))
    assert updates_of(optimizer, 3) == [-0.5, -0.25, 0.0]
    # They need no progress.
    optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


def test_a_schedule_of_progress_ends_with_the_run_however_long_it_is():
    optimizer = optim.sgd(1.0, schedule=lambda progress: 1 - progress)
    assert updates_of(optimizer, 2) == [-1.0, -0.5]
    assert updates_of(optimizer, 4) == [-1.0, -0.75, -0.5, -0.25]
    linear = functools.partial(lambda progress, final: 1 - (1 - final) * progress, final=0.5)
    assert updates_of(optim.sgd(1.0, schedule=linear), 2) == [-1.0, -0.75]
    by_keyword = lambda *, progress: 1 - progress  # noqa: E731
    assert updates_of(optim.sgd(1.0, schedule=by_keyword), 2) == [-1.0, -0.5]


@pytest.mark.parametrize("name", optim.algorithms)
def test_without_progress_an_update_says_what_to_pass(name):
    optimizer = optim.algorithms[name](0.1, schedule=schedules.cosine())
    state = optimizer.init(PARAMS)
    assert float(optim.learning_rate(state)) == pytest.approx(0.1)
    with pytest.raises(UserError, match=r"call optimizer.update.*progress=step / num_steps"):
        optimizer.update(PARAMS, state, PARAMS)


def test_a_constant_schedule_needs_no_progress():
    for schedule in (schedules.constant(), schedules.warmup_stable_decay(), lambda progress: 1.0):
        optimizer = optim.sgd(0.5, schedule=schedule)
        assert optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)[0].tolist() == [-0.5]


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(schedules.cosine()), optax.inject_hyperparams(optax.sgd)(schedules.warmup_cosine(warmup=0.1))],
)
def test_a_schedule_of_progress_refuses_the_steps_of_optax(optimizer):
    with pytest.raises(UserError, match=r"cosine got a step, expected the progress of the run, from 0 to 1"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


def test_a_failing_schedule_keeps_its_own_frames():
    def broken(progress):
        raise KeyError("mine")

    with pytest.raises(UserError, match="schedule raised KeyError: 'mine'") as caught:
        optim.adam(0.1, schedule=broken)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_shorter_run_ends_its_cosine_at_zero():
    data = an.data.from_arrays(np.eye(20, 3, dtype=np.float32), np.arange(20) % 2, num_classes=2)
    experiment = an.Experiment(
        data=data,
        model=lambda rngs: an.models.MLP(3, (4,), 2, rngs=rngs),
        optimizer=optim.adam(0.5, schedule=schedules.cosine()),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=4,
        epochs=60,
        log_every=an.Every(steps=1),
    )
    for epochs in (60, 3):
        run = an.fit(experiment.replace(epochs=epochs), progress=False)
        rates = [row["learning_rate"] for row in run.rows if row["split"] == "train"]
        total = run.experiment.total_steps
        expected = [0.25 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
        np.testing.assert_allclose(rates, expected, atol=1e-6)
