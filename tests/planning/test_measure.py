"""Measuring this machine: the numbers are kept, and used afterwards. How near they come: scripts/bench_plan.py."""

import pytest

from accelnet.planning.measure import measure
from accelnet.planning.modelled.calibration import load_calibration, load_model
from accelnet.planning.page import plan_page
from accelnet.planning.plan import plan
from accelnet.planning.targets.target import this_machine


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("accelnet.planning.modelled.probes.SECONDS", 1e-4)
    monkeypatch.setattr("accelnet.planning.modelled.probes.REPEATS", 1)
    monkeypatch.setattr("accelnet.planning.measure._SIZES", (1 << 14,))


@pytest.mark.slow
def test_what_was_measured_is_kept_and_used(experiment, quick):
    target, told = this_machine(), []
    assert load_model(target.accelerator) is None
    before = plan(experiment, "cpu", progress=False, compile=False).rows[0]
    measured = measure(experiment, target, say=told.append)
    assert measured.step_seconds > 0
    assert measured.predicted_seconds > 0
    assert told
    stored = load_calibration(target.accelerator.name)
    assert [12, 16, 32] in [sorted(row[:3]) for row in stored["products"]]
    after = plan(experiment, "cpu", progress=False).rows[0]
    assert before.time.source == "modelled, facts"
    assert after.time.source == "compiled, measured"
    assert after.time.expected == pytest.approx(measured.predicted_seconds, rel=1e-6)
    assert "predicted from the measured parts" in str(measured)


@pytest.mark.slow
def test_nothing_is_kept_if_not_asked_for(experiment, quick, monkeypatch):
    monkeypatch.setattr("accelnet.planning.measure._MOST_PRODUCTS", 1)
    measure(experiment, this_machine(), keep=False)
    assert load_calibration("cpu") is None


@pytest.mark.slow
def test_a_plan_that_measures_gives_the_time_of_this_machines_own_step(experiment, quick):
    made = plan(experiment, "here,h100", compile=False, measure=True, progress=False)
    here, other = made.rows
    assert made.measured is not None and here.time.expected == made.measured.step_seconds
    assert here.time.source == "modelled, timed" and other.time.source == "modelled, facts"
    assert here.run.train == pytest.approx(experiment.total_steps * made.measured.step_seconds)
    assert "cpu: a step was timed on this machine" in str(made) and "predicted from the measured parts" in str(made)
    assert "timed on this machine" in plan_page(made.to_dict())
