"""Networks of few bits: what is kept, what is lost, and that everything else understands them."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import export

import accelnet as an
from accelnet.artifact.recipe import flattened
from accelnet.compressing.activations import input_moments
from accelnet.compressing.bits import bit_sensitivity, quantizable, quantize, to_stored, to_training
from accelnet.compressing.rounding import fitted
from accelnet.errors import UserError
from accelnet.exporting.onnx.check import check_onnx
from accelnet.exporting.onnx.export import to_onnx
from accelnet.exporting.source import source_of_model
from accelnet.models.adapter import adapt
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.quantized import kernels_of, quantized
from accelnet.models.rounded import rounded
from accelnet.ops.quantized import nearest
from accelnet.populations.members import grid
from accelnet.populations.population import Population

ROWS = 32


def experiment_of(model, shape=(24,), steps=2, **settings):
    rng = np.random.default_rng(0)
    inputs = settings.pop("inputs", rng.standard_normal((ROWS, *shape)).astype(np.float32))
    # Classes that the inputs decide, by a plane for each.
    flat = inputs.reshape(ROWS, -1)
    targets = np.argmax(flat @ rng.standard_normal((flat.shape[1], 4)), -1)
    splits = {"train": range(24), "validation": range(24, ROWS)}
    data = an.data.Data("planes", {"inputs": inputs, "targets": targets}, splits)
    objective, optimizer = an.objectives.softmax_cross_entropy(), an.optim.adam(1e-2)
    return an.Experiment(
        data=data, model=model, batch_size=8, steps=steps, optimizer=optimizer, objective=objective, **settings
    )


def outputs_of(experiment, params, state, inputs):
    return experiment.pure_model.apply(params, state, inputs, key=jax.random.key(0), train=False)[0]


def mlp(rngs):
    return an.models.MLP(24, (64, 64), 4, rngs=rngs)


def cnn(rngs):
    return an.models.CNN((8, 8, 8), [16], 4, dense_features=[32], rngs=rngs)


def rnn(rngs):
    return an.models.RNN(16, 32, 4, cell="gru", bidirectional=True, num_symbols=20, rngs=rngs)


class Attending(nnx.Module):
    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(4, 24, decode=False, rngs=rngs)
        self.out = nnx.Linear(24, 4, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(len(x), 3, -1)
        return self.out((x + self.attend(x)).mean(1))


TOKENS = np.random.default_rng(1).integers(0, 20, (ROWS, 30))
MODELS = {
    "mlp": (mlp, {}),
    "cnn": (cnn, {"shape": (8, 8, 8)}),
    "rnn": (rnn, {"inputs": TOKENS}),
    "attention": (Attending, {"shape": (72,)}),
}


@pytest.fixture(scope="module")
def trained():
    run = an.fit(experiment_of(mlp, steps=60), progress=False)
    return run.experiment, run.params, run.model_state


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_few_bits_gives_nearly_the_same_and_holds_few_bytes(name):
    model, settings = MODELS[name]
    whole = experiment_of(model, **settings)
    weights = whole.pure_model.init(jax.random.key(0))
    inputs = whole.data.arrays["inputs"]
    expected = np.asarray(outputs_of(whole, *weights, inputs))
    kernels = {f"params.{path}.{one}" for path, names in quantizable(whole).items() for one in names}
    assert kernels <= set(flattened(weights))
    for bits, most in {8: 0.03, 4: 0.3}.items():
        small = quantize(whole, *weights, bits, rows=24)
        error = np.linalg.norm(outputs_of(*small, inputs) - expected) / np.linalg.norm(expected)
        assert 0 < error < most
        assert not kernels & set(flattened(small[1:]))


@pytest.mark.parametrize(
    "model",
    [
        lambda rngs: an.models.MLP(784, (512, 512), 10, rngs=rngs),
        lambda rngs: an.models.RNN(28, 128, 10, rngs=rngs),
        lambda rngs: an.models.RNN(128, 256, 96, num_symbols=96, output="steps", rngs=rngs),
        lambda rngs: an.models.CNN((28, 28, 1), [32, 64], 10, rngs=rngs),
    ],
)
def test_networks_as_large_as_those_of_the_experiments_have_a_quarter_and_an_eighth_of_the_bytes(model):
    def num_bytes(model):
        shapes = jax.eval_shape(lambda: adapt(model).init(jax.random.key(0)))
        return sum(one.size * one.dtype.itemsize for one in jax.tree.leaves(shapes))

    module = model(rngs=nnx.Rngs(0))
    paths = [".".join(map(str, path)) for path, layer in nnx.iter_modules(module) if kernels_of(layer)]
    for bits, most in {8: 0.27, 4: 0.15, 16: 0.51}.items():
        small = Compressed(model, Compression(bits=dict.fromkeys(paths, bits)))
        assert num_bytes(small) < most * num_bytes(model)


def test_errors_are_made_up_for_by_the_rows_that_follow():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((500, 12)) @ rng.standard_normal((12, 40))  # features that depend on each other
    matrix = rng.standard_normal((40, 10))
    expected = inputs @ matrix

    def error(whole, scale):
        return np.linalg.norm(inputs @ (np.asarray(whole, np.float64) * np.asarray(scale)) - expected)

    for bits in (8, 4):
        assert error(*fitted(matrix, inputs.T @ inputs / 500, bits)) < 0.5 * error(*nearest(matrix, bits))


def test_the_change_of_outputs_is_told_by_layer_and_bits(trained):
    found = bit_sensitivity(*trained, input_moments(*trained, rows=24))
    assert set(found.layers) == set(quantizable(trained[0]))
    for (four, of_four), (eight, of_eight) in found.layers.values():
        assert (four, eight) == (4, 8) and 0 < of_eight < 0.1 * of_four < 0.02


def test_everything_understands_a_network_of_few_bits(trained, tmp_path):
    whole, params, state = trained
    inputs = whole.data.arrays["inputs"]
    small = quantize(whole, params, state, {"layers.0.linear": 8, "layers.1.linear": 4, "head": 16}, rows=24)
    experiment, params, state = small
    assert params["head"]["kernel"].dtype.name == "bfloat16"
    expected = outputs_of(*small, inputs)

    # In a run: what can be trained is, and the whole numbers stay.
    run = an.fit(experiment.replace(initial=params), progress=False)
    kept = jax.tree.map(lambda one: one.shape, run.model_state)
    assert kept == jax.tree.map(lambda one: one.shape, state)
    path = run.save(tmp_path / "small.accelnet")
    model = an.load(path)
    before = model.predict(inputs[:5])
    assert {model.weights[f"state.layers.{i}.linear.kernel"].dtype.name for i in (0, 1)} == {"int8", "uint8"}
    assert source_of_model(model).tolerance == 1e-2  # of an export: a number between two steps goes either way
    assert an.refresh(path) == "accelnet's own model, made again"
    chex.assert_trees_all_equal(before.values, an.load(path).predict(inputs[:5]).values)

    # Exported for any batch, by XLA's own operations: where a number lies between two, it can go either way.
    (batch,) = export.symbolic_shape("batch")
    program = export.export(jax.jit(lambda x: outputs_of(*small, x)), platforms=("cpu", "cuda", "tpu"))
    exported = program(jax.ShapeDtypeStruct((batch, 24), jnp.float32))
    chex.assert_trees_all_close(exported.call(inputs[:3]), expected[:3], atol=1e-2 * float(np.abs(expected).max()))

    # As members that share it and that do not, and as replicas.
    own = jax.tree.map(lambda one: jnp.stack([one, one]), (params, state))
    apply = jax.jit(jax.vmap(lambda w, x: outputs_of(experiment, *w, x), in_axes=(0, None)))
    chex.assert_trees_all_equal(apply(own, inputs)[1], jax.jit(lambda x: outputs_of(*small, x))(inputs))
    halves = inputs.reshape(2, ROWS // 2, -1)
    pmapped = jax.pmap(lambda x: outputs_of(*small, x))(halves)
    chex.assert_trees_all_close(pmapped.reshape(ROWS, -1), expected, rtol=1e-6, atol=1e-6)


def test_an_onnx_file_computes_the_same(trained):
    small = quantize(*trained, {"layers.0.linear": 8, "head": 4}, rows=24)
    (batch,) = export.symbolic_shape("batch")
    data = to_onnx(lambda x: outputs_of(*small, x), jax.ShapeDtypeStruct((batch, 24), jnp.float32))
    assert check_onnx(data, lambda x: outputs_of(*small, x), trained[0].data.arrays["inputs"][:7]).largest < 1e-5


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-2
    seed: int = 0


def test_a_population_and_replicas_train_what_is_left_to_train():
    model = quantize(experiment_of(mlp), *experiment_of(mlp).pure_model.init(jax.random.key(0)), 8, moments={})[0].model

    def made(config):
        return experiment_of(model).replace(optimizer=an.optim.adam(config.learning_rate), seed=config.seed)

    members = Population(made, Config(), grid((0,), learning_rate=(1e-2, 1e-3))).train(progress=False)
    assert len(members.members) == 2 and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(members.metrics["validation"]["loss"])
    )
    replicas = an.fit(made(Config()), mesh="data=8", strategy="pmap", progress=False)
    alone = an.fit(made(Config()), progress=False)
    chex.assert_trees_all_close(replicas.params, alone.params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nnx.Linear(20, 6, rngs=nnx.Rngs(0)), (3, 20)),
        (nnx.LinearGeneral((4, 5), (2, 3), axis=(-2, -1), rngs=nnx.Rngs(0)), (3, 4, 5)),
        (nnx.Conv(8, 6, (3, 3), strides=2, rngs=nnx.Rngs(0)), (2, 7, 7, 8)),
    ],
)
def test_what_is_trained_computes_what_is_stored(layer, inputs):
    x = jax.random.normal(jax.random.key(1), inputs)
    stored = quantized(layer, 4)(x)
    kernel = layer.kernel[...]
    training = rounded(layer, 4)
    chex.assert_trees_all_close(training(x), stored, rtol=1e-5, atol=1e-5)
    assert training.kernel[...] is kernel  # the parameter itself is not rounded
    graph, weights = nnx.split(training)
    gradient = jax.grad(lambda w: jnp.sum(nnx.merge(graph, w)(x) ** 2))(weights)
    assert float(jnp.abs(gradient["kernel"].get_value()).min()) > 0  # straight through, wherever it was rounded to


def test_training_with_rounded_weights_gives_more_than_rounding_afterwards(trained):
    whole, params, state = trained
    training = to_training(whole.replace(steps=100), 4)
    assert set(training.model.compression.rounded) == {"head", "layers.0.linear", "layers.1.linear"}
    run = an.fit(training.replace(initial=params), progress=False)
    small = to_stored(run.experiment, run.params, run.model_state)
    assert dict(small[0].model.compression.rounded) == {}
    inputs, targets = (whole.data.arrays[name][:24] for name in ("inputs", "targets"))

    def loss(outputs):
        return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(24), targets])

    stored = loss(outputs_of(*small, inputs))
    chex.assert_trees_all_close(
        loss(outputs_of(run.experiment, run.params, run.model_state, inputs)), stored, rtol=1e-4
    )
    assert stored < loss(outputs_of(*quantize(whole, params, state, 4, rows=24), inputs))


class Plain(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(linen.relu(linen.Dense(32)(x)))


@pytest.mark.slow  # of two runs
def test_a_linen_module_has_few_bits_too():
    run = an.fit(experiment_of(Plain(), steps=20), progress=False)
    whole = run.experiment, run.params, run.model_state
    inputs = whole[0].data.arrays["inputs"]
    assert set(bit_sensitivity(*whole, input_moments(*whole, paths=[".*"])).layers) == {"Dense_0", "Dense_1"}
    expected, scale = outputs_of(*whole, inputs), np.std(outputs_of(*whole, inputs))
    for bits, most in ((16, 0.01), (8, 0.03), (4, 0.3)):
        small = quantize(*whole, bits)
        assert np.std(outputs_of(*small, inputs) - expected) < most * scale
    assert small[2]["params"]["Dense_0"]["kernel"].dtype == np.uint8
    trained = an.fit(to_training(whole[0], 8).replace(initial=run.params), progress=False)
    rounds = trained.experiment, trained.params, trained.model_state
    stored = to_stored(*rounds)
    # The same whole numbers; sums in another order.
    np.testing.assert_allclose(outputs_of(*stored, inputs), outputs_of(*rounds, inputs), atol=1e-5)


def test_what_cannot_have_fewer_bits_is_refused_in_one_message(trained):
    whole, params, state = trained
    with pytest.raises(UserError, match=r"the layers middle cannot have fewer bits: head, layers.0.linear, layers"):
        quantize(whole, params, state, {"middle": 8})
    with pytest.raises(UserError, match="bits are 3, expected 16, 8 or 4"):
        quantize(whole, params, state, 3)
    with pytest.raises(UserError, match="no layer of the model rounds its weights"):
        to_stored(whole, params, state)
    with pytest.raises(UserError, match="a LayerNorm has no weights of 8 bits"):
        quantized(nnx.LayerNorm(3, rngs=nnx.Rngs(0)), 8)
    for other in (
        nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=nnx.Rngs(0)),
        nnx.Conv(8, 8, (3, 3), padding="CIRCULAR", rngs=nnx.Rngs(0)),
        nnx.Conv(1, 8, (3, 3), rngs=nnx.Rngs(0)),
    ):
        assert kernels_of(other) == {}
