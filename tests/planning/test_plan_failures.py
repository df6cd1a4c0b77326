"""What a plan says where a compiler crashes, hangs, or a target does not exist."""

import sys
import time
from pathlib import Path

import pytest

from accelnet.planning.compiled.compile import compile_all
from accelnet.planning.compiled.export import export_program
from accelnet.planning.plan import plan
from accelnet.planning.targets.target import find_target
from accelnet.training.program import prepare


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
