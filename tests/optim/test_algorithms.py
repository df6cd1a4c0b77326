"""Every algorithm against its published rule, redone in NumPy in float64, a leaf at a time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from accelnet import optim
from accelnet.errors import UserError

STEPS = 7
SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "dense": {"kernel": (5, 3)},
    "norm": {"scale": (6,)},
}


def is_shape(node):
    return isinstance(node, tuple)


def draw(seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: generator.normal(size=shape).astype(np.float32), SHAPES, is_leaf=is_shape)


def run(optimizer, steps=STEPS):
    """Train the first steps of 20 in one compiled loop, which also refuses a state whose types change."""

    def one(carry, of_step):
        params, state = carry
        number, gradients = of_step
        updates, state = optimizer.update(gradients, state, params, progress=number / 20)
        return (optax.apply_updates(params, updates), state), None

    def train(params, gradients):
        return jax.lax.scan(one, (params, optimizer.init(params)), (jnp.arange(steps), gradients))[0]

    gradients = jax.tree.map(lambda *leaves: np.stack(leaves), *[draw(number + 1) for number in range(steps)])
    return jax.jit(train)(draw(0), gradients)


def expect(rule, steps=STEPS):
    """Apply a rule to each leaf: rule(p, gradients, rates, is_weight) -> p after the last."""
    rates = [0.03 * schedule_factor(number) for number in range(steps)]

    def leaf(path, p, *gradients):
        is_weight = path[-1].key == "kernel"
        return rule(p.astype(float), [g.astype(float) for g in gradients], rates, is_weight)

    return jax.tree_util.tree_map_with_path(leaf, draw(0), *[draw(number + 1) for number in range(steps)])


def schedule_factor(step):
    return 0.5 * (1 + np.cos(np.pi * step / 20))


def sgd(p, gradients, rates, is_weight):
    for g, rate in zip(gradients, rates, strict=True):
        p = p - rate * (g + 0.1 * is_weight * p)
    return p


def momentum(p, gradients, rates, is_weight):
    t = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        t = 0.8 * t + g
        p = p - rate * (t + 0.1 * is_weight * p)
    return p


def nesterov(p, gradients, rates, is_weight):
    t = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        t = 0.8 * t + g
        p = p - rate * (g + 0.8 * t + 0.1 * is_weight * p)
    return p


def lars(p, gradients, rates, is_weight):
    t = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        d = g + 0.1 * p if is_weight else g
        t = 0.8 * t + rate * d * (0.02 * np.linalg.norm(p) / np.linalg.norm(d) if is_weight else 1)
        p = p - t
    return p


def lion(p, gradients, rates, is_weight):
    m = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        p = p - rate * (np.sign(0.8 * m + 0.2 * g) + 0.1 * is_weight * p)
        m = 0.95 * m + 0.05 * g
    return p


def adagrad(p, gradients, rates, is_weight):
    s = 0 * p + 0.2
    for g, rate in zip(gradients, rates, strict=True):
        s = s + g**2
        p = p - rate * g / np.sqrt(s + 1e-7)
    return p


def adadelta(p, gradients, rates, is_weight):
    v, u = 0 * p, 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        v = 0.8 * v + 0.2 * g**2
        d = np.sqrt(u + 1e-3) / np.sqrt(v + 1e-3) * g
        u = 0.8 * u + 0.2 * d**2
        p = p - rate * d
    return p


def rmsprop(p, gradients, rates, is_weight):
    v = 0 * p
    for g, rate in zip(gradients, rates, strict=True):
        v = 0.8 * v + 0.2 * g**2
        p = p - rate * g / (np.sqrt(v) + 1e-3)
    return p


def adafactor(p, gradients, rates, is_weight):
    # The two longest axes are factored where both have 3 or more.
    longest = sorted(np.argsort(p.shape, kind="stable")[-2:]) if p.ndim > 1 else []
    factored = len(longest) == 2 and all(p.shape[axis] >= 3 for axis in longest)
    v, rows, columns = 0.0, 0.0, 0.0
    for number, (g, rate) in enumerate(zip(gradients, rates, strict=True)):
        b = 1 - (number + 1.0) ** -0.8
        square = g**2 + 1e-30
        if factored:
            rows = b * rows + (1 - b) * square.mean(axis=longest[1], keepdims=True)
            columns = b * columns + (1 - b) * square.mean(axis=longest[0], keepdims=True)
            v = rows * columns / rows.mean(axis=longest[0], keepdims=True)
        else:
            v = b * v + (1 - b) * square
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)))
        p = p - rate * (max(1e-3, np.sqrt(np.mean(p**2))) * u + 0.1 * is_weight * p)
    return p


def adam_directions(p, gradients, b1=0.8, b2=0.95, eps=1e-3, nesterov=False):
    m, v = 0 * p, 0 * p
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        mean = m / (1 - b1**t)
        if nesterov:
            mean = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        yield mean / (np.sqrt(v / (1 - b2**t)) + eps)


def adam(p, gradients, rates, is_weight):
    for d, rate in zip(adam_directions(p, gradients), rates, strict=True):
        p = p - rate * d
    return p


def adamw(p, gradients, rates, is_weight):
    for d, rate in zip(adam_directions(p, gradients), rates, strict=True):
        p = p - rate * (d + 0.1 * is_weight * p)
    return p


def nadam(p, gradients, rates, is_weight):
    for d, rate in zip(adam_directions(p, gradients, nesterov=True), rates, strict=True):
        p = p - rate * d
    return p


def adabelief(p, gradients, rates, is_weight):
    m, s = 0 * p, 0 * p
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = 0.8 * m + 0.2 * g
        s = 0.95 * s + 0.05 * (g - m) ** 2 + 1e-3
        direction = m / (1 - 0.8**t) / (np.sqrt(s / (1 - 0.95**t)) + 1e-3)
        p = p - rate * (direction + 0.1 * is_weight * p)
    return p


def lamb(p, gradients, rates, is_weight):
    for d, rate in zip(adam_directions(p, gradients), rates, strict=True):
        d = d + 0.1 * is_weight * p
        p = p - rate * d * (np.linalg.norm(p) / np.linalg.norm(d) if is_weight else 1)
    return p


def schedule_free_adamw(p, gradients, rates, is_weight):
    return schedule_free(p, gradients, rates, is_weight)[0]


def schedule_free(p, gradients, rates, is_weight):
    x, y, z, v, total, peak = p, p, p, 0 * p, 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        v = 0.95 * v + 0.05 * g**2
        z = z - rate * (g / (np.sqrt(v / (1 - 0.95**t)) + 1e-3) + 0.1 * is_weight * y)
        peak = max(peak, rate)
        total += peak**2
        x = (1 - peak**2 / total) * x + peak**2 / total * z
        y = 0.2 * z + 0.8 * x
    return y, x


def newton_schulz(matrix):
    matrix = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.7750 * square + 2.0315 * square @ square) @ matrix
    return matrix


def muon(p, gradients, rates, is_weight):
    if not is_weight:
        return adamw(p, gradients, rates, is_weight)
    m = 0 * p
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = 0.8 * m + 0.2 * g
        ahead = (0.8 * m / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)).reshape(-1, p.shape[-1])
        orthogonal = newton_schulz(ahead) * 0.2 * np.sqrt(max(ahead.shape))
        p = p - rate * (orthogonal.reshape(p.shape) + 0.1 * p)
    return p


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
