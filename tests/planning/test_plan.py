"""Plans: what is answered without a compiler, with one, and for what cannot be answered."""

import dataclasses
import json

import jax
import jsonschema
import numpy as np
import optax
import pytest
from flax import linen

import accelnet as an
from accelnet.errors import UserError
from accelnet.ops import kernels
from accelnet.planning.compiled.export import export_program, lower_exported
from accelnet.planning.plan import plan
from accelnet.planning.planner import Planner
from accelnet.planning.targets.target import find_target
from accelnet.training.compiled import Program
from accelnet.training.program import prepare
from tests.planning.conftest import make_experiment

NUMBER = {"type": "number"}
SCHEMA = {
    "type": "object",
    "required": ["experiment", "steps", "batch_size", "flops", "targets", "run_leaves_out", "scaling", "choice"],
    "properties": {
        "targets": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "name", "devices", "fits", "memory", "flops_per_step", "step_seconds", "bottleneck", "collectives",
                    "usd_per_run", "run_seconds", "run_parts", "status", "reason", "mesh", "remedies", "missing",
                    "peaks",
                ],
                "properties": {
                    "memory": {
                        "type": ["object", "null"],
                        "required": ["total_bytes", "limit_bytes", "margin_bytes", "weights_bytes", "source"],
                    },
                    "step_seconds": {
                        "type": ["object", "null"],
                        "required": ["bound", "expected", "bounds", "limits", "labels", "source"],
                        "properties": {"bound": NUMBER, "expected": NUMBER},
                    },
                    "collectives": {"type": "array", "items": {"required": ["kind", "bytes", "count"]}},
                    "status": {"enum": ["ok", "does not fit", "failed"]},
                },
            },
        }
    },
}  # fmt: skip


def abstract(experiment, targets, **settings):
    return plan(experiment, targets, compile=False, progress=False, **settings)


def test_without_a_compiler_shapes_answer(experiment, tmp_path, monkeypatch):
    made = abstract(experiment, "v5e:2x2,h100,b200:8,cpu", workdir=tmp_path)
    assert [row.name for row in made.rows] == ["v5e:2x2", "h100", "b200:8", "cpu"]
    weights = 4 * (12 * 16 + 16 + 16 * 16 + 16 + 16 * 5 + 5)
    for row in made.rows:
        assert row.fits
        assert row.memory.source == "modelled"
        assert row.memory.weights == weights
        assert row.memory.optimizer >= 2 * weights
        assert 0 < row.time.bound <= row.time.expected
    document = json.loads((tmp_path / "plan.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document == json.loads(json.dumps(made.to_dict()))
    assert "<html" in (tmp_path / "plan.html").read_text()
    assert "limited by" in str(made) and max(map(len, str(made).splitlines())) <= 120
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, str(made).splitlines())) <= 60 and "left out at 60 columns: memory; limited by" in str(made)


def test_data_parallelism_exchanges_the_gradients(experiment):
    (row,) = abstract(experiment, "v5e:2x2").rows
    assert row.mesh == "data=4"
    (kernel,) = row.collectives
    assert (kernel.opcode, kernel.bytes, kernel.group) == ("all-reduce", row.memory.weights, 4)


def test_fsdp_cuts_the_state(experiment):
    wide = make_experiment(model=lambda rngs: an.models.MLP(12, (256, 256), 5, rngs=rngs))
    whole, cut = (abstract(wide, "v5e:2x2", mesh=mesh).rows[0] for mesh in ("data=-1", "fsdp=-1"))
    assert cut.memory.weights < 0.4 * whole.memory.weights
    assert {kernel.opcode for kernel in cut.collectives} >= {"all-gather", "reduce-scatter"}


def test_a_model_of_linen_and_any_optax_chain_can_be_planned():
    class Theirs(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(5)(linen.relu(linen.Dense(32)(x)))

    made = abstract(make_experiment(model=Theirs(), optimizer=optax.chain(optax.clip(1.0), optax.lion(1e-3))), "h100")
    assert made.rows[0].memory.weights == 4 * (12 * 32 + 32 + 32 * 5 + 5)


def test_what_does_not_fit_says_so():
    huge = make_experiment(model=lambda rngs: an.models.MLP(12, (120_000, 120_000), 5, rngs=rngs))
    row = abstract(huge, "v5e").rows[0]
    assert row.status == "does not fit"
    assert row.fits is False
    assert row.memory.total > row.memory.limit


def test_one_target_that_is_wrong_costs_its_row_alone(experiment):
    made = abstract(experiment, ["h100", "v5e:3x3", "h1000"])
    assert [row.status for row in made.rows] == ["ok", "failed", "failed"]
    assert "4x4" in made.rows[1].reason
    assert "h100" in made.rows[2].reason
    assert max(map(len, str(made).splitlines())) <= 120


@pytest.mark.parametrize(
    ("targets", "mesh", "message"),
    [
        ("h1000", None, "h100"),
        ("v5e:32x16", None, "16x16"),
        ("h100:3", None, "h100:2"),
        ("v5e:2x2", "data=3", "data=4"),
        ("h100:8", "data=8,fsdp=2", "data=8"),
        ("", None, "no target"),
    ],
)
def test_if_nothing_can_be_answered_it_is_one_message(experiment, targets, mesh, message):
    with pytest.raises(UserError, match=message):
        abstract(experiment, targets, mesh=mesh)


def test_a_target_that_is_named_twice_is_answered_once(experiment):
    made = abstract(experiment, " v5litepod-4, v5e:2x2,h100,h100:1,")
    assert [row.name for row in made.rows] == ["v5e:2x2", "h100"]


def test_a_batch_that_does_not_divide_names_one_that_does():
    with pytest.raises(UserError, match="32"):
        abstract(make_experiment(batch_size=30), "v5e:4x4")


def test_scaling_predicts_every_size_of_a_family(experiment):
    (family,) = abstract(experiment, "v5e:2x2").scaling
    points = family["points"]
    assert [point["devices"] for point in points] == [1, 4, 8, 16, 32, 64, 128, 256]
    assert points[0]["fixed_global"]["efficiency"] == pytest.approx(1.0)
    efficiencies = [point["fixed_global"]["efficiency"] for point in points if "fixed_global" in point]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert points[0]["communication_batch"] is None
    assert points[-1]["communication_batch"] > 1
    # More devices than examples: nothing to share.
    assert "fixed_global" not in points[-1]


def test_a_budget_chooses(experiment):
    made = abstract(experiment, "v5e,h100", budget_usd=100.0, deadline_hours=1.0)
    assert made.choice["cheapest"] in ("v5e:1x1", "h100:1", "h100")
    assert "To rent" in str(made)


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_compiled(experiment, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        plan(experiment, "no target", workdir=tmp_path / "file" / "plan", progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_prices_of_ones_own_count(experiment, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text("[accelerators.h100]\nusd_per_chip_hour = 1000.0\n")
    (dear,) = abstract(experiment, "h100", targets_file=own).rows
    (listed,) = abstract(experiment, "h100").rows
    assert dear.usd_per_run == pytest.approx(listed.usd_per_run * 1000 / listed.target.accelerator.usd_per_chip_hour)


# With a compiler: the CPU's is always here.


def test_the_exported_program_is_the_very_program(experiment):
    feed, programs = prepare(experiment)
    exported = export_program(programs.train, {}, ["cpu"])
    compiled = lower_exported(exported, jax.devices("cpu"), None).compile()
    names = ("argument", "output", "alias", "temp")
    ours, theirs = programs.train.compiled.memory_analysis(), compiled.memory_analysis()
    for name in names:
        assert getattr(ours, f"{name}_size_in_bytes") == getattr(theirs, f"{name}_size_in_bytes")
    state, operand = programs.init(np.uint32(0)), feed.train_operand(0, 2)
    operands = jax.tree.leaves((state, operand, np.int32(2), np.bool_(True)))
    results = compiled(*[np.asarray(leaf) for leaf in operands])
    expected = jax.tree.leaves(programs.train(state, operand, np.int32(2), np.bool_(True)))
    for a, b in zip(jax.tree.leaves(results), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_arguments_whose_buffers_are_reused_may_stand_anywhere():
    array = jax.ShapeDtypeStruct((2,), np.float32)
    operands = (array, {"a": array, "b": array})
    program = Program("add", lambda x, tree: jax.tree.map(lambda y: x + y, tree), operands, donate=(1,))
    assert export_program(program, {}, ["cpu"]).donated == (1, 2)


@pytest.mark.skipif(not kernels.load(), reason="no C++ compiler: the CPU's program is XLA's own")
def test_the_cpus_program_calls_its_kernels_and_they_have_their_operations():
    planner = Planner(make_experiment("rnn"), None)
    case = planner.case(find_target("cpu"))
    planner.compile([case])
    calls = [kernel for kernel in case.compiled["train"].ops if kernel.call]
    targets = {"accelnet_multiply", "accelnet_recur", "accelnet_recur_backward"}
    assert {kernel.call.target for kernel in calls} == targets
    # Taking rows is no product, and does not read the whole data set.
    gathers = [kernel for kernel in case.compiled["train"].ops if kernel.kind == "gather"]
    assert max(kernel.bytes for kernel in gathers) == 2 * 32 * 7 * 6 * 4
    (forward,) = (kernel for kernel in calls if kernel.call.target == "accelnet_recur")
    # Seven steps of [32, 16] times [16, 4 x 16].
    assert sum(product.flops for product in forward.products) == 7 * 2 * 32 * 16 * 64
    assert planner.row(case).memory.source == "compiled"


@pytest.mark.parametrize("settings", [{}, {"remat": "blocks", "microbatch_size": 16}], ids=str)
def test_the_time_of_a_step_is_told_by_layers_and_parts(settings):
    planner = Planner(make_experiment("cnn", **settings), None)
    case = planner.case(find_target("cpu"))
    planner.compile([case])
    labels = {op.label for op in case.compiled["train"].ops}
    assert labels >= {"Conv", "BatchNorm", "Linear", "loss", "optimizer", "input"}
    # What explains a failure does not count.
    assert "failure" not in {op.label for op in case.compiled["train"].ops if op.kind == "reduction"}
    assert {op.label for op in case.compiled["eval"].ops} >= {"Conv", "Linear", "loss", "input"}


@pytest.mark.slow
def test_a_cpu_mesh_compiles_with_its_exchanges(experiment):
    planner = Planner(experiment, "data=2")
    target = dataclasses.replace(find_target("cpu"), num_chips=2)
    case = planner.case(target)
    planner.compile([case])
    row = planner.row(case)
    assert row.memory.source == "compiled"
    assert row.memory.temporaries is not None
    gradients = sum(kernel.bytes * kernel.count for kernel in row.collectives if kernel.group == 2)
    # Gradients, the loss, and the metrics' sums.
    assert row.memory.weights <= gradients <= row.memory.weights + 64
