"""Programs whose weights are prepared: the same answers as the function itself, by chains of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.ops import kernels, max_pool
from accelnet.ops.prepared import Prepared

pytestmark = pytest.mark.skipif(not kernels.load(), reason="no C++ compiler: there are no kernels to prepare for")


@pytest.fixture(autouse=True)
def _any_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def function_of(module):
    """Return a module as a function of weights and inputs, and its weights, with statistics that are not the first."""
    module.eval()
    graph, state = nnx.split(module)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: (
            leaf + 0.1 * jnp.abs(rng.standard_normal(leaf.shape)).astype(leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        ),
        state,
    )
    return lambda weights, inputs: nnx.merge(graph, weights)(inputs), state


def calls(function, weights, inputs):
    """Return how many chains, and how many other kernels, the program of some inputs has."""
    # A product of few numbers is XLA's where no layer stands before it.
    prepared = Prepared(function, weights)
    prepared(inputs)
    ((late, early, _),) = prepared._programs.values()
    text = late.lower(early, inputs).as_text()
    return text.count("@accelnet_chain"), text.count("@accelnet_") - text.count("@accelnet_chain")


MODELS = {
    "mlp": (lambda r: an.models.MLP(20, (64, 48), 5, rngs=r), (20,), 1),
    "mlp, tanh": (lambda r: an.models.MLP(20, (64, 48), 5, activation=nnx.tanh, rngs=r), (20,), 2),
    "cnn": (lambda r: an.models.CNN((12, 12, 1), (8, 16), 10, rngs=r), (12, 12, 1), 1),
    "cnn, 32 and 64 channels": (lambda r: an.models.CNN((16, 16, 3), (32, 64), 10, rngs=r), (16, 16, 3), 1),
    "cnn, batch norm, average": (
        lambda r: an.models.CNN(
            (13, 11, 3), (16, 32), 10, num_convolutions=2, norm="batch", pooling="average", head="average", rngs=r
        ),
        (13, 11, 3),
        None,
    ),
    "separable": (
        lambda r: an.models.CNN(
            (16, 16, 3), (16, 24), 10, strides=2, num_convolutions=2, separable=True, norm="batch", pooling=None,
            head="average", dense_features=(), rngs=r,
        ),
        (16, 16, 3),
        1,
    ),
    "resnet": (lambda r: an.models.ResNet(3, 8, 10, rngs=r), (16, 16, 3), 1),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_model(name, batch):
    make, shape, _ = MODELS[name]
    function, weights = function_of(make(nnx.Rngs(0)))
    prepared = Prepared(function, weights)
    for seed in range(2):
        inputs = np.random.default_rng(seed).standard_normal((batch, *shape)).astype(np.float32)
        expected = np.asarray(jax.jit(function)(weights, inputs))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(prepared(inputs) / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (*_, chains) in MODELS.items() if chains is not None])
def test_layers_are_chains(name):
    make, shape, chains = MODELS[name]
    function, weights = function_of(make(nnx.Rngs(0)))
    assert calls(function, weights, np.ones((1, *shape), np.float32)) == (chains, 0)


@pytest.mark.parametrize("cell", ["simple", "lstm", "gru"])
@pytest.mark.parametrize("tokens", [False, True])
def test_recurrent_networks(cell, tokens):
    options = {"num_symbols": 12} if tokens else {}
    model = an.models.RNN(
        6, 32, 12, cell=cell, num_layers=2, bidirectional=not tokens, output="steps" if tokens else "last", **options,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    function, weights = function_of(model)
    prepared, rng = Prepared(function, weights), np.random.default_rng(0)
    for batch, steps in ((1, 7), (4, 9)):
        inputs = rng.integers(0, 12, (batch, steps)) if tokens else rng.standard_normal((batch, steps, 6))
        inputs = inputs.astype(np.int32 if tokens else np.float32)
        expected = jax.jit(function)(weights, inputs)
        np.testing.assert_allclose(prepared(inputs), expected, atol=1e-5 * float(np.abs(expected).max()))


def test_sequences_of_different_lengths():
    _, weights = function_of(model := an.models.RNN(6, 32, 3, cell="gru", output="last", rngs=nnx.Rngs(0)))
    graph = nnx.graphdef(model)

    def function(weights, batch):
        return nnx.merge(graph, weights)(batch["inputs"], batch["lengths"])

    rng = np.random.default_rng(0)
    inputs = {"inputs": rng.standard_normal((3, 8, 6)).astype(np.float32), "lengths": np.array([3, 8, 1], np.int32)}
    np.testing.assert_allclose(Prepared(function, weights)(inputs), jax.jit(function)(weights, inputs), atol=1e-5)


class _Attention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.norm, self.scale = nnx.LayerNorm(16, rngs=rngs), nnx.Param(jnp.full((16,), 2.0))
        self.linear = nnx.Linear(16, 16, dot_general=an.ops.dot_general, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        y = nnx.gelu(self.linear(x) * self.scale) - self.scale
        return {"last": jnp.argmax(y, axis=-1), "sum": y.sum(axis=1), "scale": self.scale + 1}


@pytest.mark.parametrize("batch", [1, 3])
def test_any_module(batch):
    function, weights = function_of(_Attention(nnx.Rngs(0)))
    inputs = np.random.default_rng(0).standard_normal((batch, 5, 16)).astype(np.float32)
    found, expected = Prepared(function, weights)(inputs), jax.jit(function)(weights, inputs)
    assert found["last"].tolist() == expected["last"].tolist()
    np.testing.assert_allclose(found["sum"], expected["sum"], atol=1e-5)
    np.testing.assert_allclose(found["scale"], expected["scale"])


def _dense(weights, x):
    return an.ops.dot_general(x, weights, (((1,), (0,)), ((), ())))


@pytest.mark.parametrize("transposed", [False, True])
def test_what_stands_behind_a_layer_is_joined_to_it_in_its_order(transposed):
    rng = np.random.default_rng(0)
    kernel, shift, scale = (rng.standard_normal(size).astype(np.float32) for size in ((40, 48), (48,), (48,)))
    weights = {"kernel": kernel.T if transposed else kernel, "shift": shift, "scale": scale}
    axes = (((1,), (1 if transposed else 0,)), ((), ()))

    def function(weights, x):
        y = (an.ops.dot_general(x, weights["kernel"], axes) - weights["shift"]) * weights["scale"] / 3
        return jnp.maximum(0, y + weights["shift"] * 2)

    x = rng.standard_normal((2, 40)).astype(np.float32)
    assert calls(function, weights, x) == (1, 0)
    np.testing.assert_allclose(Prepared(function, weights)(x), function(weights, x), atol=1e-5)


@pytest.mark.parametrize(
    "behind",
    {
        "a result that is read twice": lambda y, v: (y + v) * y,
        "the vector first": lambda y, v: v - y,
        "division by the result": lambda y, v: v / (y + 100),
        "relu, then a bias": lambda y, v: nnx.relu(y) + v,
        "a bound that is not zero": lambda y, v: jnp.maximum(y + v, 0.5),
        "a vector along the rows": lambda y, v: y.T + v[:2],
        "a reshape to other columns": lambda y, v: y.reshape(4, 24) + v[:24],
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_not_joined_is_still_computed(behind):
    rng = np.random.default_rng(0)
    kernel, vector = rng.standard_normal((40, 48)).astype(np.float32), np.linspace(-2, 2, 48, dtype=np.float32)
    weights = {"kernel": kernel, "v": vector}
    x = rng.standard_normal((2, 40)).astype(np.float32)

    def function(weights, x):
        return behind[1](_dense(weights["kernel"], x), weights["v"])

    np.testing.assert_allclose(Prepared(function, weights)(x), function(weights, x), atol=1e-4)


def test_numbers_that_are_not_finite_stay():
    weights = {"kernel": np.eye(48, dtype=np.float32), "v": np.zeros(48, np.float32)}
    x = np.zeros((2, 48), np.float32)
    x[0, 3], x[1, 5] = np.nan, np.inf

    def function(weights, x):
        return nnx.relu(_dense(weights["kernel"], x) + weights["v"])

    np.testing.assert_array_equal(Prepared(function, weights)(x), function(weights, x))


def test_weights_of_several_shapes_of_inputs_are_kept_once():
    function, weights = function_of(an.models.MLP(20, (64, 48), 5, rngs=nnx.Rngs(0)))
    prepared = Prepared(function, weights)
    for batch in (1, 2, 4):
        prepared(np.ones((batch, 20), np.float32))
    early = [{id(leaf) for leaf in jax.tree.leaves(early)} for _, early, _ in prepared._programs.values()]
    assert early[0] == early[1] == early[2]


def test_threads_may_call_at_the_same_time():
    from concurrent.futures import ThreadPoolExecutor

    function, weights = function_of(an.models.CNN((16, 16, 3), (32, 64), 10, rngs=nnx.Rngs(0)))
    prepared = Prepared(function, weights)
    inputs = [np.random.default_rng(seed).standard_normal((1, 16, 16, 3)).astype(np.float32) for seed in range(8)]
    expected = [np.asarray(prepared(one)) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: np.asarray(prepared(one)), inputs * 40))
    for one, right in zip(found, expected * 40, strict=True):
        np.testing.assert_array_equal(one, right)


def test_under_64_bits_weights_of_32_stay():
    with jax.enable_x64(True):
        function, weights = function_of(an.models.MLP(20, (64,), 5, rngs=nnx.Rngs(0)))
        weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, weights)
        x = np.ones((2, 20), np.float32)
        found = Prepared(function, weights)(x)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, jax.jit(function)(weights, x), atol=1e-5)


@pytest.mark.parametrize(("window", "strides", "padding"), [((2, 2), (2, 2), "VALID"), ((3, 2), (1, 2), "SAME")])
def test_maxima_within_a_chain(window, strides, padding):
    kernel = np.random.default_rng(0).standard_normal((1, 1, 4, 40)).astype(np.float32)

    def function(kernel, x):
        y = an.ops.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return max_pool(y, window, strides, padding)

    x = np.random.default_rng(1).standard_normal((2, 9, 7, 4)).astype(np.float32)
    assert calls(function, kernel, x) == (1, 0)
    np.testing.assert_allclose(Prepared(function, kernel)(x), jax.jit(function)(kernel, x), atol=1e-5)
