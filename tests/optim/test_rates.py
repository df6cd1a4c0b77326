import jax
import jax.numpy as jnp
import optax
import pytest

from accelnet import optim
from accelnet.optim import schedules

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
LABELS = {"kernel": "kernels", "bias": "biases"}


def rates_of(optimizer, num_steps, total=10, value=1.0):
    """Return the rates shown after init and after each update."""
    state = optimizer.init(PARAMS)
    shown = [optim.learning_rates(state)]
    for number in range(num_steps):
        _, state = optimizer.update(PARAMS, state, PARAMS, progress=number / total, value=value)
        shown.append(optim.learning_rates(state))
    return [{name: round(float(rate), 6) for name, rate in rates.items()} for rates in shown]


def test_the_rate_in_effect_is_the_peak_times_the_schedule_of_the_last_update():
    warmup = schedules.warmup_stable_decay(warmup=0.4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optim.adam(0.5, schedule=warmup))
    rates = [rate["learning_rate"] for rate in rates_of(optimizer, 6)]
    assert rates == [0.0, 0.0, 0.125, 0.25, 0.375, 0.5, 0.5]


@pytest.mark.parametrize("name", ["sgd", "schedule_free_adamw"])
@pytest.mark.parametrize("schedule", [schedules.cosine(), optax.cosine_decay_schedule(1.0, 10)])
def test_the_rate_in_effect_is_the_one_that_updates_have(name, schedule):
    optimizer = optim.algorithms[name](0.5, schedule=schedule)
    state, params, before = optimizer.init(PARAMS), PARAMS, PARAMS
    for number in range(4):
        updates, state = optimizer.update(PARAMS, state, params, progress=number / 10)
        params = optax.apply_updates(params, updates)
        after = state.inner_state.z if name == "schedule_free_adamw" else params
        applied, before = before["kernel"][0, 0] - after["kernel"][0, 0], after
        assert float(optim.learning_rate(state)) == pytest.approx(float(applied), rel=1e-5)


def test_groups_have_rates_of_their_own():
    optimizer = optax.partition(
        {"kernels": optim.adam(0.5, schedule=schedules.cosine()), "biases": optim.sgd(0.25)}, LABELS
    )
    first, second = rates_of(optax.chain(optax.clip(1.0), optimizer), 6, total=10)[::6]
    assert first == {"learning_rate/biases": 0.25, "learning_rate/kernels": 0.5}
    assert second == {"learning_rate/biases": 0.25, "learning_rate/kernels": 0.25}


def test_a_plateau_counts_for_the_group_that_it_is_in():
    reduced = optax.chain(optim.sgd(0.5), optim.reduce_on_plateau(factor=0.5, patience=1))
    optimizer = optax.partition({"kernels": reduced, "biases": optim.sgd(0.25)}, LABELS)
    assert rates_of(optimizer, 2)[-1] == {"learning_rate/biases": 0.25, "learning_rate/kernels": 0.25}
    whole = optax.chain(optimizer, optax.contrib.reduce_on_plateau(0.1, 1))
    assert rates_of(whole, 2)[-1] == {"learning_rate/biases": 0.025, "learning_rate/kernels": 0.025}


def test_one_group_with_a_rate_needs_no_name():
    optimizer = optax.partition({"kernels": optim.adam(0.5), "biases": optax.set_to_zero()}, LABELS)
    assert rates_of(optimizer, 1) == [{"learning_rate": 0.5}] * 2


def test_groups_within_groups_have_both_names():
    inner = optax.multi_transform({"a": optim.sgd(0.5), "b": optim.sgd(0.25)}, {"kernel": "a", "bias": "b"})
    outer = optax.multi_transform({"all": inner, "none": optim.sgd(1.0)}, lambda p: jax.tree.map(lambda _: "all", p))
    assert rates_of(outer, 1)[-1] == {
        "learning_rate/all/a": 0.5,
        "learning_rate/all/b": 0.25,
        "learning_rate/none": 1.0,
    }


@pytest.mark.parametrize("make", [lambda: optax.adam(0.1), lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 9))])
def test_a_state_that_shows_no_rate_has_none(make):
    state = make().init(PARAMS)
    assert optim.learning_rates(state) == {}
    assert optim.learning_rate(state) is None
    assert optim.hyperparams(state) == {}


def test_a_schedule_that_optax_itself_injected_is_found():
    optimizer = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.5, 0.0, 4))
    assert [rate["learning_rate"] for rate in rates_of(optimizer, 3)] == [0.5, 0.5, 0.375, 0.25]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: optax.lookahead(inner, 5, 0.5),
        lambda inner: optax.MultiSteps(inner, 1),
        lambda inner: optax.contrib.sam(inner, optax.sgd(0.1), opaque_mode=True),
        lambda inner: optax.apply_if_finite(inner, 3),
        lambda inner: optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(0)), inner),
    ],
)
def test_the_rate_is_found_in_what_the_engine_trains_with(wrap):
    optimizer = optim.adapt_optimizer(wrap(optim.sgd(0.5)))
    state = optimizer.init(PARAMS)
    assert optim.learning_rates(state)["learning_rate"] == 0.5
    assert optim.learning_rate(optim.with_hyperparams(state, learning_rate=0.25)) == 0.25
