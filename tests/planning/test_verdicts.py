"""Whether a run fits, as a compiler says it, and why a compiler cannot be asked."""

import jax
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.planning.compiled.compile import Compiled, _checked, foreign_calls
from accelnet.planning.compiled.worker import _failure, allocated_bytes
from accelnet.planning.plan import plan
from accelnet.planning.planner import Planner
from accelnet.planning.rows import device_total
from accelnet.planning.targets import compilers
from accelnet.planning.targets.compilers import missing_compiler
from accelnet.planning.targets.target import find_target
from tests.planning.conftest import make_experiment, needs, random_data


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


class Bag(nnx.Module):
    """A table of which each batch takes rows, some of them many times."""

    def __init__(self, *, rngs):
        self.table, self.head = nnx.Embed(50, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.table(tokens).mean(1))


@pytest.mark.slow
@pytest.mark.plan
@needs("cuda")
def test_a_deterministic_program_of_a_gpu_sorts_what_it_scatters():
    tokens = np.arange(512 * 6).reshape(512, 6) % 50
    data = an.data.from_arrays(tokens.astype(np.int32), np.arange(512) % 3, num_classes=3)
    plain = make_experiment(data=data, model=Bag, batch_size=64)
    planner = Planner(plain, None)
    cases = [planner.case(find_target("h100"), one) for one in (plain, plain.replace(deterministic=True))]
    planner.compile(cases)
    sorts = [sum("sort" in op.opcode for op in case.program("train").ops) for case in cases]
    assert sorts[1] > sorts[0]
    assert [case.program("train").status for case in cases] == ["ok", "ok"]


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
