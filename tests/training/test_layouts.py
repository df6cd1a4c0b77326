"""The same numbers on every layout: devices, strategies, accumulation, and where weights lie."""

import collections
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import PartitionSpec

import accelnet as an
from accelnet.parallel.layout import SAME, Layout, abstract_layout
from accelnet.parallel.mesh import make_mesh, parse_mesh
from accelnet.training.program import prepare
from accelnet.training.state import init_state
from accelnet.training.step import make_train_step
from accelnet.training.table import placement_table
from tests.training.conftest import CUT

pytestmark = pytest.mark.usefixtures("shared_programs", "no_pictures")

# Sums over a batch are taken in another order, and that is all. Not with Adam here: a bias in front of batch statistics
# has a gradient of rounding alone, which Adam makes as large as any other.
RTOL = 1e-5
SGD = optax.chain(optax.clip_by_global_norm(1.0), an.optim.momentum(0.02), an.optim.average_params(0.9))


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
def busy(make_experiment):
    """Dropout, augmentation, batch statistics, averaged weights, and a last batch of each epoch that is not full."""
    return make_experiment(
        steps=20,
        log_every=an.Every(steps=1),
        optimizer=SGD,
        sharding_rules=CUT,
    )


@pytest.fixture(scope="module")
def one(busy, shared_programs):
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
def parts(busy):
    return busy.replace(microbatch_size=4)


@pytest.fixture(scope="module")
def one_of_parts(parts, shared_programs):
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


def exchanges(text):
    """List (operation, bytes, whether inside a loop of microbatches) of a compiled program."""
    sizes = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}
    found = []
    for line in text.splitlines():
        match = re.match(
            r"\s*(?:ROOT )?%\S+ = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", line
        )
        if match:
            shapes = re.findall(r"(f32|s32|u32|pred|bf16)\[([\d,]*)\]", match[1])
            count = sum(sizes[kind] * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in shapes)
            found.append((match[2], count, line.count("while/body")))
    return found


def train_text(experiment, mesh, **options):
    _, programs = prepare(experiment, mesh_of(mesh), **options)
    return exchanges(programs.train.compiled.as_text()), programs


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("strategy", "micro"), [("jit", None), ("jit", 8), ("pmap", 8)])
def test_data_parallelism_reduces_the_gradients_once_a_step_and_gathers_nothing(
    make_experiment, plain_model, strategy, micro
):
    experiment = make_experiment(model=plain_model, batch_size=16, microbatch_size=micro)
    found, programs = train_text(experiment, "data=4", strategy=strategy)
    assert {operation for operation, _, _ in found} == {"all-reduce"}
    grads, metrics = bytes_of(programs.abstract_state.params), bytes_of(programs.abstract_state.metrics)
    # Beside the gradients: the metrics' sums, and the loss and its weight where XLA does not find them among those.
    assert grads + metrics <= sum(size for _, size, _ in found) <= grads + metrics + 8
    # One loop around it, that of the steps; a microbatch's would be a second.
    assert {depth for _, size, depth in found if size >= grads // 2} == {1}


def test_fsdp_gathers_every_cut_parameter_once_and_scatters_its_gradient_once(make_experiment):
    experiment = make_experiment(
        model=lambda rngs: an.models.MLP(16, (64, 64, 64), 3, rngs=rngs),
        batch_size=16,
        microbatch_size=8,
        optimizer=an.optim.adam(1e-3),
    )
    found, programs = train_text(experiment, "data=2,fsdp=4")
    cut = [leaf for leaf in jax.tree.leaves(programs.abstract_state.params) if "fsdp" in leaf.sharding.spec]
    assert len(cut) == 2
    gathered = sorted(size for operation, size, _ in found if operation == "all-gather")
    scattered = sorted(size for operation, size, _ in found if operation == "reduce-scatter")
    assert gathered == sorted(bytes_of(leaf) for leaf in cut)
    assert scattered == sorted(bytes_of(leaf) // 4 for leaf in cut)
    assert {operation for operation, _, _ in found} == {"all-gather", "reduce-scatter", "all-reduce"}
    assert {depth for operation, _, depth in found if operation != "all-reduce"} == {1}


def test_a_mesh_of_one_device_costs_nothing(busy):
    def instructions(mesh):
        _, programs = prepare(busy, mesh)
        lines = (
            re.match(r"\s*(?:ROOT )?\S+ = (\S+ [\w-]+)\(", line)
            for line in programs.train.compiled.as_text().splitlines()
        )
        return collections.Counter(match[1] for match in lines if match)

    assert instructions(mesh_of("data=1")) == instructions(None)


def test_members_of_a_population_train_on_a_mesh_as_alone(make_experiment, plain_model):
    experiment = make_experiment(model=plain_model, optimizer=an.optim.momentum(0.05), sharding_rules=CUT)

    def train(mesh):
        layout = Layout() if mesh is None else Layout(mesh_of(mesh), rules=tuple(CUT))
        feed, _ = prepare(experiment, None if mesh is None else mesh_of(mesh))
        step, operand = make_train_step(experiment, layout), feed.train_operand(0, 1)

        def microbatch(operand, number, part):
            data, step, seed = operand
            return feed.train_batch(data, 0, step, number, seed, part)

        def member(state):
            return step(state, microbatch, (operand, state.step, state.seed), (feed.train_spec, SAME, SAME))[:2]

        advance = jax.jit(jax.vmap(member))
        states = jax.jit(jax.vmap(lambda seed: init_state(experiment, seed)))(jnp.arange(3, dtype=jnp.uint32))
        curves = []
        for _ in range(5):
            states, losses = advance(states)
            curves.append(losses)
        assert layout.num_parts == (1 if mesh is None else 4)
        return np.array(curves)

    alone = train(None)
    for mesh in ("data=4", "data=2,fsdp=2"):
        np.testing.assert_allclose(train(mesh), alone, rtol=RTOL)


@pytest.mark.slow
def test_with_fsdp_a_devices_share_of_the_state_falls_with_their_number(make_experiment):
    experiment = make_experiment(
        model=lambda rngs: an.models.MLP(16, (256, 256), 3, rngs=rngs), optimizer=an.optim.adam(1e-3), batch_size=8
    )

    def share(mesh):
        _, programs = prepare(experiment, mesh_of(mesh))
        state = programs.init(np.uint32(0))
        first = jax.devices()[0]
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves((state.params, state.opt_state))
            for shard in leaf.addressable_shards
            if shard.device == first
        )
        return held / bytes_of((state.params, state.opt_state))

    assert share("data=2") == 1
    # Biases, the head and scalars stay whole: 3 % of this model.
    for parts in (2, 8):
        assert share(f"fsdp={parts}") == pytest.approx(1 / parts, abs=0.03)


def test_the_table_says_what_lies_where_and_why(make_experiment):
    experiment = make_experiment(model=lambda rngs: an.models.MLP(16, (512, 512), 3, rngs=rngs))
    state = jax.eval_shape(lambda: init_state(experiment, 0))
    text = placement_table(abstract_layout("data=64,fsdp=8"), state)
    assert "mesh data=64,fsdp=8, a batch in 512 parts" in text
    assert re.search(r"layers.1.linear.kernel +512,512 +fsdp +131,072 +its largest axis on fsdp", text)
    assert re.search(r"head.bias +3 +nothing +12 +3 numbers, fsdp cuts from 4,096 on", text)
    numbers = (16 + 1 + 3) * 512 + 512 + 3, 512 * 512  # whole on every device (layers.0.kernel apart), and cut
    whole, cut = numbers[0] - 16 * 512, numbers[1] + 16 * 512
    assert f"weights: {4 * (whole + cut // 8):,} of {4 * (whole + cut):,} bytes on each of 512 devices" in text


# Mistakes.


@pytest.mark.parametrize(
    ("changes", "mesh", "strategy", "message"),
    [
        ({"batch_size": 9}, "data=4", "jit", r"batch_size 9 does not divide into 4 parts, .*: take 8 or 12"),
        ({"microbatch_size": 6}, "data=4", "jit", r"microbatch_size 6 does not divide into 4 parts.*take 4 or 8"),
        ({}, "data=4,model=2", "pmap", r"pmap keeps all weights .* the mesh is data=4,model=2: give --mesh data=8"),
        ({}, "data=4,tensor=2", "jit", "the mesh has an axis 'tensor' that no sharding rule names"),
        ({"sharding_rules": [("frist.*", PartitionSpec("model"))]}, "data=8", "jit", "'frist.*' matches none of the"),
        ({"sharding_rules": [("first.bias", PartitionSpec(None, "model"))]}, "model=2", "jit", "cuts 2 axes"),
        ({"sharding_rules": [("(first", PartitionSpec("model"))]}, "data=8", "jit", "no regular expression"),
    ],
)
def test_a_layout_that_cannot_be_is_one_message(make_experiment, changes, mesh, strategy, message):
    with pytest.raises(an.UserError, match=message):
        fit(make_experiment(steps=2, **changes), mesh, strategy=strategy)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=3", "takes 3 devices, and there are 8: give sizes whose product is 8, such as --mesh data=8"),
        ("data=-1,model=3", "takes multiples of 3 devices, and there are 8"),
        ("data", "expected axes and their sizes"),
        ("data=2,data=4", "each axis once"),
        ("data=0", "expected axes and their sizes"),
        ("data=-1,model=-1", "at most one size of -1"),
    ],
)
def test_a_mesh_that_does_not_match_the_devices_is_one_message(make_experiment, mesh, message):
    with pytest.raises(an.UserError, match=message):
        an.fit(make_experiment(steps=2), mesh=mesh, progress=False)


def test_auto_takes_all_devices(make_experiment):
    _, programs = prepare(make_experiment(), "auto")
    assert dict(jax.tree.leaves(programs.init(np.uint32(0)).params)[0].sharding.mesh.shape) == {"data": 8}


def test_layout_without_a_mesh_is_one_device():
    assert Layout().num_parts == 1 and Layout().described == "one device"
