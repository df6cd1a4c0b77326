"""The moments of inputs are those that NumPy computes of what each layer gets, whoever wrote the layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import accelnet as an
from accelnet import ops
from accelnet.compressing.activations import input_moments

ROWS = 12


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def experiment_of(model, inputs, targets=None, **settings):
    targets = np.arange(ROWS) % 3 if targets is None else targets
    arrays = {"inputs": inputs, "targets": targets}
    return an.Experiment(
        data=an.data.Data("toy", arrays, {"train": range(ROWS)}),
        model=model,
        optimizer=an.optim.adam(1e-3),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=4,
        steps=1,
        **settings,
    )


def moments_of(model, inputs, targets=None, **settings):
    experiment = experiment_of(model, inputs, targets)
    params, state = experiment.pure_model.init(jax.random.key(0), experiment.sample_inputs())
    return input_moments(experiment, params, state, **settings), experiment.pure_model.module(params, state), params


def check(moments, x, rtol=1e-5):
    """Compare with the moments of rows x [n, features], or of several groups [groups, n, features]."""
    x = np.asarray(x, np.float64)
    x = x[None] if x.ndim == 2 else x
    np.testing.assert_array_equal(moments.count, [x.shape[1]] * len(x))
    gram = np.einsum("gnk,gnl->gkl", x, x)
    # Sums of products in float32.
    np.testing.assert_allclose(moments.gram, gram, rtol=rtol, atol=1e-5 * np.abs(gram).max())
    np.testing.assert_allclose(moments.total, x.sum(1), rtol=rtol, atol=1e-5 * np.abs(x).sum(1).max())


def patches(images, size, stride):
    """Gather square patches of images [N, H, W, C] with "SAME" padding of an odd kernel: [rows, size, size, C]."""
    side = images.shape[1]
    total = max(0, (-(-side // stride) - 1) * stride + size - side)
    padded = np.pad(images, [(0, 0), (total // 2, total - total // 2), (total // 2, total - total // 2), (0, 0)])
    starts = range(0, side, stride)
    return np.concatenate([padded[:, y : y + size, x : x + size] for y in starts for x in starts])


class Images(nnx.Module):
    """Convolutions of each kind, a layer that is used twice, and products of heads."""

    def __init__(self, convolve, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), 2, conv_general_dilated=convolve, rngs=rngs)
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, conv_general_dilated=convolve, rngs=rngs)
        self.groups = nnx.Conv(4, 6, (1, 1), feature_group_count=2, conv_general_dilated=convolve, rngs=rngs)
        self.twice = nnx.Linear(6, 6, dot_general=ops.dot_general, rngs=rngs)
        self.heads = nnx.LinearGeneral(6, (2, 3), rngs=rngs)
        self.joined = nnx.LinearGeneral((2, 3), 3, axis=(-2, -1), rngs=rngs)
        self.transposed = nnx.Param(jnp.ones((3, 3)))

    def __call__(self, x, seen=None):
        seen = [] if seen is None else seen
        for layer in (self.conv, self.depthwise, self.groups):
            seen.append(x)
            x = layer(x)
        x = x.mean((1, 2))
        for layer in (self.twice, self.twice, self.heads, self.joined):
            seen.append(x)
            x = jnp.tanh(layer(x))
        return jnp.einsum("of,bf->bo", self.transposed[...], x)


@pytest.mark.parametrize("convolve", [ops.conv_general_dilated, jax.lax.conv_general_dilated], ids=["own", "native"])
def test_convolutions_and_products_are_found_wherever_they_are_made(convolve, rng):
    images = rng.normal(size=(ROWS, 4, 4, 2)).astype(np.float32)
    found, model, params = moments_of(lambda rngs: Images(convolve, rngs), images)
    seen = []
    model(jnp.asarray(images), seen)
    conv, depthwise, groups, *dense = (np.asarray(one) for one in seen)
    assert len(found) == 7
    check(found["conv.kernel", (0, 1, 2)], patches(conv, 3, 2).reshape(-1, 18))
    check(found["depthwise.kernel", (0, 1, 2)], np.moveaxis(patches(depthwise, 3, 1).reshape(-1, 9, 4), 2, 0))
    check(found["groups.kernel", (0, 1, 2)], np.moveaxis(groups.reshape(-1, 2, 2), 1, 0))
    check(found["twice.kernel", (0,)], np.concatenate(dense[:2]))
    check(found["heads.kernel", (0,)], dense[2])
    check(found["joined.kernel", (0, 1)], dense[3].reshape(-1, 6))
    assert found["transposed", (1,)].indices[0].tolist() == np.arange(9).reshape(3, 3).T.tolist()
    # As matrices and back: a convolution of 1x1 is the product of each group (its bias starts at 0).
    kernel = np.asarray(params["groups"]["kernel"])
    matrices = found["groups.kernel", (0, 1, 2)].matrices(kernel)
    by_hand = np.concatenate([groups[..., :2] @ matrices[0], groups[..., 2:] @ matrices[1]], -1)
    np.testing.assert_allclose(by_hand, model.groups(jnp.asarray(groups)), atol=1e-5)
    again = found["groups.kernel", (0, 1, 2)].parameter(matrices, np.zeros_like(kernel))
    np.testing.assert_allclose(again, kernel)


@pytest.mark.parametrize("reverse", [False, True])
def test_states_of_recurrent_layers_count_while_a_sequence_lasts(reverse, rng):
    class Sequences(nnx.Module):
        def __init__(self, rngs):
            self.layer = an.models.RNN(2, 5, 3, cell="gru", bidirectional=reverse, rngs=rngs)

        def __call__(self, x, lengths):
            return self.layer(x, lengths)

    inputs = {"x": rng.normal(size=(ROWS, 6, 2)).astype(np.float32), "lengths": rng.integers(1, 7, ROWS)}
    found, model, _ = moments_of(Sequences, inputs)
    cell = model.layer.layers[0].backward if reverse else model.layer.layers[0].forward
    outputs, _ = cell(jnp.asarray(inputs["x"]), jnp.asarray(inputs["lengths"]))
    before = []
    for states, length in zip(np.asarray(outputs), inputs["lengths"], strict=True):
        zero = np.zeros((1, 5), np.float32)
        before += [states[1:length], zero] if reverse else [zero, states[: length - 1]]
    name = f"layer.layers.0.{'backward' if reverse else 'forward'}"
    check(found[f"{name}.recurrent_kernel", (0,)], np.concatenate(before))
    valid = np.arange(6) < inputs["lengths"][:, None]
    check(found[f"{name}.input_kernel", (0,)], np.where(valid[..., None], inputs["x"], 0).reshape(-1, 2))


@pytest.mark.parametrize("cell", ["lstm", "min_gru"])
def test_rows_of_a_table_count_as_often_as_tokens_read_them(cell, rng):
    tokens = rng.integers(0, 3, size=(ROWS, 9)) * 2
    model = lambda rngs: an.models.RNN(5, 4, 6, num_symbols=6, output="steps", cell=cell, rngs=rngs)  # noqa: E731
    found, model, _ = moments_of(model, tokens, tokens)
    check(found["layers.0.forward.input_kernel", (0,)], np.asarray(model.embedding.embedding[...])[tokens.reshape(-1)])


def test_loops_over_steps_are_looked_into(rng):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.RNN(linen.SimpleCell(4))(x)
            return x[:, -1]

    x = rng.normal(size=(ROWS, 5, 2)).astype(np.float32)
    found, _, params = moments_of(Net(), x)
    cell = jax.device_get(params["SimpleCell_0"])
    state, before = np.zeros((ROWS, 4), np.float32), []
    for step in range(5):
        before.append(state)
        state = np.tanh(x[:, step] @ cell["i"]["kernel"] + cell["i"]["bias"] + state @ cell["h"]["kernel"])
    check(found["SimpleCell_0.h.kernel", (0,)], np.concatenate(before))
    check(found["SimpleCell_0.i.kernel", (0,)], x.reshape(-1, 2))


def test_layers_of_one_stacked_parameter_have_groups_of_their_own(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.kernels = nnx.Param(rngs.params.normal((3, 4, 4)))

        def __call__(self, x):
            return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, self.kernels[...])[0]

    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    found, _, params = moments_of(Net, x)
    seen = []
    for kernel in np.asarray(params["kernels"]):
        seen.append(x)
        x = np.tanh(x @ kernel)
    check(found["kernels", (1,)], np.stack(seen))
    matrices = found["kernels", (1,)].matrices(params["kernels"])
    np.testing.assert_allclose(matrices, params["kernels"])


def test_of_many_patches_some_are_drawn(rng):
    images = rng.normal(1.0, size=(ROWS, 32, 32, 1)).astype(np.float32)
    model = lambda rngs: an.models.CNN((32, 32, 1), (2,), 3, dense_features=(), rngs=rngs)  # noqa: E731
    found, _, _ = moments_of(model, images, paths=["stages.*"])
    ((name, moments),) = found.items()
    assert name[0] == "stages.0.layers.0.conv.kernel"
    assert moments.count[0] == 4096 < ROWS * 32 * 32
    every = patches(images, 3, 1).reshape(-1, 9)
    # The mean of 4,096 numbers has a deviation of 1/64 of theirs, which is 1.
    np.testing.assert_allclose(moments.mean[0], every.mean(0), atol=0.1)


def test_weights_that_are_not_finite_are_named(rng):
    model = lambda rngs: an.models.MLP(2, (4,), 3, rngs=rngs)  # noqa: E731
    experiment = experiment_of(model, rng.normal(size=(ROWS, 2)).astype(np.float32))
    params, state = experiment.pure_model.init(jax.random.key(0))
    params["layers"]["0"]["linear"]["bias"] = jnp.full(4, jnp.inf)
    with pytest.raises(an.UserError, match=r"head\.kernel"):
        input_moments(experiment, params, state)
