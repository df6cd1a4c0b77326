import jax
import jax.numpy as jnp
import optax
import pytest

from accelnet import optim
from accelnet.errors import UserError

PARAMS = {"kernel": jnp.ones((2, 2))}


def test_an_optimizer_without_a_rate_in_its_state_has_none():
    assert optim.learning_rate(optax.sgd(0.1).init(PARAMS)) is None
    assert optim.hyperparams(optax.sgd(0.1).init(PARAMS)) == {}


def test_a_rate_that_optax_itself_injected_is_found():
    state = optax.inject_hyperparams(optax.sgd)(learning_rate=0.25).init(PARAMS)
    assert optim.learning_rate(state) == 0.25
    assert optim.learning_rate(optim.with_hyperparams(state, learning_rate=0.5)) == 0.5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", {"learning_rate", "weight_decay"}),
        ("nesterov", {"learning_rate", "momentum", "weight_decay"}),
        ("adam", {"learning_rate", "b1"}),
        ("schedule_free_adamw", {"learning_rate", "weight_decay"}),
        ("muon", {"learning_rate", "momentum", "weight_decay", "b1"}),
    ],
)
def test_the_operands_of_an_algorithm_can_be_read(name, expected):
    assert set(optim.hyperparams(optim.algorithms[name](0.1).init(PARAMS))) == expected


def test_every_operand_can_be_changed_and_takes_effect():
    optimizer = optim.momentum(0.5, momentum=0.5, weight_decay=0.0)
    state = optimizer.init(PARAMS)
    _, state = optimizer.update(PARAMS, state, PARAMS)
    changed = optim.with_hyperparams(state, learning_rate=1.0, momentum=0.25, weight_decay=2.0)
    updates, _ = optimizer.update(PARAMS, changed, PARAMS)
    assert updates["kernel"][0, 0] == -1.0 * ((1 + 0.25) + 2.0)
    assert optim.hyperparams(state)["learning_rate"] == 0.5


def test_a_rate_inside_of_another_transformation_is_found_and_changed():
    inner = optax.chain(optim.adam(0.5), optim.average_params(0.9))
    optimizer = optax.masked(optax.apply_if_finite(inner, 3), {"kernel": True})
    state = optim.with_hyperparams(optimizer.init(PARAMS), learning_rate=0.125)
    assert optim.learning_rate(state) == 0.125


def test_several_algorithms_change_together():
    algorithms = {"a": optim.sgd(0.5), "b": optim.adam(0.25)}
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    optimizer = optax.partition(algorithms, {"a": "a", "b": "b"})
    state = optim.with_hyperparams(optimizer.init(params), learning_rate=0.125, b1=0.5)
    updates, _ = optimizer.update(params, state, params)
    assert (float(updates["a"][0]), round(float(updates["b"][0]), 5)) == (-0.125, -0.125)


def test_each_member_of_a_population_can_have_a_value_of_its_own():
    state = jax.vmap(lambda rate: optim.sgd(rate).init(PARAMS))(jnp.array([0.1, 0.2]))
    assert optim.learning_rate(optim.with_hyperparams(state, learning_rate=0.5)).tolist() == [0.5, 0.5]
    assert optim.learning_rate(optim.with_hyperparams(state, learning_rate=jnp.array([0.5, 0.25]))).tolist() == [
        0.5,
        0.25,
    ]


def test_a_changed_value_is_no_array_of_the_callers():
    value = jnp.asarray(0.25)
    state = optim.with_hyperparams(optim.sgd(0.1).init(PARAMS), learning_rate=value)
    jax.jit(lambda state: state, donate_argnums=0)(state)
    assert value == 0.25


def test_a_rate_given_as_an_array_survives_the_donation_of_the_state():
    rate = jnp.asarray(0.25)
    optimizer = optim.sgd(rate)
    jax.jit(lambda state: state, donate_argnums=0)(optimizer.init(PARAMS))
    assert rate == 0.25
    assert optim.learning_rate(optimizer.init(PARAMS)) == 0.25


def test_a_rate_can_be_changed_inside_of_a_compiled_function():
    state = optim.sgd(0.1).init(PARAMS)
    changed = jax.jit(lambda state, rate: optim.with_hyperparams(state, learning_rate=rate))(state, 0.5)
    assert optim.learning_rate(changed) == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.1}, "no hyperparameter 'rate', only: b1, learning_rate, weight_decay"),
        ({"schedule": 0.1}, "no hyperparameter 'schedule', only"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
        ({"learning_rate": jnp.ones(3)}, r"learning_rate has shape \(3,\), expected one number"),
    ],
)
def test_a_change_that_cannot_be_made_is_named(values, message):
    state = optim.adamw(0.1).init(PARAMS)
    with pytest.raises(UserError, match=message):
        optim.with_hyperparams(state, **values)


def test_what_optax_injected_can_all_be_given_back():
    state = optax.inject_hyperparams(optax.adamw)(learning_rate=0.25, weight_decay=-0.5).init(PARAMS)
    assert {"eps_root", "weight_decay"} <= set(optim.hyperparams(state))
    again = optim.with_hyperparams(state, **optim.hyperparams(state))
    assert jax.tree.map(float, optim.hyperparams(again)) == jax.tree.map(float, optim.hyperparams(state))


def test_a_whole_number_stays_one():
    def rule(learning_rate, warmup):
        return optax.sgd(jnp.where(warmup > 2, 0.0, learning_rate))

    state = optax.inject_hyperparams(rule)(0.1, 3).init(PARAMS)
    assert int(optim.hyperparams(optim.with_hyperparams(state, warmup=4.0))["warmup"]) == 4
    with pytest.raises(UserError, match=r"warmup is 1.5, expected a whole number"):
        optim.with_hyperparams(state, warmup=1.5)
