"""Batch normalization in few passes against Flax's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.models.adapter import adapt
from accelnet.models.normalization import BatchNorm


def made(kind, x, **settings):
    layer = kind(x.shape[-1], momentum=0.9, rngs=nnx.Rngs(0), **settings)
    rng = np.random.default_rng(1)
    for name in ("scale", "bias"):
        if getattr(layer, name) is not None:
            getattr(layer, name)[...] = jnp.asarray(rng.standard_normal(x.shape[-1]), jnp.float32)
    return layer


def results(kind, x, **settings):
    """Outputs, the gradients of input and parameters, and the variables after a training step and after evaluation."""
    graph, params, rest = nnx.split(made(kind, x, **settings), nnx.Param, ...)

    def loss(params, x):
        layer = nnx.merge(graph, params, rest, copy=True)
        out = layer(x, use_running_average=False)
        evaluated = layer(x, use_running_average=True)
        return jnp.sum(jnp.sin(out)), (out, evaluated, nnx.state(layer, nnx.BatchStat))

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)


@pytest.mark.parametrize("settings", [{}, {"use_scale": False}, {"use_bias": False}])
@pytest.mark.parametrize("shape", [(40, 6), (3, 5, 4, 7)])
def test_values_gradients_and_statistics_are_flaxs(shape, settings):
    x = 2.0 + 3 * jax.random.normal(jax.random.key(0), shape)
    actual, expected = results(BatchNorm, x, **settings), results(nnx.BatchNorm, x, **settings)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-5 * float(np.abs(e).max()), rtol=0)


def test_a_constant_channel_gives_the_bias_and_no_nan():
    x = jnp.full((8, 3), 5.0)
    (gradients, (out, *_)) = results(BatchNorm, x)
    np.testing.assert_allclose(out, jnp.broadcast_to(made(BatchNorm, x).bias[...], out.shape), atol=1e-2)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_statistics_of_bfloat16_are_those_of_float32():
    x = jax.random.normal(jax.random.key(0), (64, 4)).astype(jnp.bfloat16)
    layer = made(BatchNorm, x)
    layer(x, use_running_average=False)
    np.testing.assert_allclose(layer.mean[...], 0.1 * x.astype(jnp.float32).mean(0), rtol=1e-5)


def test_padding_is_left_out_of_batch_statistics():
    pure = adapt(lambda rngs: an.models.CNN((4, 4, 1), (3,), 2, norm="batch", rngs=rngs))
    images = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
    padded = jnp.concatenate([images, jnp.full((3, 4, 4, 1), 50.0)])
    params, state = pure.init(jax.random.key(1), images)
    settings = {"key": jax.random.key(2), "train": True}
    apply = jax.jit(lambda inputs, mask=None: pure.apply(params, state, inputs, mask=mask, **settings))
    outputs, after = apply(images)
    with_mask, masked = apply(padded, jnp.arange(9) < 6)
    np.testing.assert_allclose(with_mask[:6], outputs, rtol=1e-5, atol=1e-6)  # sums of another length
    chex.assert_trees_all_close(masked, after, rtol=1e-5, atol=1e-6)
    _, seen = apply(padded)
    assert not np.allclose(jax.tree.leaves(seen)[0], jax.tree.leaves(after)[0])


def test_statistics_without_padding_are_the_same_on_any_number_of_devices():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(24, 4, 4, 1)).astype(np.float32), np.arange(24) % 2
    data = an.data.Data("toy", {"inputs": inputs, "targets": targets.astype(np.int32)}, {"train": range(24)})
    experiment = an.Experiment(
        data=data,
        model=lambda rngs: an.models.CNN((4, 4, 1), (3,), 2, norm="batch", rngs=rngs),
        optimizer=an.optim.sgd(0.1),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=16,  # the second batch is half padding: whole parts of it
        steps=4,
    )
    one, eight = (an.fit(experiment, mesh=mesh, progress=False) for mesh in (None, "data=8"))
    chex.assert_trees_all_close(one.params, eight.params, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.model_state, eight.model_state
    )
