"""Whole models in onnxruntime: accelnet's own and those that users write, one file for every batch and length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import accelnet as an
from accelnet.models.adapter import adapt
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.recurrent_layer import RecurrentLayer

LINEAR = {"MatMul", "Add", "Relu", "Identity"}


def rngs():
    return nnx.Rngs(0)


def test_an_mlp_is_products_without_its_batch_normalization(agrees, tools):
    model = an.models.MLP(20, (16, 16), 3, norm="batch", rngs=rngs())
    counts = agrees(tools.of_module(model), tools.shape("b", 20))
    assert set(counts) <= LINEAR and counts["MatMul"] == counts["Add"] == 3


@pytest.mark.parametrize("separable", [False, True], ids=["dense", "separable"])
def test_a_cnn_is_convolutions_without_their_batch_normalization(separable, agrees, tools):
    model = an.models.CNN((12, 12, 3), (8, 16), 5, norm="batch", separable=separable, dense_features=(8,), rngs=rngs())
    counts = agrees(tools.of_module(model), tools.shape("b", 12, 12, 3))
    assert counts["Conv"] == 2 + separable and counts["MaxPool"] == 2 and counts["Mul"] == counts["Sub"] == 0
    assert counts["Transpose"] == 2  # of the pixels that come, and of those that are flattened


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_cnn_of_means_with_other_normalizations(norm, agrees, tools):
    model = an.models.CNN((12, 12, 3), (8, 16), 5, norm=norm, pooling="average", head="average", rngs=rngs())
    assert agrees(tools.of_module(model), tools.shape("b", 12, 12, 3))["AveragePool"] == 2


def test_a_cnn_of_means_takes_images_of_any_size(agrees, tools):
    model = an.models.CNN((12, 12, 3), (8, 16), 5, norm="batch", pooling=None, head="average", rngs=rngs())
    agrees(tools.of_module(model), tools.shape("b", "t", "t", 3))


@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_a_resnet(shortcut, agrees, tools):
    model = an.models.ResNet(3, 8, 10, shortcut=shortcut, rngs=rngs())
    counts = agrees(tools.of_module(model), tools.shape("b", 16, 16, 3), sizes=((1, 1), (3, 1), (64, 1)))
    assert counts["Conv"] == 7 + 2 * (shortcut == "projection") and counts["Mul"] == 0


OPERATORS = {"lstm": "LSTM", "gru": "GRU", "simple": "RNN", "min_gru": "Scan"}


@pytest.mark.parametrize(
    ("cell", "output"),
    [
        ("lstm", "last"),
        ("lstm", "steps"),
        ("gru", "mean"),
        ("simple", "steps"),
        ("simple", "last"),
        ("min_gru", "mean"),
    ],
)
def test_a_recurrent_network_of_both_directions_with_lengths(cell, output, agrees, tools):
    model = an.models.RNN(5, 7, 4, cell=cell, num_layers=2, bidirectional=True, output=output, rngs=rngs())
    inputs = {"inputs": tools.shape("b", "t", 5), "lengths": tools.shape("b", dtype=jnp.int32)}
    counts = agrees(tools.of_module(model), inputs)
    # The last step's output is the second layer's alone, in both directions.
    assert counts[OPERATORS[cell]] == 4
    assert cell == "min_gru" or counts["Scan"] == counts["Loop"] == 0


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_network_of_low_rank_is_the_operator_of_the_products(cell, agrees, tools):
    ranks = {"layers.0.forward": 2, **{f"layers.0.{way}.recurrent_kernel": 3 for way in ("forward", "backward")}}
    whole = lambda rngs: an.models.RNN(5, 7, 4, cell=cell, bidirectional=True, output="steps", rngs=rngs)  # noqa: E731
    model = Compressed(whole, Compression(ranks=ranks))(rngs=rngs())
    inputs = {"inputs": tools.shape("b", "t", 5), "lengths": tools.shape("b", dtype=jnp.int32)}
    counts = agrees(tools.of_module(model), inputs)
    assert counts[OPERATORS[cell]] == 2 and counts["Scan"] == counts["Loop"] == 0


@pytest.mark.parametrize("cell", OPERATORS)
def test_a_recurrent_network_of_rows_of_images(cell, agrees, tools):
    model = an.models.RNN(8, 16, 4, cell=cell, rngs=rngs())
    assert agrees(tools.of_module(model), tools.shape("b", 6, 8, 1))[OPERATORS[cell]] == 1


def test_a_transformer_of_sequences_of_any_length(agrees, tools):
    model = an.models.Transformer(5, 8, 4, num_steps=9, num_heads=2, rngs=rngs())
    inputs = {"inputs": tools.shape("b", "t", 5), "lengths": tools.shape("b", dtype=jnp.int32)}
    assert agrees(tools.of_module(model), inputs)["Softmax"] in (0, 2)


@pytest.mark.parametrize("cell", OPERATORS)
def test_what_lies_behind_a_length_changes_nothing(cell, tools):
    from accelnet.exporting.onnx import check_onnx, to_onnx

    model = tools.of_module(an.models.RNN(5, 7, 4, cell=cell, bidirectional=True, output="steps", rngs=rngs()))
    inputs = {"inputs": tools.shape("b", "t", 5), "lengths": tools.shape("b", dtype=jnp.int32)}
    rows = tools.rows_of(inputs, 4, 6)
    rows["lengths"] = np.array([6, 0, 1, 4], np.int32)
    for row, length in enumerate(rows["lengths"]):
        rows["inputs"][row, length:] = np.nan
    assert check_onnx(to_onnx(model, inputs), model, rows).largest < 1e-5


def test_a_network_of_characters(agrees, tools):
    model = an.models.RNN(
        6,
        8,
        10,
        num_symbols=10,
        cell="lstm",
        num_layers=2,
        shared=True,
        tie_embedding=True,
        output="steps",
        rngs=rngs(),
    )
    inputs = {"inputs": tools.shape("b", "t", dtype=jnp.int32), "lengths": tools.shape("b", dtype=jnp.int32)}
    assert agrees(tools.of_module(model), inputs)["LSTM"] == 2


def test_a_recurrence_with_weights_and_a_state_that_are_computed(agrees, tools):
    layer = RecurrentLayer(5, 4, cell="lstm", rngs=rngs()).forward

    def function(x):
        kernel = layer.input_kernel[...] * (1 + x[0, 0, 0])
        state = x[:, 0, :4], x[:, 1, :4]
        outputs, last = an.ops.lstm(x, kernel, layer.recurrent_kernel[...], layer.bias[...], state, reverse=True)
        return {"outputs": outputs, "hidden": last[0], "memory": last[1]}

    assert agrees(function, tools.shape("b", "t", 5))["LSTM"] == 1


class Transformer(nnx.Module):
    """Patches of an image, with attention between them."""

    def __init__(self, rngs):
        self.patches = nnx.Conv(3, 16, (3, 3), (3, 3), padding="VALID", rngs=rngs)
        self.position = nnx.Embed(16, 16, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(16, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, 16) + self.position(jnp.arange(16))[None]
        x = x + self.attention(self.norms[0](x))
        x = x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))
        return self.head(x.mean(1))


def test_a_vision_transformer(agrees, tools):
    agrees(tools.of_module(Transformer(rngs())), tools.shape("b", 12, 12, 3))


class Writer(nnx.Module):
    """A language model whose steps see those before them."""

    def __init__(self, rngs):
        self.embedding = nnx.Embed(11, 16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.head = nnx.Linear(16, 11, rngs=rngs)

    def __call__(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + self.attention(x, mask=nnx.make_causal_mask(tokens)))


def test_a_language_model_of_any_length(agrees, tools):
    agrees(tools.of_module(Writer(rngs())), tools.shape("b", "t", dtype=jnp.int32))


def test_a_recurrence_of_flax_is_a_scan(agrees, tools):
    model = nnx.RNN(nnx.LSTMCell(5, 7, rngs=rngs()))
    assert agrees(tools.of_module(model), tools.shape("b", "t", 5))["Scan"] == 1


class Stack(nnx.Module):
    """Layers of one shape in a loop, as Flax's guide writes it."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=4)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Sequential(nnx.Linear(8, 8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs))

        self.layers, self.head = make(rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return jnp.tanh(layer(x)) + x

        return self.head(forward(x, self.layers))


def test_layers_in_a_loop_leave_the_keys_of_their_dropout_out(agrees, tools):
    assert agrees(tools.of_module(Stack(rngs())), tools.shape("b", 8))["Scan"] == 1


class Residual(linen.Module):
    features: int

    @linen.compact
    def __call__(self, x):
        def norm(x):
            return linen.BatchNorm(use_running_average=True)(x)

        y = linen.relu(norm(linen.Conv(self.features, (3, 3), use_bias=False)(x)))
        y = norm(linen.Conv(self.features, (3, 3), use_bias=False)(y))
        x = x if x.shape == y.shape else norm(linen.Conv(self.features, (1, 1), use_bias=False)(x))
        return linen.relu(x + y)


class LinenResNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.max_pool(Residual(8)(x), (2, 2), (2, 2))
        return linen.Dense(5)(Residual(16)(x).mean((1, 2)))


def test_a_linen_resnet(agrees, tools):
    model = LinenResNet()
    variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: a + jnp.asarray(0.1 * np.abs(rng.normal(size=a.shape)), a.dtype), variables)
    counts = agrees(lambda x: model.apply(variables, x), tools.shape("b", 8, 8, 3))
    assert counts["Conv"] == 6 and counts["Mul"] == counts["Sub"] == 0


def test_preprocessing_and_probabilities_are_inside(agrees, tools):
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    data = an.data.from_arrays(images, np.arange(64) % 4, num_classes=4, normalize=True)
    pure = adapt(an.models.CNN((8, 8, 3), (4,), 4, norm="batch", dense_features=(), rngs=rngs()))
    params, state = pure.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def function(batch):
        targets = jnp.zeros(batch["inputs"].shape[0], jnp.int32)
        inputs = data.prepare(batch | {"targets": targets})["inputs"]
        logits, _ = pure.apply(params, state, inputs, key=jax.random.key(0), train=False)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    counts = agrees(function, {"inputs": tools.shape("b", 8, 8, 3, dtype=jnp.uint8)})
    assert counts["Conv"] == 1 and counts["Cast"] == 1


def test_what_was_traced_for_training_is_traced_anew_for_export(tools):
    from accelnet.exporting.onnx import to_onnx

    call = jax.jit(tools.of_module(an.models.RNN(8, 16, 4, rngs=rngs())))
    call(jnp.zeros((3, 6, 8)))
    assert tools.operators(to_onnx(call, tools.shape(3, 6, 8)))["LSTM"] == 1
    assert "accelnet_recurrence" not in str(jax.make_jaxpr(call)(jnp.zeros((3, 6, 8))))
