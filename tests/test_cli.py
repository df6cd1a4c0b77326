"""The command line as a user meets it, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import accelnet as an
from accelnet.cli.plan import _with_tuned
from accelnet.cli.script import Script
from experiments import xor_mlp

ROOT = Path(__file__).parents[1]
XOR = str(ROOT / "experiments" / "xor_mlp.py")
DIGITS = str(ROOT / "experiments" / "digits_mlp.py")
SHORT = ("--hidden-features", "8", "--epochs", "2")


def command(script, *args):
    return subprocess.run(
        [sys.executable, script, *args],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
    )


@pytest.mark.slow
def test_train_resume_evaluate_and_summary_go_together(tmp_path):
    run = str(tmp_path / "run")
    first = command(DIGITS, "train", *SHORT, "--workdir", run, "--seed", "3", "--learning-rate", "1e-3", "--json")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["experiment"] == "digits_mlp" and result["seed"] == 3
    assert result["config"]["learning_rate"] == 1e-3 and result["config"]["hidden_features"] == [8]

    again = command(DIGITS, "train", *SHORT, "--workdir", run)
    assert again.returncode == 2
    assert again.stderr.strip().splitlines()[-1].startswith("error:") and "pass --resume" in again.stderr
    assert "Traceback" not in again.stderr

    # The run's own settings are the defaults now: only the number of epochs is given.
    # Its learning rate follows the run's progress: another length is another training.
    longer = command(DIGITS, "train", "--workdir", run, "--resume", "--epochs", "3", "--json")
    assert longer.returncode == 2 and "epochs was 2.0 and is 3.0" in longer.stderr and "model" not in longer.stderr
    more = command(DIGITS, "train", "--workdir", run, "--resume", "--epochs", "3", "--allow-change", "--json")
    assert more.returncode == 0, more.stderr
    resumed = json.loads(more.stdout.splitlines()[-1])
    assert resumed["epochs"] == 3 and resumed["config"] == result["config"] | {"epochs": 3.0}

    changed = command(DIGITS, "train", "--workdir", run, "--resume", "--epochs", "3", "--learning-rate", "0.5")
    assert changed.returncode == 2 and "learning_rate was 0.001 and is 0.5" in changed.stderr

    evaluated = command(DIGITS, "evaluate", "--workdir", run, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout.splitlines()[-1])["metrics"] == resumed["metrics"]


def test_resume_without_a_run_starts_one(tmp_path):
    done = command(XOR, "train", "--steps", "5", "--workdir", str(tmp_path / "new"), "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 5


def test_summary_names_layers_shapes_parameters_and_flops():
    shown = command(DIGITS, "summary", "--hidden-features", "8").stdout
    for word in ("Linear", "float32[1,10]", "520", "90", "610", "FLOPs"):  # 64 * 8 + 8, 8 * 10 + 10
        assert word in shown


@pytest.mark.slow
def test_a_mesh_of_simulated_devices_trains_resumes_and_is_evaluated_elsewhere(tmp_path):
    run = str(tmp_path / "run")
    first = command(DIGITS, "train", *SHORT, "--workdir", run, "--cpu-devices", "8", "--mesh", "data=8", "--json")
    assert first.returncode == 0, first.stderr
    assert len(json.loads(first.stdout.splitlines()[-1])["devices"]) == 8
    pmap = ("--cpu-devices", "4", "--strategy", "pmap")
    more = command(DIGITS, "train", "--workdir", run, "--resume", "--epochs", "3", "--allow-change", *pmap, "--json")
    assert more.returncode == 0, more.stderr
    done = command(DIGITS, "evaluate", "--workdir", run, "--json")
    assert done.returncode == 0, done.stderr
    loss = json.loads(done.stdout.splitlines()[-1])["metrics"]["test"]["loss"]
    assert loss == pytest.approx(json.loads(more.stdout.splitlines()[-1])["metrics"]["test"]["loss"], rel=1e-5)


def test_summary_shows_what_lies_where_on_devices_that_are_not_here():
    shown = command(DIGITS, "summary", "--hidden-features", "8192", "--mesh", "data=16,fsdp=4").stdout
    assert "mesh data=16,fsdp=4, a batch in 64 parts" in shown and "its largest axis on fsdp" in shown


@pytest.mark.slow
def test_a_rate_is_tuned_and_the_hardware_chosen_for_it(tmp_path):
    tuned = command(XOR, "tune", "learning_rate", "--points", "6", "--workdir", str(tmp_path / "tune"), "--json")
    assert tuned.returncode == 0, tuned.stderr
    values = json.loads(tuned.stdout.splitlines()[-1])
    low, high = values["basin"]
    assert low <= values["recommended"]["learning_rate"] <= high
    assert sorted(path.name for path in (tmp_path / "tune").glob("*.*")) == ["report.html", "tune.json", "tune.png"]
    args = ("--tuned", str(tmp_path / "tune"), "--targets", "v5e:1x1,h100", "--deadline", "1h")
    chosen = command(XOR, "plan", "--abstract", *args, "--workdir", str(tmp_path / "choice"), "--json")
    assert chosen.returncode == 0, chosen.stderr
    assert json.loads(chosen.stdout.splitlines()[-1]) == json.loads((tmp_path / "choice/plan.json").read_text())


def test_where_every_rate_diverges_the_exit_code_is_two(tmp_path):
    done = command(XOR, "tune", "learning_rate", "--range", "1e28:1e30", "--points", "3", "--steps", "400")
    assert done.returncode == 2, done.stdout
    assert "diverge" in done.stderr and "Traceback" not in done.stderr


def test_a_diverging_run_has_exit_code_three(tmp_path):
    script = tmp_path / "explode.py"
    script.write_text(Path(XOR).read_text().replace("an.optim.adam(config.learning_rate)", "an.optim.sgd(1e30)"))
    done = command(str(script), "train", "--workdir", str(tmp_path / "run"))
    assert done.returncode == 3, done.stderr
    assert "the update at step 1" in done.stderr and "Lower the learning rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_run_says_what_is_saved_and_how_to_go_on(tmp_path):
    run = str(tmp_path / "run")
    args = [sys.executable, XOR, "train", "--steps", "100000000", "--workdir", run]
    process = subprocess.Popen(
        args,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        # Whoever runs the tests in the background has interrupts ignored, which processes inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdecimal()]
    assert ("go on with --resume" if saved else "nothing was saved") in said and "Traceback" not in said


def test_compilers_without_devices_are_not_asked_for_devices(tmp_path, monkeypatch):
    from accelnet.cli.devices import has_compilers_alone

    plugins = tmp_path / "jax_plugins"
    (plugins / "xla_cuda13").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    spec = type("Spec", (), {"submodule_search_locations": [str(plugins)]})()
    found = {"jax_plugins": spec, "libtpu": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found[name])
    assert has_compilers_alone(tmp_path / "dev")
    (plugins / "somebody_elses").mkdir()
    assert not has_compilers_alone(tmp_path / "dev")
    (plugins / "somebody_elses").rmdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert not has_compilers_alone(tmp_path / "dev")
    found["jax_plugins"] = None
    (tmp_path / "dev" / "nvidia0").unlink()
    assert not has_compilers_alone(tmp_path / "dev")


def test_tuned_settings_are_those_recommended_or_the_winners(tmp_path):
    script, config = Script(xor_mlp.experiment), xor_mlp.Config()

    def rate():
        return _with_tuned(script, config, tmp_path).learning_rate

    candidates = [{"name": "a", "learning_rate": 0.1}, {"name": "b", "learning_rate": 0.2}]
    (tmp_path / "compare.json").write_text(json.dumps({"winner": "b", "candidates": candidates}))
    assert rate() == 0.2
    (tmp_path / "tune.json").write_text(json.dumps({"recommended": {"learning_rate": 0.3}}))
    assert rate() == 0.3
    (tmp_path / "tune.json").write_text("[]")
    with pytest.raises(an.UserError, match="cannot be understood"):
        rate()
    (tmp_path / "tune.json").write_text(json.dumps({"recommended": {"width": 3}}))
    with pytest.raises(an.UserError, match="recommends width, which this script does not have"):
        rate()
