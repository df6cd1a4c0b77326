"""The RNN module: outputs, padding, sharing, tying, types."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from accelnet.errors import UserError
from accelnet.models.rnn import RNN

LENGTHS = jnp.array([6, 1, 4])


def make(**options):
    defaults = {"in_features": 5, "hidden_features": 4, "out_features": 3, "num_layers": 2}
    return RNN(**(defaults | options), rngs=nnx.Rngs(0))


def series(steps=6):
    return jax.random.normal(jax.random.key(1), (3, steps, 5))


def num_params(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def call(model, *inputs):
    """The module's outputs from one compiled program: op by op takes several times as long."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, inputs: nnx.merge(graphdef, state, copy=True)(*inputs))(state, inputs)


def abstract(model, *inputs):
    """Return shape and type of a module's outputs, for which nothing needs to be compiled."""
    return nnx.eval_shape(lambda model: model(*inputs), model)


def gradient(model, *inputs):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        outputs = nnx.merge(graphdef, params, rest, copy=True)(*inputs)
        return (outputs * jnp.sin(jnp.arange(outputs.size, dtype=outputs.dtype)).reshape(outputs.shape)).sum()

    return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm", "output": "last", "bidirectional": True},
        {"cell": "gru", "output": "mean", "bidirectional": True},
        {"cell": "simple", "output": "steps", "shared": True},
        {"cell": "min_gru", "output": "last", "bidirectional": True},
    ],
)
def test_padding_never_changes_an_output_or_gradient(options):
    model = make(**options)
    clean = series()
    padding = (jnp.arange(6)[None, :] >= LENGTHS[:, None])[:, :, None]
    dirty = jnp.where(padding, jnp.nan, clean)
    np.testing.assert_array_equal(call(model, dirty, LENGTHS), call(model, clean, LENGTHS))
    left, right = gradient(model, dirty, LENGTHS), gradient(model, clean, LENGTHS)
    chex.assert_trees_all_equal(left, right)


@pytest.mark.parametrize("output", ["last", "mean", "steps"])
def test_a_padded_sequence_gives_what_it_gives_alone(output):
    model = make(bidirectional=True, output=output)
    together = call(model, series(), LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = call(model, series()[row : row + 1, :length])[0]
        found = together[row, :length] if output == "steps" else together[row]
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)  # products of other sizes


def test_last_reads_the_backward_direction_at_the_first_step():
    model = make(bidirectional=True, num_layers=1)
    outputs, last = call(model.layers[0], series(), LENGTHS)
    np.testing.assert_array_equal(last[:, 4:], outputs[:, 0, 4:])
    for row, length in enumerate(LENGTHS.tolist()):
        np.testing.assert_array_equal(last[row, :4], outputs[row, length - 1, :4])


def test_a_sequence_of_length_zero_gives_finite_outputs_and_gradients():
    model = make(output="mean")
    lengths = jnp.array([0, 6, 2])
    assert np.isfinite(call(model, series(), lengths)).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(model, series(), lengths)))


def test_rows_of_an_image_are_steps():
    model = RNN(28, 8, 10, rngs=nnx.Rngs(0))
    chex.assert_shape(abstract(model, jnp.zeros((2, 28, 28))), (2, 10))


@pytest.mark.parametrize("tokens", [False, True])
def test_shared_layers_are_one_set_of_parameters_and_their_gradients_sum(tokens):
    sizes = {"in_features": 4, "num_layers": 3, "num_symbols": 7 if tokens else None}
    shared, twin = make(**sizes, shared=True), make(**sizes)
    inputs = jnp.arange(18).reshape(3, 6) % 7 if tokens else series()[:, :, :4]
    assert num_params(twin) - num_params(shared) == 2 * sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(shared.layers[0]))
    )
    for layer in twin.layers:
        nnx.update(layer, nnx.state(shared.layers[0]))
    nnx.update(twin.output_layer, nnx.state(shared.output_layer))
    if tokens:
        nnx.update(twin.embedding, nnx.state(shared.embedding))
    np.testing.assert_array_equal(call(shared, inputs), call(twin, inputs))
    left, right = gradient(shared, inputs), gradient(twin, inputs)
    total = jax.tree.map(lambda *parts: sum(parts), *right["layers"].values())
    assert any(np.any(leaf) for leaf in jax.tree.leaves(total))
    # Sums of three gradients in another order.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, left["layers"][0], total)


def test_sharing_projects_inputs_of_another_size():
    model = make(shared=True, bidirectional=True, num_layers=3)
    chex.assert_shape(model.input_projection.kernel, (5, 8))
    chex.assert_shape(abstract(model, series()), (3, 3))


def test_tied_embedding_is_one_array_and_its_gradient_sums_over_both_uses():
    options = {"in_features": 4, "out_features": 7, "num_symbols": 7, "output": "steps"}
    tied, twin = make(**options, tie_embedding=True), make(**options)
    tokens = jnp.arange(18).reshape(3, 6) % 5
    assert num_params(twin) - num_params(tied) == 4 * 7
    nnx.update(twin.layers, nnx.state(tied.layers))
    nnx.update(twin.embedding, nnx.state(tied.embedding))
    twin.output_layer.kernel[...] = tied.embedding.embedding[...].T
    np.testing.assert_allclose(call(tied, tokens), call(twin, tokens), rtol=1e-5, atol=1e-6)
    left, right = gradient(tied, tokens), gradient(twin, tokens)
    total = right["embedding"]["embedding"] + right["output_layer"]["kernel"].T
    np.testing.assert_allclose(left["embedding"]["embedding"], total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(left["output_bias"], right["output_layer"]["bias"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", ["last", "mean", "steps"])
def test_tied_embedding_of_another_size_is_projected(output):
    model = make(out_features=7, num_symbols=7, tie_embedding=True, output=output)
    assert abstract(model, jnp.zeros((2, 6), jnp.int32)).shape == ((2, 6, 7) if output == "steps" else (2, 7))
    chex.assert_shape(model.output_projection.kernel, (4, 5))


@pytest.mark.parametrize("options", [{"shared": True, "bidirectional": True}, {"output": "mean"}])
def test_bfloat16_in_gives_bfloat16_out(options):
    model = make(**options)
    assert abstract(model, series().astype(jnp.bfloat16), LENGTHS).dtype == jnp.bfloat16
    graphdef, state = nnx.split(model)
    half = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    assert abstract(half, series().astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_tokens_take_the_dtype_of_the_embedding():
    model = make(num_symbols=7, out_features=7, tie_embedding=True)
    model.embedding.dtype = jnp.dtype(jnp.bfloat16)
    assert abstract(model, jnp.zeros((2, 6), jnp.int32)).dtype == jnp.bfloat16


def test_only_dropout_keeps_random_state():
    assert not jax.tree.leaves(nnx.state(make(), nnx.RngState))
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(make(dropout=0.5), nnx.RngState))]
    assert {path[0] for path in paths} == {"dropout"}


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    model.eval()
    np.testing.assert_array_equal(call(model, series()), call(make(), series()))
    model.train()
    assert np.any(model(series()) != model(series()))


def test_initial_weights_follow_the_documented_rules():
    recurrence = make(in_features=50, hidden_features=30).layers[0].forward
    for gate in jnp.split(recurrence.recurrent_kernel[...], 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(30), atol=1e-5)
    bias = recurrence.bias[...].reshape(4, 30)
    np.testing.assert_array_equal(bias, np.array([0.0, 1.0, 0.0, 0.0])[:, None] * np.ones((4, 30)))
    bound = (6 / (50 + 30)) ** 0.5
    assert 0.95 * bound < np.abs(recurrence.input_kernel[...]).max() <= bound


def test_the_layers_outputs_are_named_for_rematerialization():
    jaxpr = str(jax.make_jaxpr(make())(series()))
    assert jaxpr.count("name=block") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "rnn"}, "cell is 'rnn'"),
        ({"output": "first"}, "output is 'first'"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_features": 0}, "hidden_features is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"tie_embedding": True}, "num_symbols=None"),
        ({"tie_embedding": True, "num_symbols": 9}, "num_symbols=9"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ({}, jnp.zeros((3, 6))),
        ({}, jnp.zeros((3, 6, 4))),
        ({}, jnp.zeros((3, 6, 5), jnp.uint8)),
        ({"num_symbols": 7}, jnp.zeros((3, 6, 5))),
        ({"num_symbols": 7}, jnp.zeros((3, 6))),
    ],
)
def test_bad_inputs_are_named(options, inputs):
    with pytest.raises(UserError, match="inputs are"):
        make(**options)(inputs)
