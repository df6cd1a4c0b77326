"""How cuDNN's LSTM is wired in, with JAX's reference of it in the place of the kernel that needs a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from accelnet.ops import cudnn
from accelnet.ops.recurrence import lstm

BATCH, STEPS, FEATURES, HIDDEN = 3, 5, 2, 4
# Sums of a few dozen float32 products in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def make_arguments(seed=0):
    shapes = {
        "inputs": (BATCH, STEPS, FEATURES),
        "input_kernel": (FEATURES, 4 * HIDDEN),
        "recurrent_kernel": (HIDDEN, 4 * HIDDEN),
        "bias": (4 * HIDDEN,),
        "h": (BATCH, HIDDEN),
        "c": (BATCH, HIDDEN),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    arrays = {n: jax.random.normal(key, shape) / 2 for key, (n, shape) in zip(keys, shapes.items(), strict=True)}
    return arrays | {"initial_state": (arrays.pop("h"), arrays.pop("c"))}


def loss(arguments, **options):
    outputs, state = lstm(**arguments, **options)
    leaves = jax.tree.leaves((outputs, state))
    return sum((leaf * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)).sum() for leaf in leaves)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, as far as tracing asks for one."""
    monkeypatch.setattr(cudnn, "fits", lambda dtype: dtype == jnp.float32)
    sizes = lambda *_: (8, 16)  # noqa: E731
    monkeypatch.setattr(rnn.gpu_rnn, "compute_rnn_workspace_reserve_space_sizes", sizes, raising=False)


@pytest.fixture
def kernel(gpu, monkeypatch):
    """JAX's reference of the kernel, taken on this platform too."""

    def reference(x, h, c, packed):
        weights = rnn.unpack_lstm_weights(packed, x.shape[2], h.shape[2], 1, False)
        lengths = jnp.full(x.shape[0], x.shape[1], jnp.int32)
        return rnn.lstm_ref(x, h, c, *weights, lengths, x.shape[2], h.shape[2], 1, 0.0, False)

    def forward(x, h, c, packed, lengths, **options):
        assert options["num_layers"] == 1
        return reference(x, h, c, packed), (None, jnp.zeros(16))

    def backward(input_size, hidden_size, num_layers, dropout, bidirectional, precision, residuals, gradients):
        x, h, c, packed, _, outputs, _ = residuals
        np.testing.assert_equal(outputs.shape, (BATCH, STEPS, hidden_size))
        return *jax.vjp(reference, x, h, c, packed)[1](gradients), None

    monkeypatch.setattr(rnn, "lstm_fwd", forward)
    monkeypatch.setattr(rnn, "lstm_bwd", backward)
    monkeypatch.setattr(cudnn.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_kernel_gets_and_gives_what_the_plain_lstm_does(kernel, monkeypatch, reverse):
    arguments = make_arguments()
    value, gradient = jax.jit(jax.value_and_grad(lambda a: loss(a, reverse=reverse)))(arguments)
    monkeypatch.undo()
    expected, theirs = jax.jit(jax.value_and_grad(lambda a: loss(a, reverse=reverse)))(arguments)
    np.testing.assert_allclose(value, expected, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, theirs)


def test_the_kernel_is_in_the_branch_for_cuda_alone_and_the_cpu_runs_the_plain_one(gpu, monkeypatch):
    arguments = make_arguments()
    step = jax.jit(jax.value_and_grad(loss))
    text = str(jax.make_jaxpr(jax.value_and_grad(loss))(arguments))
    assert text.count("rnn_fwd[") == 1
    assert text.count("rnn_bwd[") == 1
    for platform in ("cpu", "tpu"):
        program = jax.export.export(step, platforms=[platform])(arguments).mlir_module()
        assert "dnn_rnn" not in program
    found = step(arguments)
    monkeypatch.undo()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, jax.jit(jax.value_and_grad(loss))(arguments)
    )


def test_vmap_and_second_derivatives_take_the_plain_one(gpu, monkeypatch):
    members = [make_arguments(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    many = jax.vmap(jax.value_and_grad(loss))

    def slope(arguments):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(jax.grad(loss)(arguments)))

    assert "rnn_fwd[" not in str(jax.make_jaxpr(many)(stacked))
    results = jax.jit(many)(stacked), jax.jit(jax.grad(slope))(members[0])
    monkeypatch.undo()
    expected = jax.jit(many)(stacked), jax.jit(jax.grad(slope))(members[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), results, expected)


def test_tokens_reach_the_kernel_as_the_rows_that_they_read(kernel, monkeypatch):
    tokens = jax.random.randint(jax.random.key(1), (BATCH, STEPS), 0, 7)
    arguments = make_arguments() | {"inputs": jax.random.normal(jax.random.key(2), (7, FEATURES))}

    def step(arguments):
        # Another function each time, which jit has not traced yet.
        return jax.jit(jax.value_and_grad(lambda a: loss(a, tokens=tokens)))(arguments)

    calls = []
    forward = rnn.lstm_fwd
    monkeypatch.setattr(rnn, "lstm_fwd", lambda *a, **options: calls.append(a) or forward(*a, **options))
    value, gradient = step(arguments)
    assert calls
    monkeypatch.undo()
    expected, theirs = step(arguments)
    np.testing.assert_allclose(value, expected, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, theirs)


@pytest.mark.parametrize("change", [{"lengths": jnp.array([5, 1, 3])}, {"dtype": jnp.bfloat16}])
def test_lengths_and_short_floats_take_the_plain_one(gpu, change):
    arguments = make_arguments()
    options = {}
    if "dtype" in change:
        arguments = jax.tree.map(lambda leaf: leaf.astype(change["dtype"]), arguments)
    else:
        options = change
    assert "rnn_fwd[" not in str(jax.make_jaxpr(lambda a: lstm(**a, **options))(arguments))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no NVIDIA GPU, or not asked for: ACCELNET_TEST_PLATFORM=cuda")
@pytest.mark.parametrize("reverse", [False, True])
def test_a_gpu_computes_what_the_plain_lstm_does(monkeypatch, reverse):
    arguments = make_arguments()

    def run():
        step = jax.jit(jax.value_and_grad(lambda a: loss(a, reverse=reverse)))
        return step.lower(arguments).compile().as_text(), step(arguments)

    text, (value, gradient) = run()
    assert "cudnn_rnn" in text
    monkeypatch.setattr(cudnn, "fits", lambda _: False)
    text, (expected, expected_gradient) = run()
    assert "cudnn_rnn" not in text
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for leaf, plain in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(leaf, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_nothing_is_asked_of_it():
    assert not cudnn.fits(jnp.float32)
