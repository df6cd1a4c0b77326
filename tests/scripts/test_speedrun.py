"""How long a good network takes: what the scores claim, and that a task is run, kept and not run again."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import runpy  # noqa: E402

FOUND = runpy.run_path(str(ROOT / "scripts" / "speedrun.py"))
TASKS, summary, table = FOUND["TASKS"], FOUND["summary"], FOUND["table"]


def rows(scores):
    return {str(seed): {"score": score, "seconds": 10.0 - seed, "cold": seed == 0} for seed, score in enumerate(scores)}


def test_the_claim_is_a_test_of_the_mean_in_the_direction_of_the_metric():
    good = summary(TASKS["fashion"], rows([0.941, 0.942, 0.943]))
    # The mean is 3.46 standard errors above the goal: t with two degrees of freedom.
    assert good["mean"] == pytest.approx(0.942) and good["p_value"] == pytest.approx(0.0371, abs=1e-4)
    assert (good["cold_seconds"], good["warm_seconds"], good["spread"]) == (10.0, 8.5, [8.0, 9.0])
    assert summary(TASKS["fashion"], rows([0.937, 0.938, 0.939]))["p_value"] > 0.9
    bits = summary(TASKS["kjv"], rows([1.69, 1.68, 1.67]))
    assert bits["p_value"] == pytest.approx(0.0371, abs=1e-4)


def test_one_seed_claims_nothing():
    found = summary(TASKS["digits"], rows([0.99]))
    assert "p_value" not in found and found["warm_seconds"] is None
    text = table({"tasks": {"digits": {"summary": {"accelnet": found}}}})
    assert text.splitlines()[1].split()[-4:] == ["-", "-", "0.9900", "-"]


def test_the_peers_get_the_rows_and_the_recipe(tmp_path):
    recipe = FOUND["prepare"](TASKS["digits"], {}, tmp_path)
    assert recipe == json.loads((tmp_path / "task.json").read_text()) and "seed" not in recipe
    assert recipe["channels"] == [32, 64] and recipe["crop"] == 1 and recipe["learning_rate"] == 3e-3
    with np.load(tmp_path / "rows.npz") as arrays:
        assert arrays["train_inputs"].shape[1:] == (8, 8, 1) and arrays["train_inputs"].dtype == np.float32
        assert abs(arrays["train_inputs"].mean()) < 1e-3  # they are standardized
        assert len(arrays["train_targets"]) == len(arrays["train_inputs"]) > len(arrays["test_inputs"]) > 300


@pytest.mark.slow
def test_a_task_is_run_and_kept_and_not_run_again(tmp_path, monkeypatch, capfd):
    main = FOUND["main"]
    quick = dataclasses.replace(TASKS["digits"], changes={"epochs": 1.0, "channels": (4, 8)})
    monkeypatch.setitem(TASKS, "digits", quick)
    out = tmp_path / "speedrun.json"
    given = ["--tasks", "digits", "--systems", "accelnet", "--seeds", "2", "--folder", tmp_path / "f", "--out", out]
    monkeypatch.setattr(sys, "argv", ["speedrun.py", *map(str, given)])
    main()
    record = json.loads(out.read_text())
    entry = record["tasks"]["digits"]
    first, second = entry["rows"]["accelnet"]["0"], entry["rows"]["accelnet"]["1"]
    assert first["cold"] and not second["cold"] and 0 < second["score"] < 1 and first["seconds"] > 0
    assert entry["recipe"]["channels"] == [4, 8] and entry["summary"]["accelnet"]["seeds"] == 2
    assert (tmp_path / "speedrun.png").read_bytes().startswith(b"\x89PNG")
    capfd.readouterr()
    main()  # all is there
    assert json.loads(out.read_text()) == record
    assert "seed" not in capfd.readouterr().out.splitlines()[0].replace("seeds", "")
