import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import accelnet as an
from accelnet.models.adapter import adapt

INPUTS = jax.random.normal(jax.random.key(9), (6, 4))


class Everything(nnx.Module):
    """Statistics, noise in two layers, a shared layer, a list, a recurrent cell and a variable of its own."""

    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)])
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.again = self.layers[1]
        self.recurrent = nnx.RNN(nnx.LSTMCell(5, 5, rngs=rngs), rngs=rngs)
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, inputs):
        if not self.drop.deterministic:
            self.calls[...] += 1
        x = self.again(self.layers[1](self.layers[0](inputs)))
        return self.recurrent(self.drop(self.norm(x))[:, None, :])[:, -1]


class LinenNet(linen.Module):
    """A residual block with statistics and noise, as in many Linen ResNets."""

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Dense(8)(x)
        y = linen.relu(linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x)))
        return linen.Dense(3)(x + linen.Dropout(0.5, deterministic=not train)(y))


@pytest.mark.parametrize("model", [Everything, LinenNet()], ids=["nnx", "linen"])
def test_init_gives_plain_dicts_with_string_keys(model):
    def check(tree):
        if isinstance(tree, dict):
            assert all(isinstance(key, str) for key in tree) and type(tree) is dict
            for value in tree.values():
                check(value)
        else:
            assert isinstance(tree, jax.Array)
            assert not jnp.issubdtype(tree.dtype, jax.dtypes.prng_key)

    for tree in adapt(model).init(jax.random.key(0), INPUTS):
        check(tree)


@pytest.mark.parametrize("model", [Everything, LinenNet()], ids=["nnx", "linen"])
def test_training_moves_statistics_and_draws_noise_and_evaluation_does_neither(model):
    pure = adapt(model)
    params, before = pure.init(jax.random.key(0), INPUTS)
    apply = jax.jit(pure.apply, static_argnames="train")
    one, after = apply(params, before, INPUTS, key=jax.random.key(1), train=True)
    two, _ = apply(params, before, INPUTS, key=jax.random.key(2), train=True)
    again, _ = apply(params, before, INPUTS, key=jax.random.key(1), train=True)
    assert jnp.array_equal(one, again) and not jnp.array_equal(one, two)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert not all(map(jnp.array_equal, jax.tree.leaves(before), jax.tree.leaves(after)))
    quiet, unmoved = apply(params, before, INPUTS, key=jax.random.key(1), train=False)
    other, _ = apply(params, before, INPUTS, key=jax.random.key(2), train=False)
    assert jnp.array_equal(quiet, other)
    assert all(map(jnp.array_equal, jax.tree.leaves(before), jax.tree.leaves(unmoved)))


@pytest.mark.parametrize("model", [Everything, LinenNet()], ids=["nnx", "linen"])
def test_the_live_module_computes_what_apply_computes(model):
    pure = adapt(model)
    params, state = pure.init(jax.random.key(0), INPUTS)
    expected, _ = pure.apply(params, state, INPUTS, key=jax.random.key(0), train=False)
    live = pure.module(params, state)
    outputs = live(INPUTS) if isinstance(live, nnx.Module) else live(INPUTS, train=False)
    np.testing.assert_array_equal(outputs, expected)


def test_two_dropouts_of_one_module_draw_different_masks():
    class Two(nnx.Module):
        def __init__(self, *, rngs):
            self.a, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.a(x), self.b(x)

    pure = adapt(Two)
    (a, b), _ = pure.apply({}, {}, jnp.ones((100,)), key=jax.random.key(0), train=True)
    assert not jnp.array_equal(a, b)


def test_a_shared_layer_is_one_set_of_parameters_with_summed_gradients():
    class Twice(nnx.Module):
        def __init__(self, *, rngs):
            self.a = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
            self.b = self.a

        def __call__(self, x):
            return self.b(self.a(x))

    pure = adapt(Twice)
    params, state = pure.init(jax.random.key(0), INPUTS)
    assert len(jax.tree.leaves(params)) == 1
    grads = jax.grad(lambda p: pure.apply(p, state, INPUTS, key=jax.random.key(0), train=True)[0].sum())(params)
    (w,) = jax.tree.leaves(params)
    first, second = jax.grad(lambda a, b: (INPUTS @ a @ b).sum(), argnums=(0, 1))(w, w)
    np.testing.assert_allclose(jax.tree.leaves(grads)[0], first + second, rtol=1e-5)


def test_training_starts_from_the_weights_of_a_given_module():
    module = nnx.Linear(4, 3, rngs=nnx.Rngs(5))
    params, _ = adapt(module).init(jax.random.key(0), INPUTS)
    np.testing.assert_array_equal(params["kernel"], module.kernel[...])


def test_inputs_in_a_dict_are_keyword_arguments():
    class Sum(nnx.Module):
        def __init__(self, *, rngs):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, left, right):
            return self.scale * (left - right)

    params, state = adapt(Sum).init(jax.random.key(0), None)
    inputs = {"right": jnp.ones(3), "left": jnp.full(3, 5.0)}
    outputs, _ = adapt(Sum).apply(params, state, inputs, key=jax.random.key(0), train=False)
    np.testing.assert_array_equal(outputs, [4.0, 4.0, 4.0])


def test_a_model_that_is_none_is_refused_with_what_was_expected():
    with pytest.raises(an.UserError, match="of type int, expected a callable that takes rngs="):
        adapt(3)
    with pytest.raises(an.UserError, match=r"returned float32\[3\], expected an nnx.Module"):
        adapt(lambda rngs: jnp.ones(3))
