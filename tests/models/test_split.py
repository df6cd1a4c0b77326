"""Layers of low rank compute the product of their two matrices, and are trained, cut and copied like any other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import accelnet as an
from accelnet import ops
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.recurrent_layer import Recurrence
from accelnet.models.split import split
from accelnet.parallel.mesh import make_mesh


def with_product(layer, rank):
    """Return a split layer, and give the layer the kernel that is the product of its two."""
    new = split(layer, rank, rngs=nnx.Rngs(1))
    down, up = np.asarray(new.down.kernel[...]), np.asarray(new.up.kernel[...])
    if up.shape[:-2] == (1, 3):  # rows of columns
        kernel = np.einsum("hcr,wro->hwco", down[:, 0], up[0])
    else:
        kernel = down @ up.reshape(up.shape[-2:])
    layer.kernel[...] = jnp.asarray(kernel).reshape(layer.kernel.shape)
    if layer.bias is not None:
        layer.bias[...] = jnp.arange(layer.bias.size, dtype=jnp.float32).reshape(layer.bias.shape)
        new.up.bias[...] = layer.bias[...].reshape(-1)
    return new


@pytest.mark.parametrize(
    ("make", "shape", "rank"),
    [
        (lambda rngs: nnx.Linear(6, 4, dot_general=ops.dot_general, rngs=rngs), (2, 5, 6), 2),
        (lambda rngs: nnx.Linear(6, 4, use_bias=False, dtype=jnp.bfloat16, rngs=rngs), (2, 6), 2),
        (lambda rngs: nnx.LinearGeneral(6, (2, 3), rngs=rngs), (2, 5, 6), 2),
        (lambda rngs: nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=rngs), (5, 2, 3), 2),
        (lambda rngs: nnx.Conv(5, 4, (3, 3), 2, conv_general_dilated=ops.conv_general_dilated, rngs=rngs),
         (2, 7, 7, 5), 2),
        (lambda rngs: nnx.Conv(5, 6, (3, 3), (2, 1), padding=((1, 2), (0, 1)), kernel_dilation=(1, 2), rngs=rngs),
         (2, 8, 7, 5), 2),
        (lambda rngs: nnx.Conv(5, 6, (3, 3), padding="CIRCULAR", use_bias=False, rngs=rngs), (2, 5, 6, 5), 2),
        (lambda rngs: nnx.Conv(1, 4, (3, 3), rngs=rngs), (2, 5, 5, 1), 2),
        (lambda rngs: nnx.Conv(3, 4, (3,), padding="CAUSAL", kernel_dilation=2, rngs=rngs), (2, 9, 3), 2),
    ],
    ids=["linear", "bfloat16", "heads", "joined heads", "strided", "padded", "circular", "one channel", "causal"],
)  # fmt: skip
def test_a_split_layer_is_the_layer_whose_kernel_is_the_product(make, shape, rank):
    layer = make(nnx.Rngs(params=0))
    new = with_product(layer, rank)
    inputs = jax.random.normal(jax.random.key(0), shape)
    expected, got = layer(inputs), new(inputs)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=5e-2 if got.dtype == jnp.bfloat16 else 1e-5
    )


@pytest.mark.parametrize("cell", ["lstm", "gru", "min_gru"])
def test_a_recurrent_layer_reads_projected_inputs_and_leaves_padding_alone(cell):
    layer = Recurrence(6, 4, cell=cell, reverse=True, rngs=nnx.Rngs(0))
    new = split(layer, 6, rngs=nnx.Rngs(1))
    for name in ("bias", "recurrent_kernel", "recurrent_bias"):
        if hasattr(layer, name):
            getattr(new.layer, name)[...] = getattr(layer, name)[...]
    new.down.kernel[...] = jnp.eye(6) * 2
    new.layer.input_kernel[...] = layer.input_kernel[...] / 2
    inputs, lengths = jax.random.normal(jax.random.key(0), (3, 5, 6)), jnp.array([5, 2, 3])
    padded = jnp.where(jnp.arange(5)[None, :, None] < lengths[:, None, None], inputs, jnp.nan)
    for given, expected in zip(new(padded, lengths), layer(inputs, lengths), strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-6)
    gradient = nnx.grad(lambda module: module(padded, lengths)[0].sum())(new)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    tokens = jnp.array([[0, 1, 2, 2, 1]])
    for given, expected in zip(new(inputs[0], None, tokens), layer(inputs[0], None, tokens), strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-6)


@pytest.mark.slow  # a run on four devices, and an artifact
def test_a_model_of_low_rank_is_trained_cut_and_made_again(tmp_path):
    def small(rngs):
        return an.models.CNN((8, 8, 1), (8, 8), 3, dense_features=(16,), rngs=rngs)

    rng = np.random.default_rng(0)
    data = an.data.from_arrays(rng.normal(size=(40, 8, 8, 1)), np.arange(40) % 3, num_classes=3)
    model = Compressed(small, Compression(ranks={"stages.1.layers.0.conv": 4, "dense.0": 4}))
    experiment = an.Experiment(
        data=data,
        model=model,
        optimizer=an.optim.adam(1e-2),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=8,
        steps=4,
    )
    run = an.fit(experiment, mesh=make_mesh({"data": 2, "model": 2}, jax.devices()[:4]))
    conv, dense = run.state.params["stages"]["1"]["layers"]["0"]["conv"], run.state.params["dense"]["0"]
    chex.assert_shape(dense["down"]["kernel"], (32, 4))
    chex.assert_shape(conv["up"]["kernel"], (1, 3, 4, 8))
    assert dense["down"]["kernel"].sharding.spec == PartitionSpec(None, "model")
    assert conv["up"]["kernel"].sharding.spec == PartitionSpec(None, None, "model")
    run.save(tmp_path / "model.accelnet")
    loaded = an.load(tmp_path / "model.accelnet")
    inputs = data.arrays["inputs"][:5]
    np.testing.assert_allclose(loaded.predict(inputs).values["outputs"], run.predict(inputs), atol=1e-5)


def test_layers_that_cannot_be_split_are_refused():
    model = lambda rngs: an.models.MLP(4, (8,), 2, norm="layer", rngs=rngs)  # noqa: E731
    for path, message in (("layers.0.norm.layer", "LayerNorm cannot be split"), ("layers.1.linear", "no layer")):
        with pytest.raises(an.UserError, match=message):
            Compressed(model, Compression(ranks={path: 2}))(rngs=nnx.Rngs(0))
    grouped = nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0))
    with pytest.raises(an.UserError, match="one group"):
        split(grouped, 2, rngs=nnx.Rngs(0))
