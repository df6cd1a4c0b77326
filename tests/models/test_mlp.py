import contextlib
import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from accelnet.errors import UserError
from accelnet.models import MLP


def loss_and_gradients(model, inputs):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        outputs = nnx.merge(graph, params, rest, copy=True)(inputs)
        return jnp.mean(jnp.sin(outputs) ** 2)

    return jax.jit(jax.value_and_grad(loss))(params)


def abstract(model, *inputs):
    """Return shape and type of a module's outputs, for which nothing needs to be compiled."""
    return nnx.eval_shape(lambda model: model(*inputs), model)


def num_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_outputs_equal_the_equation_in_numpy():
    model = MLP(6, [4, 4, 3], 2, activation=jnp.tanh, residual=True, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    weights = [(np.asarray(layer.linear.kernel[...]), np.asarray(layer.linear.bias[...])) for layer in model.layers]
    h = np.tanh(x.reshape(5, 6) @ weights[0][0] + weights[0][1])
    h = np.tanh(h @ weights[1][0] + weights[1][1]) + h  # equally wide: a skip; the other two layers have none
    h = np.tanh(h @ weights[2][0] + weights[2][1])
    expected = h @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(model(jnp.asarray(x)), expected, atol=1e-5)  # float32 sums of six terms


def test_no_hidden_layer_makes_a_linear_model():
    model = MLP(3, [], 2, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 3))
    np.testing.assert_allclose(model(x), x @ model.head.kernel[...] + model.head.bias[...][None, :], rtol=1e-6)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_norm_standardizes_what_the_activation_gets(norm):
    seen = []
    model = MLP(6, [50], 2, activation=lambda x: seen.append(x) or x, norm=norm, rngs=nnx.Rngs(0))
    model(jax.random.normal(jax.random.key(0), (64, 6)) * 3 + 1)
    axis = -1 if norm == "layer" else 0
    np.testing.assert_allclose(seen[0].mean(axis), 0, atol=1e-5)
    np.testing.assert_allclose(seen[0].std(axis), 1, atol=1e-3)  # the norm's epsilon


def test_batch_norm_uses_running_statistics_in_evaluation():
    model = MLP(6, [8], 2, norm="batch", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (16, 6))
    model(x)
    model.eval()
    before = nnx.state(model, nnx.BatchStat)
    np.testing.assert_allclose(model(x)[:4], model(x[:4]), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(before, nnx.state(model, nnx.BatchStat))


def test_dropout_acts_in_training_only():
    model = MLP(6, [64], 2, dropout=0.5, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 6))
    assert not np.array_equal(model(x), model(x))
    model.eval()
    np.testing.assert_array_equal(model(x), model(x))


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_uses(norm):
    shared = MLP(6, [8] * 4, 2, activation=jnp.tanh, norm=norm, residual=True, shared=True, rngs=nnx.Rngs(0))
    twin = MLP(6, [8] * 4, 2, activation=jnp.tanh, norm=norm, residual=True, rngs=nnx.Rngs(1))
    weights = nnx.state(shared, nnx.Param)
    nnx.update(twin, {k: v for k, v in weights.items() if k != "layers"})
    for i, layer in enumerate(twin.layers):
        nnx.update(layer, weights["layers"][min(i, 1)])
    assert num_parameters(shared) < num_parameters(twin)

    x = jax.random.normal(jax.random.key(2), (5, 6))
    value, grads = loss_and_gradients(shared, x)
    twin_value, twin_grads = loss_and_gradients(twin, x)
    np.testing.assert_allclose(value, twin_value, rtol=1e-6)
    expected = jax.tree.map(lambda *leaves: sum(leaves), *[twin_grads["layers"][i] for i in (1, 2, 3)])
    # The two programs sum in different orders, in float32.
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    jax.tree.map(close, grads["layers"][1], expected)
    jax.tree.map(close, grads["layers"][0], twin_grads["layers"][0])
    jax.tree.map(close, grads["head"], twin_grads["head"])


def test_a_shared_layer_has_the_parameters_of_two_layers():
    deep = MLP(6, [8] * 9, 2, shared=True, rngs=nnx.Rngs(0))
    assert num_parameters(deep) == num_parameters(MLP(6, [8, 8], 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_bfloat16_gives_bfloat16(norm):
    model = MLP(6, [8, 8], 2, norm=norm, residual=True, dropout=0.1, rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
    x = jnp.ones((4, 6), jnp.bfloat16)
    assert abstract(model, x).dtype == jnp.bfloat16
    assert {s.dtype for s in jax.tree.leaves(nnx.state(model, nnx.BatchStat))} <= {jnp.dtype(jnp.float32)}
    model.eval()
    assert abstract(model, x).dtype == jnp.bfloat16


def test_rematerialization_can_keep_the_outputs_of_hidden_layers_only():
    model = MLP(6, [7, 9], 2, activation=jnp.tanh, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    policy = jax.checkpoint_policies.save_only_these_names("block")
    run = jax.checkpoint(lambda params, x: jnp.sum(nnx.merge(graph, params)(x)), policy=policy)
    with contextlib.redirect_stdout(io.StringIO()) as text:
        jax.ad_checkpoint.print_saved_residuals(run, params, jnp.ones((4, 6)))
    kept = [line.split()[0] for line in text.getvalue().splitlines() if "from the argument" not in line]
    assert sorted(kept) == ["f32[4,7]", "f32[4,9]"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden_features": [8, 9], "shared": True}, "equal width"),
        ({"hidden_features": [8], "shared": True}, "at least two"),
        ({"hidden_features": [8, 0]}, "at least 1"),
        ({"hidden_features": [8], "dropout": 1.0}, "dropout is 1.0"),
        ({"hidden_features": [8], "norm": "group"}, "norm is 'group'"),
    ],
)
def test_a_mistake_is_told_in_one_message(arguments, words):
    with pytest.raises(UserError, match=words):
        MLP(6, out_features=2, rngs=nnx.Rngs(0), **arguments)
