"""Programs of one chain, called without XLA: the same bits, the same errors, and by any threads."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.models.quantized import kernels_of, quantized
from accelnet.ops import host_call, kernels
from accelnet.ops.classes import argmax, softmax
from accelnet.ops.host_call import HostCall
from accelnet.ops.prepared import Prepared

pytestmark = pytest.mark.skipif(not kernels.load(), reason="no C++ compiler: there are no kernels to call")


@pytest.fixture(autouse=True)
def _any_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def with_bits(module, bits):
    """Put layers of few bits in the place of a module's own."""
    paths = [(path, one) for path, one in nnx.iter_modules(module) if path and kernels_of(one)]
    for (*path, name), layer in paths if bits else []:
        holder = module
        for step in path:
            holder = holder[step] if isinstance(step, int) else getattr(holder, step)
        made = quantized(layer, bits)
        if isinstance(name, int):
            holder[name] = made
        else:
            setattr(holder, name, made)
    return module


def answers_of(module):
    """Return a module as a function of raw inputs to all answers, as that of an artifact, and its weights."""
    module.eval()
    graph, state = nnx.split(module)

    def answers(weights, inputs):
        if inputs.dtype == jnp.uint8:
            inputs = (inputs.astype(jnp.float32) - 100.0) * 0.02
        outputs = nnx.merge(graph, weights)(inputs)
        return {"outputs": outputs, "probabilities": softmax(outputs), "classes": argmax(outputs)}

    return answers, state


def host_of(prepared):
    (compiled,) = prepared._programs.values()
    return compiled.host


IMAGES = (28, 28, 1), np.uint8
MODELS = {
    "mlp": (lambda r: an.models.MLP(784, (64, 48), 5, rngs=r), IMAGES),
    "cnn": (lambda r: an.models.CNN((12, 12, 8), (16, 32), 5, rngs=r), ((12, 12, 8), np.float32)),
    "lstm": (lambda r: an.models.RNN(28, 48, 5, cell="lstm", rngs=r), IMAGES),
    "lstm, shared": (lambda r: an.models.RNN(28, 384, 5, cell="lstm", rngs=r), IMAGES),
    "lstm of fewer tokens than symbols": (
        lambda r: an.models.RNN(8, 48, 20, cell="lstm", num_symbols=20, rngs=r),
        ((7,), np.int32),
    ),
    "gru of tokens": (
        lambda r: an.models.RNN(8, 48, 12, cell="gru", num_layers=2, num_symbols=12, output="steps", rngs=r),
        ((14,), np.int32),
    ),
    "simple": (lambda r: an.models.RNN(6, 48, 5, cell="simple", rngs=r), ((9, 6), np.float32)),
}  # fmt: skip


# Of models, bits and rows each two come together once.
@pytest.mark.parametrize(
    ("name", "bits", "batch"),
    [(name, bits, (1, 5)[(i + j) % 2]) for i, name in enumerate(MODELS) for j, bits in enumerate((0, 8, 4))],
)
def test_networks_are_one_call_with_the_bits_of_the_program(name, bits, batch):
    make, (shape, dtype) = MODELS[name]
    function, weights = answers_of(with_bits(make(nnx.Rngs(0)), bits))
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 12 if dtype == np.int32 else 256, (batch, *shape))
    inputs = numbers.astype(dtype) if dtype != np.float32 else rng.standard_normal((batch, *shape)).astype(dtype)
    prepared = Prepared(function, weights)
    found = prepared(inputs)
    assert host_of(prepared) is not None and all(type(one) is np.ndarray for one in found.values())
    by_xla = prepared(jax.device_put(inputs))
    assert prepared.num_programs == 1
    for key, one in by_xla.items():
        assert isinstance(one, jax.Array)
        np.testing.assert_array_equal(found[key], one)
        assert (found[key].dtype, found[key].shape) == (one.dtype, one.shape)
    expected = jax.jit(function)(weights, inputs)
    if bits:
        # Sums of whole numbers are exact, and their scales the same: no tolerance.
        np.testing.assert_array_equal(found["outputs"], expected["outputs"])
    scale = np.abs(expected["outputs"]).max()
    np.testing.assert_allclose(found["outputs"] / scale, expected["outputs"] / scale, atol=1e-5)
    # XLA's exponential and this one are each within 2 units in the last place.
    own = jax.nn.softmax(found["outputs"], axis=-1)
    np.testing.assert_allclose(found["probabilities"], own, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(found["classes"], np.argmax(found["outputs"], axis=-1))


def mlp():
    return answers_of(an.models.MLP(20, (64, 48), 5, rngs=nnx.Rngs(0)))


def test_inputs_may_lie_in_memory_as_they_like():
    prepared = Prepared(*mlp())
    x = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    expected = prepared(x)["outputs"].copy()
    apart = np.zeros((6, 40), np.float32)[:, ::2]
    apart[:] = x
    bytes_ = bytearray(x.nbytes + 1)
    misaligned = np.frombuffer(bytes_, np.uint8)[1:].view(np.float32).reshape(6, 20)
    misaligned[:] = x
    for other in (np.asfortranarray(x), apart, misaligned, x[::-1][::-1]):
        np.testing.assert_array_equal(prepared(other)["outputs"], expected)
    read_only = x.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(prepared(read_only)["outputs"], expected)
    wide, swapped = x.astype(np.float64), x.astype(">f4")
    np.testing.assert_array_equal(prepared(wide)["outputs"], expected)  # XLA's program makes float32 of it
    assert isinstance(prepared(wide)["outputs"], jax.Array)
    with pytest.raises(TypeError):
        prepared(swapped)


def test_answers_are_arrays_of_their_own():
    prepared = Prepared(*mlp())
    x = np.ones((2, 20), np.float32)
    first = prepared(x)
    kept = first["outputs"].copy()
    first["outputs"][:] = 7
    np.testing.assert_array_equal(prepared(x)["outputs"], kept)


def test_wrong_shapes_and_types_raise_what_the_function_does():
    function, weights = mlp()
    prepared = Prepared(function, weights)
    prepared(np.ones((2, 20), np.float32))
    for wrong in (np.ones((2, 21), np.float32), np.ones((2, 20), np.complex64), np.float32(3)):
        with pytest.raises((TypeError, ValueError, an.UserError)) as expected:
            jax.jit(function)(weights, wrong)
        with pytest.raises(expected.type) as found:
            prepared(wrong)
        assert str(found.value).splitlines()[0] == str(expected.value).splitlines()[0]


@pytest.mark.parametrize("reads", ["a table of inputs", "its inputs alone", "a constant"])
def test_what_is_not_one_chain_is_xlas(reads):
    def function(weights, x):
        y = an.ops.dot_general(x, weights, (((1,), (0,)), ((), ())))
        return {"a table of inputs": jnp.sin(y), "its inputs alone": (y, x), "a constant": (y, jnp.ones(3))}[reads]

    kernel = np.random.default_rng(0).standard_normal((40, 48)).astype(np.float32)
    prepared, x = Prepared(function, kernel), np.ones((2, 40), np.float32)
    found = prepared(x)
    assert host_of(prepared) is None
    for one, expected in zip(jax.tree.leaves(found), jax.tree.leaves(function(kernel, x)), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_threads_call_one_model_and_others_at_the_same_time():
    pairs = [answers_of(an.models.MLP(64, (256, 256), 5, rngs=nnx.Rngs(seed))) for seed in range(3)]
    models = [Prepared(*pair) for pair in pairs]
    inputs = [np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32) for seed in range(5)]
    expected = {(m, i): models[m](inputs[i])["outputs"] for m in range(3) for i in range(5)}
    jobs = list(expected) * 60
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: models[job[0]](inputs[job[1]])["outputs"], jobs))
    for job, one in zip(jobs, found, strict=True):
        np.testing.assert_array_equal(one, expected[job])


def test_a_pointer_that_numpy_keeps_elsewhere_is_asked_for(monkeypatch):
    prepared, x = Prepared(*mlp()), np.ones((2, 20), np.float32)
    expected = prepared(x)["outputs"]
    assert host_call._OFFSET == host_call._offset() != 0
    monkeypatch.setattr(host_call, "_OFFSET", 0)
    np.testing.assert_array_equal(prepared(x)["outputs"], expected)


def test_scores_that_are_no_numbers():
    scores = np.array([[1, np.nan, np.inf], [-np.inf, 0, -np.inf], [2, 2, 1], [1e30, -1e30, 0]], np.float32)
    # Kinds 13 and 14, the second of the first's own operand.
    code = [0, 2, 13, 1, 0, 0, 2, 4, 3, 1, 1, 0, 2, 4, 3, 0, 14, 1, 0, 0, 2, 4, 3, 1, 1, 1, 1, 4, 0]
    call = HostCall(np.array(code), [np.dtype("float32")], [((4, 3), np.float32), ((4,), np.int32)])
    shares, places = call([scores])
    np.testing.assert_allclose(
        shares, jax.nn.softmax(scores, axis=-1), rtol=1e-6, atol=1e-37
    )  # below it numbers lose digits
    np.testing.assert_array_equal(places, jnp.argmax(scores, axis=-1))
