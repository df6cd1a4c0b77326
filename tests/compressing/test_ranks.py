"""Ranks: the least error there is for what they save, from one budget over all layers."""

import itertools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from flax.traverse_util import flatten_dict, unflatten_dict

import accelnet as an
from accelnet.compressing.batch_statistics import with_batch_statistics
from accelnet.compressing.ranks import factorize, spectra
from accelnet.compressing.spectrum import Spectrum, choose_ranks

ROWS = 64


def experiment_of(model, inputs):
    arrays = {"inputs": inputs, "targets": np.arange(ROWS) % 3}
    return an.Experiment(
        data=an.data.Data("toy", arrays, {"train": range(ROWS)}),
        model=model,
        optimizer=an.optim.adam(1e-2),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=16,
        steps=3,
    )


def outputs_of(experiment, params, state):
    inputs = jnp.asarray(experiment.data.arrays["inputs"])
    return np.asarray(experiment.pure_model.apply(params, state, inputs, key=jax.random.key(0), train=False)[0])


def test_a_layer_loses_the_share_of_its_outputs_variance_that_was_said():
    rng = np.random.default_rng(0)
    inputs = rng.normal(1.0, size=(ROWS, 12)).astype(np.float32) @ rng.normal(size=(12, 12)).astype(np.float32)
    experiment = experiment_of(lambda rngs: an.models.MLP(12, (10,), 3, rngs=rngs), inputs)
    params, state = experiment.pure_model.init(jax.random.key(0))
    found = spectra(experiment, params, state)
    one = found["layers.0.linear"]
    kernel = np.asarray(params["layers"]["0"]["linear"]["kernel"], np.float64)
    for rank in (1, 3, 5):
        smaller, new, _ = factorize(experiment, params, state, {"layers.0.linear": rank}, found=found)
        part = jax.tree.map(np.asarray, new["layers"]["0"]["linear"])
        lost = inputs @ kernel - (inputs @ part["down"]["kernel"] @ part["up"]["kernel"] + part["up"]["bias"])
        share = (lost**2).sum() / ((inputs @ kernel - (inputs @ kernel).mean(0)) ** 2).sum()
        np.testing.assert_allclose(share, one.error(rank), rtol=1e-3)
        # No better than any other of this rank, the plain decomposition with the best bias among them.
        left, middle, right = np.linalg.svd(kernel, full_matrices=False)
        plain = inputs @ (kernel - (left[:, :rank] * middle[:rank]) @ right[:rank])
        assert (lost**2).sum() < ((plain - plain.mean(0)) ** 2).sum()
        assert smaller.model.compression.ranks == {"layers.0.linear": rank}


def test_columns_and_rows_lose_what_was_said_and_less_than_without_the_inputs():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 6, 6, 4)).cumsum(1).cumsum(2).astype(np.float32)
    make = lambda rngs: an.models.CNN((6, 6, 4), (8,), 3, pooling=None, dense_features=(), rngs=rngs)  # noqa: E731
    experiment = experiment_of(make, inputs)
    params, state = experiment.pure_model.init(jax.random.key(0))
    path = "stages.0.layers.0.conv"
    one = spectra(experiment, params, state)[path]
    module = experiment.pure_model.module(params, state).stages[0].layers[0].conv
    smaller, *weights = factorize(experiment, params, state, {path: 3}, found={path: one})
    split = smaller.pure_model.module(*weights).stages[0].layers[0].conv
    chex.assert_shape(split.down.kernel, (3, 1, 4, 3))
    whole, got = (np.asarray(layer(jnp.asarray(inputs)), np.float64).reshape(-1, 8) for layer in (module, split))
    variance = ((whole - whole.mean(0)) ** 2).sum()
    np.testing.assert_allclose(((whole - got) ** 2).sum() / variance, one.error(3), rtol=1e-3)
    kernel = np.asarray(module.kernel[...]).transpose(0, 2, 1, 3).reshape(12, 24)
    left, middle, right = np.linalg.svd(kernel, full_matrices=False)
    plain = ((left[:, :3] * middle[:3]) @ right[:3]).reshape(3, 4, 3, 8).transpose(0, 2, 1, 3)
    module.kernel[...] = jnp.asarray(plain, jnp.float32)
    other = np.asarray(module(jnp.asarray(inputs)), np.float64).reshape(-1, 8)
    lost = whole - other
    assert ((whole - got) ** 2).sum() < 0.9 * ((lost - lost.mean(0)) ** 2).sum()


MODELS = {
    "images": lambda rngs: an.models.CNN((6, 6, 2), (6, 8), 3, norm="batch", dense_features=(9,), rngs=rngs),
    "sequences": lambda rngs: an.models.RNN(12, 6, 3, num_layers=2, bidirectional=True, cell="gru", rngs=rngs),
}


LAYERS = {
    "images": {"stages.0.layers.0.conv", "stages.1.layers.0.conv", "dense.0", "output"},
    "sequences": {
        f"layers.{i}.{way}{kernel}"
        for i in (0, 1)
        for way in ("forward", "backward")
        for kernel in ("", ".recurrent_kernel")
    }
    | {"output_layer"},
}


@pytest.mark.slow  # each kind compiles the moments, two forward passes, the statistics and a run
@pytest.mark.parametrize("kind", MODELS)
def test_layers_that_have_a_low_rank_stay_what_they_are_and_can_be_trained(kind):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 6, 6, 2)).astype(np.float32)  # a sequence of 6 steps of 12 numbers, too
    experiment = experiment_of(MODELS[kind], inputs)
    params, state = experiment.pure_model.init(jax.random.key(0))
    flat, ranks = flatten_dict(params), {}
    for path in LAYERS[kind]:
        *layer, last = path.split(".")
        names = [(*layer, last), *((*layer, last, one) for one in ("kernel", "input_kernel"))]
        name = next(one for one in names if one in flat)
        kernel = np.asarray(flat[name])
        if path == "stages.1.layers.0.conv":  # columns, then rows
            ranks[path] = rank = 3
            down, up = rng.normal(size=(3, 6, rank)), rng.normal(size=(3, rank, 8))
            flat[name] = jnp.asarray(np.einsum("hcr,wro->hwco", down, up), jnp.float32)
            continue
        left, middle, right = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), full_matrices=False)
        features, outputs = len(left), right.shape[1]
        ranks[path] = rank = max(1, (features * outputs - 1) // (features + outputs) // 2)
        flat[name] = jnp.asarray((left[:, :rank] * middle[:rank]) @ right[:rank]).reshape(kernel.shape)
    params = unflatten_dict(flat)
    state = with_batch_statistics(experiment, params, state)  # as trained ones are: those of these weights
    found = spectra(experiment, params, state)
    assert set(found) == LAYERS[kind]
    assert all(found[path].error(rank) < 1e-6 for path, rank in ranks.items())
    smaller, *weights = factorize(experiment, params, state, ranks, found=found)
    # Kernels of float32, one product after the other.
    np.testing.assert_allclose(outputs_of(smaller, *weights), outputs_of(experiment, params, state), atol=1e-4)
    run = an.fit(smaller.replace(initial=weights[0]))
    assert np.isfinite(run.metrics["train"]["loss"])
    assert jax.tree.map(jnp.shape, run.params) == jax.tree.map(jnp.shape, weights[0])


@pytest.mark.slow  # each cell compiles the moments, two forward passes and a run
@pytest.mark.parametrize("cell", ["lstm", "gru", "simple"])
def test_recurrent_kernels_have_ranks_of_their_own_beside_those_of_the_input_kernels(cell):
    rng = np.random.default_rng(0)
    make = lambda rngs: an.models.RNN(12, 16, 3, cell=cell, bidirectional=True, rngs=rngs)  # noqa: E731
    experiment = experiment_of(make, rng.normal(size=(ROWS, 5, 12)).astype(np.float32))
    params, state = experiment.pure_model.init(jax.random.key(0))
    flat, rank = flatten_dict(params), 2
    for path, leaf in flat.items():  # of states that lie in two directions the kernel loses nothing
        if path[-1] == "recurrent_kernel":
            left, middle, right = np.linalg.svd(np.asarray(leaf), full_matrices=False)
            flat[path] = jnp.asarray((left[:, :rank] * middle[:rank]) @ right[:rank])
        elif path[-1].endswith("bias"):
            flat[path] = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    params = unflatten_dict(flat)
    found = spectra(experiment, params, state)
    forward, backward = (f"layers.0.{way}" for way in ("forward", "backward"))
    ranks = {forward: 4, f"{forward}.recurrent_kernel": rank, f"{backward}.recurrent_kernel": rank}
    assert {*ranks, backward} <= set(found)
    assert all(found[path].error(rank) < 1e-6 for path in ranks if path != forward)
    smaller, *weights = factorize(experiment, params, state, ranks, found=found)
    layer = weights[0]["layers"]["0"]
    chex.assert_shape([layer["forward"]["layer"]["recurrent_down"], layer["backward"]["recurrent_down"]], (16, rank))
    alone = factorize(experiment, params, state, {forward: 4}, found=found)
    # Kernels of float32, one product after the other.
    np.testing.assert_allclose(outputs_of(smaller, *weights), outputs_of(alone[0], *alone[1:]), atol=1e-4)
    run = an.fit(smaller.replace(initial=weights[0]))
    assert np.isfinite(run.metrics["train"]["loss"])
    assert jax.tree.map(jnp.shape, run.params) == jax.tree.map(jnp.shape, weights[0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_a_recurrent_kernel_loses_of_its_mean_is_added_to_the_biases(cell):
    rng = np.random.default_rng(0)
    make = lambda rngs: an.models.RNN(3, 6, 3, cell=cell, rngs=rngs)  # noqa: E731
    experiment = experiment_of(make, rng.normal(size=(ROWS, 1, 3)).astype(np.float32))
    params, state = experiment.pure_model.init(jax.random.key(0))
    found = spectra(experiment, params, state)
    path = "layers.0.forward.recurrent_kernel"
    found[path] = replace(found[path], mean=np.ones(6))
    _, new, _ = factorize(experiment, params, state, {path: 1}, found=found)
    old, new = (tree["layers"]["0"]["forward"] for tree in (params, new))
    lost = np.ones(6) @ (np.asarray(old["recurrent_kernel"]) - np.asarray(new["recurrent_down"] @ new["recurrent_up"]))
    gained = np.array(new["bias"] - old["bias"])
    if cell == "gru":  # the last third acts behind the reset gate
        gained[12:] += np.asarray(new["recurrent_bias"] - old["recurrent_bias"])
        np.testing.assert_array_equal(new["bias"][12:], old["bias"][12:])
    np.testing.assert_allclose(gained, lost, atol=1e-5)  # biases of float32


def test_one_budget_is_spent_where_it_costs_least():
    rng = np.random.default_rng(0)
    found = {}
    for path, decay, per_example, weight in (("a", 0.5, 1.0, 1.0), ("b", 0.8, 4.0, 1.0), ("c", 0.5, 1.0, 50.0)):
        second = np.diag(decay ** np.arange(12))
        found[path] = Spectrum(path, "kernel", np.eye(12), np.zeros(12), second, per_example, 4, weight)

    def totals(ranks):
        return (
            sum(found[path].saving(rank, "flops") for path, rank in ranks.items()),
            sum(found[path].weight * found[path].error(rank) for path, rank in ranks.items()),
        )

    every = [dict(zip(found, ranks, strict=True)) for ranks in itertools.product(range(6), repeat=3)]
    every = [totals({path: rank for path, rank in ranks.items() if rank}) for ranks in every]
    most = max(saving for saving, _ in every)
    for saving in rng.uniform(0, most, 20):
        ranks = choose_ranks(found, saving)
        got, error = totals(ranks)
        best = min(error for other, error in every if other >= saving)
        assert got >= saving
        # On the convex hull the choice is the best one; between two of its corners it may be the next one.
        beyond = min(error for other, error in every if other >= min(most, saving + 0.25 * most))
        assert error <= max(beyond, best) + 1e-9
    assert choose_ranks(found, most * 1.01) is None


def test_what_cannot_have_a_lower_rank_is_refused():
    inputs = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    experiment = experiment_of(lambda rngs: an.models.MLP(8, (6,), 3, rngs=rngs), inputs)
    params, state = experiment.pure_model.init(jax.random.key(0))
    for ranks in ({"layers.0.linear": 4}, {"layers.1.linear": 1}):  # 8 x 6 numbers are fewer than 4 x 14
        with pytest.raises(an.UserError, match=r"layers\.0\.linear \(1 to 3\)"):
            factorize(experiment, params, state, ranks)


class Convolutional(linen.Module):
    filters: int = 8

    @linen.compact
    def __call__(self, x, train):
        x = linen.Conv(self.filters, (3, 3))(x)
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(x)).reshape(len(x), -1, 8)
        x = x + linen.MultiHeadDotProductAttention(2)(x)
        return linen.Dense(3)(linen.Dense(24)(x).mean(1))


@pytest.mark.slow  # the moments, two forward passes, the statistics and a run
def test_layers_of_a_linen_module_have_low_ranks():
    inputs = np.random.default_rng(0).normal(size=(ROWS, 6, 6, 2)).astype(np.float32)
    experiment = experiment_of(Convolutional(), inputs)
    params, state = experiment.pure_model.init(jax.random.key(0), inputs[:1])
    state = with_batch_statistics(experiment, params, state)
    ranks = {"Dense_1": 3, "MultiHeadDotProductAttention_0.query": 2, "MultiHeadDotProductAttention_0.out": 2}
    flat = flatten_dict(params)
    for path, rank in ranks.items():
        name = (*path.split("."), "kernel")
        outs = 8 if path.endswith("query") else flat[name].shape[-1]
        left, middle, right = np.linalg.svd(np.asarray(flat[name]).reshape(-1, outs), full_matrices=False)
        flat[name] = jnp.asarray((left[:, :rank] * middle[:rank]) @ right[:rank]).reshape(flat[name].shape)
    params = unflatten_dict(flat)
    found = spectra(experiment, params, state)
    assert {*ranks, "Conv_0"} <= set(found) and all(found[path].error(rank) < 1e-6 for path, rank in ranks.items())
    smaller, *weights = factorize(experiment, params, state, ranks, found=found)
    # Kernels of float32, one product after the other.
    np.testing.assert_allclose(outputs_of(smaller, *weights), outputs_of(experiment, params, state), atol=1e-4)
    run = an.fit(smaller.replace(initial=weights[0]))
    assert np.isfinite(run.metrics["train"]["loss"])
    assert jax.tree.map(jnp.shape, run.params) == jax.tree.map(jnp.shape, weights[0])
