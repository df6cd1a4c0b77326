"""Every algorithm against its published rule, redone in NumPy in float64, a leaf at a time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from accelnet import optim
from accelnet.errors import UserError
from tests.optim.oracles import (
    adabelief,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamw,
    expect,
    lamb,
    lars,
    lion,
    momentum,
    muon,
    nadam,
    nesterov,
    rmsprop,
    run,
    schedule_free,
    schedule_free_adamw,
    sgd,
)

DECAY = {"weight_decay": 0.1}
ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
# Its rule, its arguments, and the size of its first update for p = 1, g = 2 with its defaults, over the rate.
CASES = {
    "sgd": (sgd, DECAY, 2.0),
    "momentum": (momentum, {"momentum": 0.8, **DECAY}, 2.0),
    "nesterov": (nesterov, {"momentum": 0.8, **DECAY}, 3.8),
    "lars": (lars, {"momentum": 0.8, "trust_coefficient": 0.02, **DECAY}, 2.0),
    "lion": (lion, {"b1": 0.8, "b2": 0.95, **DECAY}, 1.0),
    "adagrad": (adagrad, {"initial_accumulator": 0.2}, 0.98773),
    "adadelta": (adadelta, {"decay": 0.8, "eps": 1e-3}, 0.0031623),
    "rmsprop": (rmsprop, {"decay": 0.8, "eps": 1e-3}, 3.1623),
    "adafactor": (adafactor, {"min_factored_size": 3, **DECAY}, 1.0),
    "adam": (adam, ADAM, 1.0),
    "adamw": (adamw, {**ADAM, **DECAY}, 1.0),
    "nadam": (nadam, ADAM, 1.4737),
    "adabelief": (adabelief, {**ADAM, **DECAY}, 1.1111),
    "lamb": (lamb, {**ADAM, **DECAY}, 1.0),
    "schedule_free_adamw": (schedule_free_adamw, {**ADAM, **DECAY}, 1.0),
    "muon": (muon, {"momentum": 0.8, **ADAM, **DECAY}, 1.0),
}


def assert_close(actual, expected, tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_every_algorithm_has_an_oracle():
    assert set(CASES) == set(optim.algorithms)


@pytest.mark.parametrize("name", CASES)
def test_it_follows_its_published_rule(name):
    rule, arguments, _ = CASES[name]
    params, _ = run(optim.algorithms[name](0.03, schedule=optim.schedules.cosine(), **arguments))
    # Float32 against float64 over 7 steps; Newton-Schulz multiplies rounding errors by 3.4 five times over.
    assert_close(params, expect(rule), 1e-4 if name == "muon" else 3e-6)


@pytest.mark.parametrize("name", CASES)
def test_its_first_update_with_its_defaults_is_the_known_one(name):
    optimizer, params = optim.algorithms[name](0.1), jnp.array([1.0])
    updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(params), params)
    assert float(updates[0]) == pytest.approx(-0.1 * CASES[name][2], rel=1e-4)


def test_muon_steps_by_the_orthogonal_part_with_the_size_of_an_update_of_adamw():
    optimizer, params = optim.muon(0.1, weight_decay=0.0), jnp.eye(2)
    updates, _ = optimizer.update(jnp.eye(2), optimizer.init(params), params)
    assert float(updates[0, 0]) == pytest.approx(-0.1 * 0.2 * 2**0.5, abs=0.01)
    assert float(updates[0, 1]) == pytest.approx(0.0, abs=1e-6)


def test_schedule_free_evaluates_at_the_average():
    arguments = {**ADAM, **DECAY}
    params, state = run(optim.schedule_free_adamw(0.03, schedule=optim.schedules.cosine(), **arguments))
    # x is recovered as (y - (1 - b1) z) / b1, which loses a digit.
    assert_close(optim.eval_params(state, params), expect(lambda *args: schedule_free(*args)[1]), 1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optim.adam(0.01), optax.adam(0.01)),
        (optim.adamw(0.01, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1, mask=optim.decayed)),
        (optim.momentum(0.01), optax.sgd(0.01, momentum=0.9)),
        (optim.lion(0.01), optax.lion(0.01, weight_decay=0.1, mask=optim.decayed)),
        (optim.schedule_free_adamw(0.01), optax.contrib.schedule_free_adamw(0.01)),
    ],
    ids=["adam", "adamw", "momentum", "lion", "schedule_free_adamw"],
)
def test_the_defaults_are_those_of_optax(ours, theirs):
    # 1 - b1 is rounded once more where b1 is an operand.
    assert_close(run(ours)[0], run(optax.with_extra_args_support(theirs))[0], 1e-6)


def test_muon_orthogonalizes_what_maps_many_features_to_many():
    params = {
        "Embed_0": {"embedding": jnp.ones((7, 4))},
        "first": {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)},
        "stacked": {"kernel": jnp.ones((3, 3, 8, 8)), "bias": jnp.ones((2, 8))},
        "norm": {"scale": jnp.ones((2, 8))},
        "dense": {"kernel": jnp.ones((8, 4))},
    }
    assert optim.matrices(params) == {
        "Embed_0": {"embedding": False},
        "first": {"kernel": False, "bias": False},
        "stacked": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "dense": {"kernel": True},
    }


def test_muon_works_where_nothing_is_a_matrix():
    params = {"bias": jnp.ones(3)}
    optimizer = optim.muon(0.1)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-5)


def test_muon_refuses_a_vector_chosen_as_a_matrix():
    optimizer = optim.muon(0.1, muon_mask=lambda params: jax.tree.map(lambda _: True, params))
    with pytest.raises(UserError, match=r"muon_mask chose bias of shape \(3,\)"):
        optimizer.init({"bias": jnp.ones(3)})


def test_weight_decay_leaves_biases_and_norms_alone_even_where_they_are_stacked():
    params = {
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones((3, 2)), "bias": jnp.ones((3, 2))},
        "embed": {"embedding": jnp.ones((5, 2))},
    }
    optimizer = optim.adamw(0.5, weight_decay=0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    shrunk = jax.tree.map(lambda update: bool(jnp.all(update != 0)), updates)
    assert shrunk == {
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
        "embed": {"embedding": True},
    }
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.05, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars", "muon"])
def test_a_decay_mask_of_ones_own_is_heeded(name):
    everything = {"dense": {"kernel": True, "bias": True}}
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for mask in (everything, lambda params: jax.tree.map(lambda _: True, params)):
        optimizer = optim.algorithms[name](0.5, weight_decay=0.1, decay_mask=mask)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        assert jnp.all(updates["dense"]["bias"] < 0)
