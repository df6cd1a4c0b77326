"""What would make an experiment fit: what is tried, and what of it is told."""

import dataclasses

import pytest

from accelnet.planning.compiled.compile import Compiled
from accelnet.planning.plan import plan
from accelnet.planning.planner import Planner
from accelnet.planning.remedies import find_remedies
from accelnet.planning.targets.target import find_target
from tests.planning.conftest import make_experiment, random_data

pytestmark = pytest.mark.slow


def large(**settings):
    return make_experiment("mlp", data=random_data(12, rows=2048), batch_size=1024, **settings)


class Stated(Planner):
    """A planner whose compiler needs so many bytes for an example, fewer in bfloat16 and with remat."""

    def __init__(self, experiment, bytes_per_example, mesh=None):
        super().__init__(experiment, mesh)
        self.bytes_per_example = bytes_per_example
        self.tried = []

    def compile(self, cases):
        for case in cases:
            settings = case.experiment
            share = 0.6 if settings.precision == "bfloat16" else 1.0
            share *= {"none": 1.0, "products": 0.8, "blocks": 0.7}[settings.remat]
            needed = int(self.bytes_per_example * share * case.step.local_microbatch_size)
            self.tried.append((settings.order.batch_size, settings.order.microbatch_size))
            if needed > case.limit_bytes and case.target.accelerator.platform == "tpu":
                case.compiled = {"train": Compiled("too large", "RESOURCE_EXHAUSTED", required_bytes=needed)}
            else:
                count = {"argument": 0, "output": 0, "alias": 0, "temp": needed, "generated_code": 0}
                case.compiled = {"train": Compiled("ok", memory=count, ops=tuple(case.step.ops()))}


@pytest.mark.parametrize(("name", "most"), [("v5e", 1000), ("v5e", 17), ("h100", 300)])
def test_the_largest_batch_is_found_to_a_sixteenth(name, most):
    limit = find_target(name).accelerator.usable_bytes
    planner = Stated(large(), limit / (most + 0.5))
    case = planner.case(find_target(name))
    planner.compile([case])
    assert not case.fits
    remedies = find_remedies(planner, case)
    (batch,) = (r["settings"]["batch_size"] for r in remedies if "largest that fits" in r["change"])
    assert most * 15 / 16 - 1 <= batch <= most
    assert all(remedy["total_bytes"] <= limit for remedy in remedies if "MEM_FRACTION" not in remedy["change"])
    assert len(planner.tried) <= 20


def test_what_fits_is_told_by_its_cost_in_time_and_what_does_not_is_left_out():
    planner = Stated(large(), find_target("v5e").accelerator.usable_bytes / 640)
    case = planner.case(find_target("v5e"))
    planner.compile([case])
    remedies = find_remedies(planner, case)
    slowdowns = [remedy["slowdown"] for remedy in remedies]
    assert slowdowns == sorted(slowdowns)
    changes = " / ".join(remedy["change"] for remedy in remedies)
    assert "bfloat16 /" in f"{changes} /"  # 0.6 of it fits, remat alone, 0.7 and 0.8, does not
    assert "2 microbatches" in changes
    assert "remat of all but block boundaries" in changes  # together with bfloat16
    assert not any(remedy["settings"] == {"remat": "blocks"} for remedy in remedies)


def test_several_devices_can_share_the_weights():
    planner = Stated(large(), find_target("v5e").accelerator.usable_bytes / 200, "data=-1")
    case = planner.case(find_target("v5e:2x2"))
    planner.compile([case])
    settings = [remedy["settings"] for remedy in find_remedies(planner, case)]
    assert {"precision": "bfloat16"} in settings
    # It was tried, and this compiler sees no difference.
    assert not any("mesh" in found for found in settings)


def test_a_gpu_can_give_a_larger_share_of_its_memory():
    accelerator = find_target("h100").accelerator
    planner = Stated(large(), 0.8 * accelerator.memory_bytes / 1024)
    case = planner.case(find_target("h100"))
    planner.compile([case])
    row = planner.row(case)
    assert row.status == "does not fit"
    assert "temporaries 63.3 GiB" in row.reason
    assert "75% of 79.1 GiB" in row.reason
    (first,) = (r for r in find_remedies(planner, case) if "MEM_FRACTION" in r["change"])
    assert first["change"].startswith("XLA_CLIENT_MEM_FRACTION=0.92")
    assert first["slowdown"] == 1.0


@pytest.mark.slow
def test_what_is_too_large_is_mended_by_what_was_compiled(monkeypatch):
    """A fake memory limit on the CPU, whose compiler is always here."""
    # Streamed batches, which a device with so little memory would get, are larger than the data here.
    experiment = large(precision="bfloat16", remat="blocks", on_device=True)
    planner = Planner(experiment, None)
    target = find_target("cpu")
    case = planner.case(target)
    planner.compile([case])
    small = dataclasses.replace(target.accelerator, memory_bytes=int(0.8 * case.memory().total))
    monkeypatch.setattr("accelnet.planning.plan.find_target", lambda *_: dataclasses.replace(target, accelerator=small))
    (row,) = plan(experiment, "cpu", progress=False).rows
    assert row.status == "does not fit"
    assert {remedy["source"] for remedy in row.remedies} == {"compiled"}
    assert any("largest that fits" in remedy["change"] for remedy in row.remedies)
    assert all(remedy["total_bytes"] <= small.memory_bytes for remedy in row.remedies)
