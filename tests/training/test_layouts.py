"""The same numbers on every layout: devices, strategies, accumulation, and where weights lie."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import accelnet as an
from accelnet.parallel.mesh import make_mesh, parse_mesh
from accelnet.training.program import prepare
from tests.training.conftest import SGD

pytestmark = pytest.mark.usefixtures("no_pictures")

# Sums over a batch are taken in another order, and that is all.
RTOL = 1e-5


def mesh_of(text):
    axes = parse_mesh(text)
    return make_mesh(axes, jax.devices()[: math.prod(axes.values())])


def fit(experiment, mesh=None, **options):
    return an.fit(experiment, progress=False, mesh=None if mesh is None else mesh_of(mesh), **options)


def losses(run):
    return np.array([row["loss"] for row in run.rows if row["split"] == "train"])


def trained(experiment, layout=None):
    """Train without evaluating: the losses of all steps, and the state."""
    where = on(layout)
    feed, programs = prepare(experiment, layout and mesh_of(where["mesh"]), where.get("strategy", "jit"))
    state, curve = programs.init(np.uint32(experiment.seed)), []
    for step in range(experiment.total_steps):
        state, report = programs.train(state, feed.train_operand(step, 1), np.int32(1), np.bool_(True))
        curve.append(float(report["loss"]))
    feed.close()
    return np.array(curve), state


@pytest.fixture(scope="module")
def one(busy):
    return fit(busy)


# Every test of `busy` takes of these, whose programs are compiled once.
LAYOUTS = (None, "data=4", "model=2", "data=2,fsdp=2", "data=2,fsdp=2,model=2", "pmap")


def on(layout):
    return {"mesh": "data=4", "strategy": "pmap"} if layout == "pmap" else {"mesh": layout}


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_the_loss_curve_is_that_of_one_device(busy, one, layout):
    many = fit(busy, **on(layout))
    np.testing.assert_allclose(losses(many), losses(one), rtol=RTOL)
    for split, metrics in one.metrics.items():
        assert many.metrics[split] == pytest.approx(metrics, rel=RTOL), split
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=RTOL, atol=1e-6),
        many.state.model_state,
        one.state.model_state,
    )


@pytest.fixture(scope="module")
def one_of_parts(parts):
    return fit(parts)


# With the test above: every two of layout, accumulation and streaming together.
@pytest.mark.parametrize(("layout", "on_device"), [("data=4", False), ("data=2,fsdp=2", True), ("pmap", False)])
def test_accumulation_and_streaming_keep_the_loss_curve(parts, one_of_parts, layout, on_device):
    many = fit(parts.replace(on_device=on_device), **on(layout))
    np.testing.assert_allclose(losses(many), losses(one_of_parts), rtol=RTOL)
    assert many.metrics["test"] == pytest.approx(one_of_parts.metrics["test"], rel=RTOL)


def test_full_batch_descent_pads_the_batch_to_the_devices(make_experiment, plain_model, make_data):
    experiment = make_experiment(
        model=plain_model, data=make_data(augment=False), batch_size="full", steps=5, optimizer=an.optim.sgd(0.1)
    )
    one, _ = trained(experiment)
    for layout in ("data=4", "fsdp=4", "pmap"):
        np.testing.assert_allclose(trained(experiment, layout)[0], one, rtol=RTOL)


@pytest.mark.parametrize(("precision", "rtol"), [("bfloat16", 2e-2), ("float16", 5e-3)])
def test_low_precision_trains_alike_on_devices(make_experiment, precision, rtol):
    # A sum of 8 or 11 bits rounds at every addition, and where it is cut differs. The seventh batch is left out: of its
    # two examples, without padding, batch statistics make +1 and -1, or, where both are nearly the same, of rounding.
    experiment = make_experiment(precision=precision, steps=6)
    np.testing.assert_allclose(trained(experiment, "data=2")[0], trained(experiment)[0], rtol=rtol)


class _Linen(linen.Module):
    @linen.compact
    def __call__(self, inputs, train):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(12)(inputs.reshape(inputs.shape[0], -1)))
        return linen.Dense(3)(linen.Dropout(0.2, deterministic=not train)(linen.relu(x)))


def test_a_linen_module_has_global_batch_statistics_and_the_noise_of_one_device(make_experiment):
    experiment = make_experiment(model=_Linen(), steps=8)
    np.testing.assert_allclose(trained(experiment, "data=2")[0], trained(experiment)[0], rtol=RTOL)


@pytest.mark.slow
def test_a_metric_that_does_not_add_up_is_merged_over_devices(make_experiment):
    class Largest(an.objectives.Metric):
        def empty(self):
            return {"largest": jnp.full((), -jnp.inf, jnp.float32)}

        def measure(self, outputs, batch, losses, weights):
            return {"largest": jnp.max(jnp.where(weights > 0, losses, -jnp.inf))}

        def merge(self, a, b):
            return {"largest": jnp.maximum(a["largest"], b["largest"])}

        def compute(self, state):
            return state["largest"]

    loss = an.objectives.softmax_cross_entropy()
    experiment = make_experiment(
        objective=an.objectives.Objective(loss.loss, {"largest": Largest()}), steps=7, optimizer=SGD
    )
    one = fit(experiment)
    for strategy in ("jit", "pmap"):
        many = fit(experiment, "data=2", strategy=strategy)
        for split in one.metrics:
            assert many.metrics[split]["largest"] == pytest.approx(one.metrics[split]["largest"], rel=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda rngs: an.models.MLP(16, (64, 64), 3, norm="batch", dropout=0.1, rngs=rngs),
        lambda rngs: an.models.CNN((4, 4, 1), (24, 24), 3, norm="batch", rngs=rngs),
        lambda rngs: an.models.RNN(4, 40, 3, cell="gru", rngs=rngs),
    ],
    ids=["mlp", "cnn", "rnn"],
)
def test_the_default_rules_cut_accelnets_models_and_change_no_number(make_experiment, model):
    experiment = make_experiment(model=model, steps=5, optimizer=an.optim.adam(1e-3))
    (one, _), (many, state) = trained(experiment), trained(experiment, "fsdp=2,model=2")
    np.testing.assert_allclose(many, one, rtol=RTOL)
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params)}
    assert any("model" in spec for spec in specs) and any("fsdp" in spec for spec in specs)


# Elastic: a checkpoint of any layout goes on in any other.


class Killed(Exception):
    pass


def die(moment):
    raise Killed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_wanders_over_random_layouts_and_keeps_its_loss_curve(busy, one, tmp_path, seed):
    rng = np.random.default_rng(seed)
    for step in np.sort(rng.choice(np.arange(1, 20), 2, replace=False)):
        with pytest.raises(Killed):
            fit(
                busy,
                **on(LAYOUTS[rng.integers(len(LAYOUTS))]),
                workdir=tmp_path,
                resume=True,
                events=[an.Event(an.Every(steps=int(step)), die)],
            )
    many = fit(busy, **on(LAYOUTS[rng.integers(len(LAYOUTS))]), workdir=tmp_path, resume=True)
    np.testing.assert_allclose(losses(many), losses(one), rtol=RTOL)
    assert many.metrics["test"] == pytest.approx(one.metrics["test"], rel=RTOL)


@pytest.mark.parametrize("layout", ["data=4", "data=2,fsdp=2", "pmap"])
def test_on_its_own_layout_a_run_goes_on_to_the_same_bits(busy, tmp_path, layout):
    whole = fit(busy, **on(layout))
    with pytest.raises(Killed):
        fit(busy, **on(layout), workdir=tmp_path, events=[an.Event(an.Every(steps=17), die)])
    again = fit(busy, **on(layout), workdir=tmp_path, resume=True)
    chex.assert_trees_all_equal(again.state, whole.state)
    assert again.metrics == whole.metrics and losses(again).tolist() == losses(whole).tolist()


@pytest.mark.slow
def test_a_run_on_a_mesh_is_evaluated_on_one_device(busy, tmp_path):
    run = fit(busy, "data=2,fsdp=2", workdir=tmp_path)
    metrics = an.evaluate(busy, tmp_path).metrics
    assert metrics["test"] == pytest.approx(run.metrics["test"], rel=RTOL)
    inputs = busy.data.arrays["inputs"][:5]
    assert run.predict(inputs).shape == (5, 3) and isinstance(run.model, nnx.Module)


# What the compiled programs exchange.


# Mistakes.
