"""Plans: what is answered without a compiler, with one, and for what cannot be answered."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import jsonschema
import numpy as np
import optax
import pytest
from flax import linen

import accelnet as an
from accelnet.errors import UserError
from accelnet.ops import kernels
from accelnet.planning.compiled.compile import Compiled, _checked, compile_all, foreign_calls
from accelnet.planning.compiled.export import export_program, lower_exported
from accelnet.planning.compiled.worker import _failure, allocated_bytes
from accelnet.planning.plan import plan
from accelnet.planning.planner import Planner
from accelnet.planning.rows import device_total
from accelnet.planning.targets import compilers
from accelnet.planning.targets.compilers import missing_compiler
from accelnet.planning.targets.target import find_target
from accelnet.training.compiled import Program
from accelnet.training.program import prepare
from tests.planning.conftest import make_experiment, needs, random_data

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


def test_a_compiler_that_crashes_costs_its_row_alone(experiment, monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'F0000 something is very wrong' >&2\nkill -SEGV $$\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))
    (row,) = plan(experiment, "cpu", progress=False).rows
    assert row.status == "ok"  # shapes still answer
    assert row.memory.source == "modelled"
    assert "something is very wrong" in row.missing


def test_a_compiler_that_takes_too_long_is_ended(experiment, monkeypatch, tmp_path):
    fake, mark = tmp_path / "python", tmp_path / "pid"
    fake.write_text(f"#!/bin/sh\necho $$ > {mark}\nexec sleep 600\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))
    _, programs = prepare(experiment)
    job = ("cpu", find_target("cpu"), [export_program(programs.train, {}, ["cpu"])])
    compiled = compile_all([job], time_limit=1.0)["cpu"]["train"]
    assert compiled.status == "failed"
    assert "more than 1 s" in compiled.reason
    deadline = time.monotonic() + 10
    while Path(f"/proc/{mark.read_text().strip()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{mark.read_text().strip()}").exists()


def test_missing_extras_name_the_command(experiment, monkeypatch):
    monkeypatch.setattr(compilers, "_version", lambda name: None)
    made = plan(experiment, "v5e,h100", progress=False)
    assert all(row.status == "ok" and row.memory.source == "modelled" for row in made.rows)
    assert made.rows[0].missing.endswith('pip install "accelnet[plan-tpu]"')
    assert made.rows[1].missing.endswith('pip install "accelnet[plan-cuda]"')
    text = " ".join(str(made).split())
    assert all(row.missing in text for row in made.rows)


def test_a_libtpu_that_does_not_match_names_the_command(monkeypatch):
    monkeypatch.setattr(compilers, "_version", lambda name: "0.0.1")
    monkeypatch.setattr(compilers, "_pinned", lambda name: "0.0.42.*")
    assert f'pip install "jax[tpu]=={jax.__version__}"' in missing_compiler("tpu")


def test_a_refusal_by_the_compiler_is_a_verdict(experiment):
    planner = Planner(experiment, None)
    case = planner.case(find_target("v5e"))
    case.compiled = {"train": Compiled("too large", "RESOURCE_EXHAUSTED: …", required_bytes=20 << 30)}
    assert not case.fits
    row = planner.row(case)
    assert (row.status, row.memory.total) == ("does not fit", 20 << 30)


def counted(status, size=None, required=None):
    memory = None if size is None else {"argument": 10, "output": 5, "alias": 5, "temp": size - 10}
    return Compiled(status, memory=memory, required_bytes=required)


@pytest.mark.parametrize("rules", [True, False])
@pytest.mark.parametrize(
    ("train", "evaluation", "total", "source"),
    [
        (counted("ok", 60), counted("ok", 70), 70, "compiled"),
        (counted("ok", 100), counted("ok", 20), 100, "compiled"),
        (counted("too large", required=130), counted("ok", 20), 130, "compiled"),
        (counted("too large", required=100), counted("ok", 20), 101, "compiled"),  # told in rounded figures
        (counted("ok", 60), counted("too large"), 101, "compiled"),
        (counted("too large"), counted("too large"), 101, "modelled"),
        (counted("failed"), counted("ok", 20), 80, "modelled"),
        (counted("ok", 60), counted("failed"), 60, "compiled"),
        (counted("ok"), counted("ok"), 80, "modelled"),
        (None, None, 80, "modelled"),
    ],
)
def test_bytes_and_verdict_agree(train, evaluation, total, source, rules):
    programs = {} if train is None else {"train": train, "eval": evaluation}
    found = device_total(programs, 80, 100, rules=rules)
    assert found[:2] == (total, source)
    refused = any(program.status == "too large" for program in programs.values())
    assert (found[0] <= 100) != refused


def test_what_a_tpus_compiler_took_fits_whatever_its_statistics_add_up_to():
    """4 x 1,000 LSTM, 100 steps, batch 1,024 on a v5e: taken, and "temp" is more than there is."""
    case = Planner(make_experiment(), None).case(find_target("v5e"))
    count = {"argument": 803226112, "output": 393621504, "alias": 393616896, "temp": 21737084416, "generated_code": 0}
    case.compiled = {"train": Compiled("ok", memory=count), "eval": Compiled("ok", memory=count | {"temp": 1})}
    memory = case.memory()
    assert case.fits and memory.fits
    assert (memory.total, memory.source, memory.temporaries) == (memory.limit, "accepted", None)
    assert memory.to_dict()["margin_bytes"] == 0
    # A GPU's compiler refuses nothing: there the count decides.
    case = Planner(make_experiment(), None).case(find_target("t4"))
    case.compiled = {"train": Compiled("ok", memory=count)}
    assert not case.fits
    assert case.memory().to_dict()["margin_bytes"] < 0


def test_a_tpus_bytes_are_those_that_its_allocator_reports():
    report = "Memory Space: default (color=0)\nTotal bytes: {} (1GiB)\nMemory Space: vmem (color=1)\nTotal bytes: 9"
    assert allocated_bytes([report.format(500), report.format(13932350464)]) == 13932350464
    assert allocated_bytes([]) is None
    assert allocated_bytes(["something else"]) is None


def test_what_a_tpus_compiler_requires_is_read_from_its_refusal():
    told = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.32G) exceeds "
        "available HBM (15.75G)."
    )
    failure = _failure(told)
    assert (failure.status, failure.required_bytes) == ("too large", int(16.32 * 2**30))
    older = "RESOURCE_EXHAUSTED: The required memory is too much. Used 18.48G of 15.75G hbm."
    assert _failure(older).required_bytes == int(18.48 * 2**30)
    assert _failure("INTERNAL: broken").status == "failed"


@pytest.mark.slow
@pytest.mark.plan
@needs("tpu")
def test_a_row_that_fits_never_has_a_negative_margin():
    inputs = np.broadcast_to(np.zeros((1, 100, 1000), np.float32), (1024, 100, 1000))
    experiment = make_experiment(
        data=an.data.from_arrays(
            inputs, np.arange(1024) % 10, num_classes=10, validation=0.0, test=0.0, normalize=False
        ),
        model=lambda rngs: an.models.RNN(1000, 2000, 10, cell="lstm", num_layers=2, rngs=rngs),
        batch_size=1024,
        on_device=False,
    )
    (row,) = plan(experiment, "v5e", progress=False, remedies=False).rows
    assert (row.status, row.memory.source) == ("ok", "compiled")
    assert 10 << 30 < row.memory.total < row.memory.limit
    assert row.memory.arguments + row.memory.results + row.memory.temporaries == row.memory.total


@pytest.mark.slow
@pytest.mark.plan
@needs("tpu", "cuda")
@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("mlp", ["v4:2x2x1", "v5p:2x2x1", "h100:8"]),
        ("cnn", ["v5e:16x16", "v6e:2x2", "a100"]),
        ("rnn", ["tpu7x:2x2x1", "b200"]),
    ],
)
def test_every_generation_compiles_a_family_and_each_family_goes_to_both_compilers(family, names):
    made = plan(make_experiment(family, batch_size=256, data=_rows(family)), names, progress=False)
    for row in made.rows:
        assert (row.name, row.status, row.missing) == (row.name, "ok", "")
        assert row.memory.source == "compiled"
        assert row.eval_seconds > 0
        if row.target.num_devices > 1:
            sent = sum(kernel.bytes * kernel.count for kernel in row.collectives)
            assert sent >= row.memory.weights


def _rows(family):
    shape = {"mlp": (12,), "cnn": (8, 8, 1), "rnn": (7, 6)}[family]
    return random_data(*shape, rows=512)


@pytest.mark.slow
@pytest.mark.plan
@needs("tpu")
def test_the_verdict_is_the_compilers_around_the_limit():
    """What shapes and compiled sizes say, and what the compiler itself refuses, on both sides of the limit."""

    def sized(batch):
        return make_experiment(
            "mlp", data=random_data(64, rows=8 * 1024), batch_size=batch, on_device=False,
            model=lambda rngs: an.models.MLP(64, (16_384,) * 4, 5, rngs=rngs),
        )  # fmt: skip

    rows = [plan(sized(batch), "v5e", progress=False, remedies=False).rows[0] for batch in (64, 4096)]
    assert [row.missing for row in rows] == ["", ""]
    assert [row.memory.total <= row.memory.limit for row in rows] == [row.status == "ok" for row in rows]


def test_a_program_that_calls_another_platforms_code_is_refused():
    assert foreign_calls("cuda", ["__cudnn$convForward", "__cublas$gemm"]) == []
    assert foreign_calls("cpu", ["__cudnn$convForward"]) == ["__cudnn$convForward"]
    checked = _checked(Compiled("ok", custom_calls=("__onednn$matmul",)), "tpu")
    assert checked.status == "failed"
    assert "__onednn$matmul" in checked.reason


def test_a_target_that_does_not_exist_is_refused_before_anything_is_measured(capsys, monkeypatch):
    from accelnet.cli import main
    from experiments.digits_mlp import experiment

    monkeypatch.setattr("accelnet.planning.plan.measure_step", lambda *_args, **_named: pytest.fail("measured"))
    monkeypatch.setattr("accelnet.planning.plan.Planner", lambda *_args, **_named: pytest.fail("planned"))
    for options in ([], ["--measure"]):
        with pytest.raises(SystemExit) as ended:
            main(experiment, ["plan", "--targets", "v5f", *options])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert "'v5f' is no target that is known (did you mean v5" in told


def test_prove_refuses_what_it_would_ignore(capsys):
    from accelnet.cli import main
    from experiments.digits_mlp import experiment

    with pytest.raises(SystemExit) as ended:
        main(experiment, ["plan", "--prove", "--targets", "v5e", "--budget", "3usd"])
    assert ended.value.code == 2
    assert "--targets, --budget" in capsys.readouterr().err
