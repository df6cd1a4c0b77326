"""Layers of Linen modules have twins in nnx that compute the same, and what is made of these takes their places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import accelnet as an
from accelnet.models.adapter import adapt
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.summary import summary

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6)).astype(np.int32)
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


class Images(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.Conv(8, (3, 3), strides=2, padding=((1, 2), (0, 1)), kernel_dilation=(1, 2))(x)
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
        x = linen.Conv(8, (3, 3), feature_group_count=2, use_bias=False)(x)
        x = x.reshape(len(x), -1, 8)
        x = linen.MultiHeadDotProductAttention(2)(x)
        return linen.DenseGeneral(4, axis=(1, 2))(x)


class Tokens(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        table = linen.Embed(11, 6)
        x = linen.RNN(linen.GRUCell(6))(table(tokens))
        shared = linen.Dense(6, dtype=jnp.bfloat16)
        for _ in range(2):
            x = shared(x)
        stack = linen.scan(_Residual, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
        x, _ = stack(x.astype(jnp.float32), None)
        return table.attend(x)


class _Residual(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + linen.Dense(6)(x), None


LAYERS = {
    Images: {"Conv_0", "Conv_1", "DenseGeneral_0"}
    | {f"MultiHeadDotProductAttention_0.{name}" for name in ("query", "key", "value", "out")},
    # Those of the scan are three in one array.
    Tokens: {"Embed_0", "Dense_0"} | {f"GRUCell_0.{name}" for name in ("ir", "iz", "in", "hr", "hz", "hn")},
}


def outputs(pure, params, state, inputs, **settings):
    return pure.apply(params, state, inputs, key=jax.random.key(0), train=False, **settings)[0]


@pytest.mark.parametrize(("kind", "inputs"), [(Images, IMAGES), (Tokens, TOKENS)])
def test_twins_in_the_places_of_layers_change_nothing(kind, inputs):
    pure = adapt(kind())
    params, state = pure.init(jax.random.key(0), inputs)
    assert set(pure.layers(params, state, inputs)) == LAYERS[kind]
    called = []

    def same(path):
        return path, lambda layer, _: called.append(path) or layer

    twins = pure.changed([same(path) for path in LAYERS[kind]])
    assert jax.tree.map(jnp.shape, twins.init(jax.random.key(1), inputs)) == jax.tree.map(jnp.shape, (params, state))
    assert set(called) == LAYERS[kind]
    for dtype in (None, jnp.bfloat16) if kind is Images else (None,):  # a loop's state keeps its own
        expected, got = (outputs(one, params, state, inputs, dtype=dtype) for one in (pure, twins))
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(expected, np.float32))


def test_layers_of_low_rank_and_few_bits_are_called_in_a_loop_too():
    pure = adapt(Tokens())
    _, state = pure.init(jax.random.key(0), TOKENS)
    assert state == {}
    bits = {"GRUCell_0.hn.down": 8, "GRUCell_0.hn.up": 4, "Embed_0": 8, "GRUCell_0.in": 4}
    small = adapt(Compressed(Tokens(), Compression(ranks={"GRUCell_0.hn": 2}, bits=bits)))
    params, state = small.init(jax.random.key(0), TOKENS)
    assert state["params"]["GRUCell_0"]["hn"]["down"]["kernel"].dtype == jnp.int8
    assert set(params["GRUCell_0"]["hn"]["up"]) == {"bias"} and "down" not in params["GRUCell_0"]["hn"]
    layers = small.layers(params, state, TOKENS)
    assert layers["GRUCell_0.hn"].rank == 2 and layers["GRUCell_0.hn.down"].bits == 8
    result, after = small.apply(params, state, TOKENS, key=jax.random.key(0), train=True)
    assert result.shape == (2, 6, 11) and np.isfinite(result).all()
    jax.tree.map(np.testing.assert_array_equal, after, state)
    rows = {line.split()[0]: line for line in str(summary(small, TOKENS)).splitlines() if line.strip()}
    assert "GRUCell_0.hn" in rows and "Embed_0" in rows


def test_a_layer_that_is_none_is_named_with_those_that_are():
    for path, module in (("Dense_3", Images()), ("BatchNorm_0", Images()), ("kernel", linen.LayerNorm())):
        pure = adapt(Compressed(module, Compression(ranks={path: 2})))
        with pytest.raises(an.UserError, match=f"no layer {path} that can be replaced"):
            pure.init(jax.random.key(0), IMAGES)
    pure = adapt(Compressed(Images(), Compression(ranks={"Conv_1": 2})))
    with pytest.raises(an.UserError, match="one group"):
        pure.init(jax.random.key(0), IMAGES)


def test_a_module_with_other_layers_is_not_bound():
    pure = adapt(Compressed(Images(), Compression(ranks={"Conv_0": 2})))
    with pytest.raises(an.UserError, match=r"run\.predict"):
        pure.module(*pure.init(jax.random.key(0), IMAGES))
