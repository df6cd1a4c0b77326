"""What verbs do, from training to the choice of hardware. Processes are started only for what a process alone shows."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import accelnet as an
from accelnet.cli.devices import has_compilers_alone
from accelnet.cli.plan import _with_tuned
from accelnet.cli.script import Script
from experiments import digits_mlp, xor_mlp
from tests.cli.conftest import Config, small
from tests.damage import damaged, read_or_message

ROOT = Path(__file__).parents[2]
SHORT = ("--hidden-features", "8", "--epochs", "2")


def result_of(done):
    """Return the JSON object of the last line of a command that went well."""
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1])


@pytest.mark.slow
def test_train_resume_evaluate_and_summary_go_together(command, tmp_path):
    run, digits = str(tmp_path / "run"), digits_mlp.experiment
    first = command(digits, "train", *SHORT, "--workdir", run, "--seed", "3", "--learning-rate", "1e-3", "--json")
    result = result_of(first)
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["experiment"] == "digits_mlp" and result["seed"] == 3
    assert result["config"]["learning_rate"] == 1e-3 and result["config"]["hidden_features"] == [8]

    again = command(digits, "train", *SHORT, "--workdir", run)
    assert again.code == 2
    assert again.err.strip().splitlines()[-1].startswith("error:") and "pass --resume" in again.err
    assert "Traceback" not in again.err

    # The run's own settings are the defaults now: only the number of epochs is given.
    # Its learning rate follows the run's progress: another length is another training.
    longer = command(digits, "train", "--workdir", run, "--resume", "--epochs", "3", "--json")
    assert longer.code == 2 and "epochs was 2.0 and is 3.0" in longer.err and "model" not in longer.err
    more = command(digits, "train", "--workdir", run, "--resume", "--epochs", "3", "--allow-change", "--json")
    resumed = result_of(more)
    assert resumed["epochs"] == 3 and resumed["config"] == result["config"] | {"epochs": 3.0}

    changed = command(digits, "train", "--workdir", run, "--resume", "--epochs", "3", "--learning-rate", "0.5")
    assert changed.code == 2 and "learning_rate was 0.001 and is 0.5" in changed.err

    evaluated = command(digits, "evaluate", "--workdir", run, "--json")
    assert result_of(evaluated)["metrics"] == resumed["metrics"]


def test_verify_says_what_is_whole(command, tmp_path):
    run = tmp_path / "run"
    assert command(small, "train", "--steps", "5", "--workdir", str(run)).code == 0
    whole = command(small, "verify", "--workdir", str(run), "--json")
    parts = result_of(whole)["parts"]
    assert [part["part"] for part in parts if part["part"] != "checkpoints/4"] == [
        "checkpoints/5", "checkpoints/rows.jsonl", "metrics.jsonl", "config.json", "result.json",
    ]  # fmt: skip
    assert all(part["whole"] for part in parts) and "DAMAGED" not in whole.out
    for file in ("checkpoints/5/record.json", "metrics.jsonl", "result.json"):
        (run / file).write_text((run / file).read_text()[:20])
    damaged = command(small, "verify", "--workdir", str(run))
    assert damaged.code == 2 and damaged.out.count("DAMAGED") == 3
    assert damaged.err.startswith("error: checkpoints/5, metrics.jsonl, result.json in")
    nothing = command(small, "verify", "--workdir", str(tmp_path / "nowhere"))
    assert nothing.code == 2 and "holds no run" in nothing.err


def test_cross_validate_shows_each_fold_and_the_mean_with_its_interval(command, tmp_path):
    args = ("cross-validate", "--folds", "2", "--stratify", "targets", "--workdir", str(tmp_path / "cv"))
    done = command(small, *args, "--json")
    values = result_of(done)
    experiment = Script(small).experiment(Config())
    folds = experiment.data.folds(2, stratify="targets")
    # Those of the same folds, or these would be refused.
    kept = an.cross_validate(experiment, folds, workdir=tmp_path / "cv", progress=False)
    assert values["metrics"] == kept.to_dict()["metrics"]
    assert [line.split()[0] for line in done.out.splitlines()[3:7]] == ["1", "2", "mean", "standard"]
    again = command(small, *args, "--quiet", "--json")
    assert result_of(again)["folds"] == values["folds"] and not again.err  # seconds too: nothing was trained
    other = command(small, *args, "--fold-seed", "1")
    assert other.code == 2 and "is of another cross-validation, which differs in folds" in other.err


def test_resume_without_a_run_starts_one(command, tmp_path):
    done = command(small, "train", "--steps", "5", "--workdir", str(tmp_path / "new"), "--resume", "--json")
    assert result_of(done)["step"] == 5


def test_summary_names_layers_shapes_parameters_and_flops(command):
    shown = command(digits_mlp.experiment, "summary", "--hidden-features", "8").out
    for word in ("Linear", "float32[1,10]", "520", "90", "610", "FLOPs"):  # 64 * 8 + 8, 8 * 10 + 10
        assert word in shown


@pytest.mark.slow
def test_a_mesh_of_simulated_devices_trains_resumes_and_is_evaluated_elsewhere(command, tmp_path):
    run, script = str(tmp_path / "run"), ROOT / "experiments" / "digits_mlp.py"
    args = ("train", *SHORT, "--workdir", run, "--cpu-devices", "8", "--mesh", "data=8", "--json")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    first = subprocess.run(
        [sys.executable, script, *args], capture_output=True, text=True, timeout=300, env=environment
    )
    assert first.returncode == 0, first.stderr
    assert len(json.loads(first.stdout.splitlines()[-1])["devices"]) == 8
    pmap = ("--mesh", "data=8", "--strategy", "pmap")
    digits = digits_mlp.experiment
    more = command(digits, "train", "--workdir", run, "--resume", "--epochs", "3", "--allow-change", *pmap, "--json")
    trained = result_of(more)
    assert len(trained["devices"]) == 8
    done = command(digits, "evaluate", "--workdir", run, "--json")
    assert result_of(done)["metrics"]["test"]["loss"] == pytest.approx(trained["metrics"]["test"]["loss"], rel=1e-5)


def test_summary_shows_what_lies_where_on_devices_that_are_not_here(command):
    args = ("summary", "--hidden-features", "8192", "--mesh", "data=16,fsdp=4")
    shown = command(digits_mlp.experiment, *args).out
    assert "mesh data=16,fsdp=4, a batch in 64 parts" in shown and "its largest axis on fsdp" in shown


@pytest.mark.slow
def test_a_rate_is_tuned_and_the_hardware_chosen_for_it(command, tmp_path):
    args = ("--points", "6", "--workdir", str(tmp_path / "tune"), "--json")
    done = command(xor_mlp.experiment, "tune", "learning_rate", *args)
    values = result_of(done)
    # One progress over all trainings, and the next command as it is typed.
    assert {line.partition(":")[0] for line in done.err.splitlines() if " % · " in line} == {"tune xor_mlp"}
    (then,) = (line for line in done.out.splitlines() if line.startswith("next: "))
    _, _, *again = shlex.split(then.removeprefix("next: "))
    assert again[:2] == ["train", "--learning-rate"] and float(again[2]) == pytest.approx(
        values["recommended"]["learning_rate"], rel=1e-5
    )
    trained = command(xor_mlp.experiment, *again[: again.index("--workdir")], "--steps", "5", "--quiet")
    assert trained.code == 0, trained.err
    low, high = values["basin"]
    assert low <= values["recommended"]["learning_rate"] <= high
    assert sorted(path.name for path in (tmp_path / "tune").glob("*.*")) == ["report.html", "tune.json", "tune.png"]
    args = ("--tuned", str(tmp_path / "tune"), "--targets", "v5e:1x1,h100", "--deadline", "1h")
    chosen = command(xor_mlp.experiment, "plan", "--abstract", *args, "--workdir", str(tmp_path / "choice"), "--json")
    assert result_of(chosen) == json.loads((tmp_path / "choice/plan.json").read_text())


@pytest.mark.slow
def test_where_every_rate_diverges_the_exit_code_is_two(command):
    args = ("tune", "learning_rate", "--range", "1e28:1e30", "--points", "3", "--steps", "400")
    done = command(xor_mlp.experiment, *args)
    assert done.code == 2, done.out
    assert "diverge" in done.err and "Traceback" not in done.err


def test_a_diverging_run_has_exit_code_three(command, tmp_path):
    def explodes(config: xor_mlp.Config) -> an.Experiment:
        return xor_mlp.experiment(config).replace(optimizer=an.optim.sgd(1e30))

    done = command(explodes, "train", "--workdir", str(tmp_path / "run"))
    assert done.code == 3, done.err
    assert "the update at step 1" in done.err and "Lower the learning rate" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_an_interrupted_run_says_what_is_saved_and_how_to_go_on(tmp_path):
    args = ("train", "--steps", "1000000000", "--workdir", str(tmp_path / "run"))
    process = subprocess.Popen(
        [sys.executable, ROOT / "experiments" / "xor_mlp.py", *args],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        # Whoever runs the tests in the background has interrupts ignored, which processes inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    for line in process.stderr:
        if "loss" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted: " in said, said
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdecimal()]
    assert ("go on with --resume" if saved else "nothing was saved") in said and "Traceback" not in said


def test_compilers_without_devices_are_not_asked_for_devices(tmp_path, monkeypatch):
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
    with pytest.raises(an.UserError, match=r"tune.json cannot be read as the answer of tune"):
        rate()
    for name, good in (
        ("tune.json", {"recommended": {"learning_rate": 0.3}}),
        ("compare.json", {"winner": "b", "candidates": candidates}),
    ):
        for content in damaged(good):
            (tmp_path / name).write_text(json.dumps(content))
            found, message = read_or_message(rate)
            assert message is not None or isinstance(found, int | float)
        (tmp_path / "tune.json").unlink(missing_ok=True)
    (tmp_path / "tune.json").write_text(json.dumps({"recommended": {"width": 3}}))
    with pytest.raises(an.UserError, match="recommends width, which this script does not have"):
        rate()
