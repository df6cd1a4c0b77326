"""Chains of many rows, in slices: the bits of the whole, and whole where rows are not by themselves."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.ops import host_program, kernels, slices
from accelnet.ops.prepared import Prepared
from tests.ops.test_host_call import answers_of, with_bits

pytestmark = pytest.mark.skipif(not kernels.load(), reason="no C++ compiler: there are no kernels to call")


@pytest.fixture(autouse=True)
def _any_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def found(monkeypatch):
    """Cut whatever can be cut, by two threads, and return the numbers of slices."""
    numbers, real = [], slices.in_slices

    def spied(layers, between, weights, inputs, fixed, wanted, num_threads):
        made = real(layers, max(between, 1), 0, inputs, fixed, wanted, 2)
        numbers.append(made[2])
        return made

    monkeypatch.setattr(slices, "_MOST_BYTES", 0)
    monkeypatch.setattr(host_program, "in_slices", spied)
    return numbers


MODELS = {
    "cnn": (lambda r: an.models.CNN((12, 12, 1), (16, 32), 5, norm="batch", rngs=r), (12, 12, 1), 0),
    "separable": (
        lambda r: an.models.CNN((9, 9, 3), (16, 32), 5, strides=2, separable=True, pooling=None, rngs=r), (9, 9, 3), 0,
    ),
    "resnet": (lambda r: an.models.ResNet(3, 8, 5, rngs=r), (16, 16, 3), 0),
    "cnn of few bits": (lambda r: an.models.CNN((12, 12, 8), (16, 32), 5, rngs=r), (12, 12, 8), 8),
    "mlp": (lambda r: an.models.MLP(144, (64, 48), 5, rngs=r), (12, 12, 1), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_slices_have_the_bits_of_the_whole(name, dtype, found):
    make, shape, bits = MODELS[name]
    function, weights = answers_of(with_bits(make(nnx.Rngs(0)), bits))
    inputs = np.random.default_rng(0).integers(0, 256, (24, *shape)).astype(dtype)
    prepared = Prepared(function, weights)
    answers = prepared(inputs)
    assert found == [2]  # of 12 rows: three of 8 are not as many for each thread
    whole = prepared(jax.device_put(inputs))
    for key, one in whole.items():
        assert type(answers[key]) is np.ndarray and answers[key].dtype == one.dtype
        np.testing.assert_array_equal(answers[key], one)


def convolved(weights, images):
    dimensions = jax.lax.conv_dimension_numbers(images.shape, weights.shape, ("NHWC", "HWIO", "NHWC"))
    return an.ops.conv_general_dilated(images, weights, (1, 1), "SAME", dimension_numbers=dimensions)


@pytest.mark.parametrize("shape", [(1, 16 * 8, 8, 16), (8, 16, 8, 16), (32, 4, 8, 16)])
def test_rows_that_a_convolution_mixes_are_not_cut(shape, found):
    """A convolution of rows that are joined to fewer images mixes them; of rows that are cut to more it does not."""

    def function(weights, x):
        return convolved(weights, x.reshape(shape))

    weights = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((16, 8, 8, 16)).astype(np.float32)
    prepared = Prepared(function, weights)
    answers = prepared(x)
    assert found == [2 if shape[0] == 32 else 1]
    np.testing.assert_array_equal(answers, prepared(jax.device_put(x)))


RECURRENT = {
    "lstm": ({}, 0),
    "as many steps as rows": ({"output": "steps"}, 0),
    "gru of few bits, the mean": ({"cell": "gru", "output": "mean", "num_layers": 2}, 8),
    "tokens": ({"num_symbols": 7, "cell": "gru", "num_layers": 2, "output": "steps"}, 0),
    "tokens of few bits": ({"num_symbols": 7, "output": "steps"}, 8),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("rows", [24, 32])
def test_sequences_are_cut_whose_steps_are_the_first_axis_inside(name, rows, found):
    settings, bits = RECURRENT[name]
    model = an.models.RNN(6, 48, 5, **settings, rngs=nnx.Rngs(0))
    function, weights = answers_of(with_bits(model, bits))
    steps = rows if name == "as many steps as rows" else 9
    draw = np.random.default_rng(0)
    tokens = "num_symbols" in settings
    inputs = draw.integers(0, 7, (rows, steps)) if tokens else draw.standard_normal((rows, steps, 6))
    inputs = inputs.astype(np.int32 if tokens else np.float32)
    prepared = Prepared(function, weights)
    answers = prepared(inputs)
    assert found == [{24: 2, 32: 4}[rows]]
    for one, other in zip(jax.tree.leaves(answers), jax.tree.leaves(prepared(jax.device_put(inputs))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sequences_that_begin_differently_are_whole(found):
    """A slice has the first of the states that are known before: they have to be all alike."""
    draw = np.random.default_rng(0)
    kernels = [draw.standard_normal(shape).astype(np.float32) / 4 for shape in ((16, 64), (16, 64), 64)]
    inputs = draw.standard_normal((16, 16, 16)).astype(np.float32)
    alike, own = np.full((16, 16), 0.5, np.float32), draw.standard_normal((16, 16)).astype(np.float32)

    def prepared(state, swap):
        def outputs(kernels, inputs):
            return an.ops.lstm(inputs.swapaxes(0, 1) if swap else inputs, *kernels, (state, state))[0]

        return Prepared(outputs, kernels)

    # Last, along the rows, which mixes them.
    for one in (prepared(alike, False), prepared(own, False), prepared(alike, True)):
        np.testing.assert_array_equal(one(inputs), one(jax.device_put(inputs)))
    assert found == [2, 1, 1]


def test_inputs_of_other_lengths_are_whole(found):
    weights = np.ones((48, 48), np.float32)
    inputs = [np.ones((16, 48), np.float32), np.ones((8, 96), np.float32)]

    def function(weights, inputs):
        dense = lambda x: an.ops.dot_general(x, weights, (((1,), (0,)), ((), ())))  # noqa: E731
        return dense(inputs[0]) + dense(inputs[1].reshape(16, 48))

    prepared = Prepared(function, weights)
    answers = prepared(inputs)
    assert found == [1]
    np.testing.assert_array_equal(answers, prepared(jax.device_put(inputs)))


def test_threads_call_a_model_in_slices_at_the_same_time(found):
    make, shape, _ = MODELS["cnn"]
    prepared = Prepared(*answers_of(make(nnx.Rngs(0))))
    inputs = [np.random.default_rng(seed).standard_normal((64, *shape)).astype(np.float32) for seed in range(4)]
    expected = [prepared(one)["outputs"] for one in inputs]
    assert found == [8]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: prepared(inputs[number % 4])["outputs"], range(80)))
    for number, one in enumerate(answers):
        np.testing.assert_array_equal(one, expected[number % 4])


@pytest.mark.parametrize(
    ("between", "written", "weights", "rows", "threads", "expected"),
    [
        (32 << 20, 64 << 20, 1 << 20, 256, 2, 8),  # no fewer than 8 rows
        (4 << 20, 8 << 20, 1 << 20, 256, 2, 64),  # what lies between them fits
        (1 << 20, 8 << 20, 1 << 20, 256, 2, 256),  # it does already
        (32 << 20, 64 << 20, 32 << 20, 256, 2, 128),  # the weights are read once more for each
        (32 << 20, 64 << 20, 64 << 20, 256, 2, 256),
        (32 << 20, 64 << 20, 1 << 20, 256, 64, 256),  # too few for all threads
        (32 << 20, 64 << 20, 1 << 20, 251, 2, 251),  # a prime number
        (32 << 20, 64 << 20, 1 << 20, 24, 2, 12),
        (32 << 20, 64 << 20, 1 << 20, 1, 1, 1),
    ],
)
def test_the_rows_of_a_slice(between, written, weights, rows, threads, expected):
    assert slices.rows_of_slice(between, written, weights, rows, threads) == expected
