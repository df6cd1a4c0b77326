"""Pruned networks compute what they did before, as far as the units that are left can."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.compressing.activations import Moments
from accelnet.compressing.elimination import prune
from accelnet.compressing.units import Consumer, kept_units
from tests.compressing.modules import IMAGES, STEPS, experiment


def outputs(made, params, state, inputs):
    return made.pure_model.apply(params, state, jnp.asarray(inputs), key=jax.random.key(0), train=False)[0]


def consumer(x, weights, each):
    second = np.block([[x.T @ x, x.sum(0)[:, None]], [x.sum(0)[None], np.full((1, 1), len(x))]]) / len(x)
    unit = np.append(np.repeat(np.arange(x.shape[1] // each), each), -1)
    moments = Moments("kernel", (0,), np.arange(weights.size)[None], x.T @ x, x.sum(0), np.full(1, len(x)), 1.0)
    return Consumer(moments, 0, unit, second, np.vstack([weights, np.zeros((1, weights.shape[1]))]))


@pytest.mark.parametrize("each", [1, 3])
def test_the_unit_that_goes_is_that_which_least_squares_can_miss(each):
    rng = np.random.default_rng(each)
    x = rng.normal(size=(400, 6 * each)) @ rng.normal(size=(6 * each, 6 * each)) + 1
    weights = rng.normal(size=(6 * each, 4))
    one = consumer(x, weights, each)
    units = np.repeat(np.arange(6), each)
    errors, fits = {}, {}
    for keep in itertools.combinations(range(6), 5):
        inputs = np.column_stack([x[:, np.isin(units, keep)], np.ones(len(x))])
        fits[keep] = np.linalg.lstsq(inputs, x @ weights, rcond=None)[0]
        errors[keep] = np.square(inputs @ fits[keep] - x @ weights).sum()
    best = min(errors, key=errors.get)
    assert tuple(kept_units("elimination", 5, [one], np.ones(6))) == best
    new = one.refitted(np.array(best))
    inputs = np.column_stack([x, np.ones(len(x))])
    # The refit stays a little nearer to the weights than least squares does.
    assert np.square(inputs @ new - x @ weights).sum() < 1.1 * errors[best]
    assert not new[:-1][~np.isin(units, best)].any()


def doubled(layer, gates=1, larger=1.0):
    """Make every second unit of a layer say what the one before it says, as many times as loud."""
    for name, leaf in layer.items():
        units = leaf.reshape(*leaf.shape[:-1], gates, -1, 2)[..., :1]
        layer[name] = jnp.concatenate([units, larger * units], -1).reshape(leaf.shape)


@pytest.mark.parametrize("kind", ["dense", "convolution", "lstm"])
def test_units_that_say_the_same_as_others_go_without_loss(kind):
    if kind == "lstm":
        made, inputs = experiment(lambda rngs: an.models.RNN(3, 8, 3, rngs=rngs), STEPS), STEPS
        widths = {"hidden_features": 4}
    elif kind == "dense":
        inputs = IMAGES.reshape(64, -1)
        made, widths = experiment(lambda rngs: an.models.MLP(128, (8,), 3, rngs=rngs), inputs), {"hidden_features.0": 4}
    else:
        inputs = IMAGES
        shape = {"head": "average", "dense_features": (), "norm": None}
        made = experiment(lambda rngs: an.models.CNN((8, 8, 2), (8, 5), 3, **shape, rngs=rngs), inputs)
        widths = {"channels.0": 4}
    params, state = made.pure_model.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    if kind == "lstm":
        doubled(params["layers"]["0"]["forward"], gates=4)
    elif kind == "dense":
        doubled(params["layers"]["0"]["linear"], larger=2.0)
    else:
        doubled(params["stages"]["0"]["layers"]["0"]["conv"], larger=2.0)
    before = outputs(made, params, state, inputs)
    worst = {}
    for refit in (True, False):
        small, *weights = prune(made, params, state, widths, refit=refit)
        worst[refit] = float(jnp.abs(outputs(small, *weights, inputs) - before).max() / jnp.abs(before).max())
    # The refit stays near the weights, by a thousandth of the inputs' size.
    assert worst[True] < 0.05 < 0.1 < worst[False]


class Normalized(nnx.Module):
    def __init__(self, width=8, *, rngs):
        self.first, self.norm = nnx.Linear(128, width, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.first(x.reshape(len(x), -1)))))


def test_batch_statistics_are_those_of_the_pruned_network():
    made = experiment(Normalized, IMAGES.reshape(64, -1), batch_size=52)
    params, state = made.pure_model.init(jax.random.key(0))
    params["first"]["bias"] = jnp.arange(8.0)
    _, new, new_state = prune(made, params, state, {"width": 4}, refit=False)
    rows = made.data.splits["train"]
    assert len(rows) == 52  # one batch
    train = made.data.prepare(made.data.take(np.arange(rows.start, rows.stop)))["inputs"]
    hidden = np.asarray(train) @ np.asarray(new["first"]["kernel"]) + np.asarray(new["first"]["bias"])
    chex.assert_shape(hidden, (52, 4))
    np.testing.assert_allclose(new_state["norm"]["mean"], hidden.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(new_state["norm"]["var"], hidden.var(0), rtol=1e-4)  # E[x^2] - E[x]^2 in float32


def test_a_pruned_model_is_pruned_further_and_trains_on():
    made = experiment(lambda rngs: an.models.MLP(128, (8, 8), 3, rngs=rngs), IMAGES.reshape(64, -1))
    once = prune(made, *made.pure_model.init(jax.random.key(0)), {"hidden_features.0": 6})
    twice, params, _ = prune(*once, {"hidden_features.0": 4, "hidden_features.1": 4})
    assert twice.model.compression.widths == {"hidden_features.0": 4, "hidden_features.1": 4}
    run = an.fit(twice.replace(initial=params), progress=False)
    assert run.step == 4 and run.params["head"]["kernel"].shape == (4, 3)
