import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from accelnet.errors import UserError
from accelnet.models import Transformer


def build(**options):
    return Transformer(3, 8, 5, **{"num_steps": 6, "num_heads": 2, "rngs": nnx.Rngs(0), **options})


@nnx.jit
def call(model, inputs, lengths=None):
    """Return a module's outputs, from one program: op by op, each is dozens of small ones."""
    return model(inputs, lengths)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def normalized(x, layer):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)
    return x * np.asarray(layer.scale[...], float) + np.asarray(layer.bias[...], float)


def dense(x, layer):
    return x @ np.asarray(layer.kernel[...], float) + np.asarray(layer.bias[...], float)


def attention(x, layer):
    """Attend within one sequence, [steps, features], a head at a time."""
    heads = []
    for head in range(layer.num_heads):
        query, key, value = (
            x @ np.asarray(one.kernel[...], float)[:, head] + np.asarray(one.bias[...], float)[head]
            for one in (layer.query, layer.key, layer.value)
        )
        scores = np.exp(query @ key.T / np.sqrt(query.shape[-1]))
        heads.append(
            scores / scores.sum(axis=-1, keepdims=True) @ value @ np.asarray(layer.out.kernel[...], float)[head]
        )
    return sum(heads) + np.asarray(layer.out.bias[...], float)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_it_is_the_published_encoder():
    model, inputs = build(), draw(4, 6, 3)
    outputs = []
    for row in inputs.astype(float):
        x = dense(row, model.input) + np.asarray(model.positions.embedding[...], float)
        for block in model.blocks:
            x = x + attention(normalized(x, block.norms[0].layer), block.attention)
            x = x + dense(gelu(dense(normalized(x, block.norms[1].layer), block.wide)), block.narrow)
        outputs.append(dense(normalized(x, model.norm.layer).mean(axis=0), model.output))
    np.testing.assert_allclose(call(model, inputs), outputs, rtol=1e-5, atol=1e-5)  # float32 against float64


def test_padding_and_the_other_sequences_of_a_batch_change_nothing():
    model, inputs, lengths = build(), draw(4, 6, 3), np.array([6, 1, 3, 4])
    whole = call(model, inputs, lengths)
    for row, length, output in zip(inputs, lengths, whole, strict=True):
        np.testing.assert_allclose(call(model, row[None, :length])[0], output, rtol=1e-5, atol=1e-6)
    spoiled = np.where(np.arange(6)[None, :, None] < lengths[:, None, None], inputs, np.float32(np.nan))
    np.testing.assert_array_equal(call(model, spoiled, lengths), whole)


def test_a_sequence_of_no_steps_has_finite_outputs_and_gradients():
    model, inputs, lengths = build(), draw(2, 6, 3), np.array([0, 6])
    loss = nnx.jit(nnx.value_and_grad(lambda model: jnp.sum(model(inputs, lengths) ** 2)))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(loss(model)))


def test_the_order_of_the_steps_matters():
    model, inputs = build(), draw(1, 6, 3)
    assert not np.allclose(call(model, inputs), call(model, inputs[:, ::-1]), atol=1e-3)


def test_the_number_of_parameters():
    block = 4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 2 * 2 * 8
    expected = (3 * 8 + 8) + 6 * 8 + 3 * block + 2 * 8 + (8 * 5 + 5)
    shapes = nnx.eval_shape(lambda: build(num_layers=3))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param))) == expected


def test_dropout_drops():
    model, inputs = build(dropout=0.5), draw(2, 6, 3)
    first, second = call(model, inputs), call(model, inputs)
    assert not np.allclose(first, second)
    model.eval()
    np.testing.assert_array_equal(call(model, inputs), call(model, inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "hidden_features is 8, expected a multiple of the 3 heads"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_layers": 1.5}, "num_layers is 1.5"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"rngs": 0}, "rngs is 0"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


@pytest.mark.parametrize("shape", [(2, 7, 3), (2, 6, 4), (2, 3)])
def test_inputs_that_do_not_fit_are_named(shape):
    with pytest.raises(UserError, match="the model's inputs are float32"):
        build()(jnp.ones(shape))
