"""What lies where, what devices exchange in a step, and layouts that cannot be."""

import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import accelnet as an
from accelnet.parallel.layout import SAME, Layout, abstract_layout
from accelnet.training.program import prepare
from accelnet.training.state import init_state
from accelnet.training.step import make_train_step
from accelnet.training.table import placement_table
from tests.training.conftest import CUT
from tests.training.test_layouts import RTOL, fit, mesh_of

pytestmark = pytest.mark.usefixtures("no_pictures")


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
