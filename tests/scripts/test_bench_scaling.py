"""How cost grows: the points of an axis are measured, a slope above that of the work is marked, and all is written."""

import json
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import bench_scaling  # noqa: E402


def test_a_slope_above_that_of_the_work_is_marked():
    seconds = [[1e-3], [2e-3], [9e-3], [3e-3]]
    found = {"values": [1, 2, 4, 8], "step_seconds": seconds, "compile_seconds": [1.0] * 4}
    first, second, third, fourth = bench_scaling.table("depth", found).splitlines()[1:]
    assert "slope" not in first and second.endswith("slope +1.00") and third.endswith("slope +2.17 cliff")
    assert fourth.endswith("slope -1.58 less work took longer")


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["depth", "members"])
def test_an_axis_is_measured_and_written(axis, monkeypatch, tmp_path):
    monkeypatch.setitem(bench_scaling.AXES, axis, bench_scaling.AXES[axis]._replace(values=(1, 2)))
    monkeypatch.setattr(bench_scaling, "_TURN_SECONDS", 1e-3)
    cached = jax.config.jax_enable_compilation_cache
    try:
        found = bench_scaling.measure(axis, 3)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    assert found["values"] == [1, 2] and [len(turns) for turns in found["step_seconds"]] == [3, 3]
    assert min(found["compile_seconds"]) > 0
    bench_scaling.write(tmp_path / "scaling.json", tmp_path / "scaling.png", {axis: found})
    assert json.loads((tmp_path / "scaling.json").read_text())["axes"][axis] == found
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
