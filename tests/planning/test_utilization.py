"""MFU on devices that are known; none of them is here, so that the backend is made believe."""

import pytest

from accelnet.planning import utilization as module
from accelnet.planning.targets.target import find_target
from accelnet.planning.utilization import utilization
from tests.planning.conftest import make_experiment


def test_on_a_cpu_there_is_none(experiment):
    assert utilization(experiment, 1000.0) is None


def test_it_is_the_hand_formula(experiment, monkeypatch):
    monkeypatch.setattr(module.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(module, "this_machine", lambda: find_target("v5e"))
    layers = [12 * 16, 16 * 16, 16 * 5]
    flops_per_example = 2 * (3 * sum(layers) - layers[0])
    used = utilization(experiment, 1e9, 4)
    assert used.flops_per_second == pytest.approx(flops_per_example * 1e9)
    assert used.share == pytest.approx(flops_per_example * 1e9 / (4 * 197e12))
    assert str(used).endswith("4 x Cloud TPU v5e")
    # What remat computes again is no use.
    assert utilization(make_experiment(remat="blocks"), 1e9, 4).share == pytest.approx(used.share)
