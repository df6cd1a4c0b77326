"""The command `accelnet`: verbs that run a user's script, and those that need none."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from accelnet.cli.tool import tool

ROOT = Path(__file__).resolve().parents[2]


def ended(*args):
    """Run the command in this process, and return its exit code."""
    try:
        tool(args)
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("launch",), "no script was given: accelnet launch -n 2 SCRIPT"),
        (("launch", "nowhere.py", "--grace", "x"), "nowhere.py is no file"),
        (("launch", "-n", "0", __file__), "--num-processes is 0, expected at least 1"),
        (("launch", "--devices-per-process", "-1", __file__), "--devices-per-process is -1, expected at least 1"),
        (("launch", "--grace", "-1", __file__), "--grace is -1.0, expected seconds"),
        (("launch", "--grace=nan", __file__), "--grace is nan"),
        (("launch", "--devices", "2", __file__), "launch has no flag --devices: did you mean --devices-per-process?"),
        (("launch", "--template", "slurm", __file__), "leave out the script"),
        (("lanch", __file__), "there is no verb lanch: did you mean launch"),
        (("plan",), "no script was given: accelnet plan SCRIPT"),
        (("plan", "--targets", "cpu"), "plan has no flag --targets"),
        (("targets", "--family", "nope"), "'nope' begins no name of an accelerator"),
        (("compare-runs", "/nowhere"), "/nowhere"),
    ],
)
def test_a_mistake_is_one_message_with_exit_code_two(args, words, capsys):
    assert ended(*args) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and words in shown.err
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    "args", [("launch", "-n", "two", __file__), ("completion", "csh"), ("launch", "--template", "x")]
)
def test_a_value_of_another_kind_is_named(args, capsys):
    assert ended(*args) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and args[-1 if args[-1] != __file__ else 2] in shown.err


def test_launch_takes_its_own_flags_and_leaves_the_script_all_that_follows(monkeypatch):
    seen = []
    monkeypatch.setattr("accelnet.cluster.local.launch", lambda *args: seen.append(args) or 7)
    rest = ("train", "-n", "7", "--grace", "x", "--help", "--", "a b", "$HOME", "")
    assert ended("launch", "-n", "3", "--grace=2", "--devices-per-process", "4", __file__, *rest) == 7
    assert ended("launch", "--", __file__, "--help") == 7
    assert seen == [((__file__, *rest), 3, 4, 2.0), ((__file__, "--help"), 2, 1, 30.0)]


def test_plan_becomes_the_script_with_its_verb(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "execv", lambda *args: seen.append(args))
    assert ended("plan", __file__, "--targets", "v5e:2x2", "--help", "a b") == 0
    assert seen == [(sys.executable, [sys.executable, __file__, "plan", "--targets", "v5e:2x2", "--help", "a b"])]


@pytest.mark.parametrize("name", ["slurm", "jobset", "sky", "tpu"])
def test_a_template_is_written_once_and_is_of_the_users_project(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ended("launch", "--template", name) == 0
    shown = capsys.readouterr().out
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(path.name in shown for path in files)
    for path in files:
        text = path.read_text()
        if path.suffix == ".yaml":
            assert list(yaml.safe_load_all(text))
        else:
            assert subprocess.run(["/bin/bash", "-n", path]).returncode == 0
        if name != "tpu":
            assert not re.search(r"scripts/|digits_cnn\.py|-e '?\.\[", text), path
    assert ended("launch", "--template", name) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_wheel_brings_every_template():
    import tomllib

    from accelnet.cli.launch import _FILES

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    brought = settings["force-include"]
    assert set(brought.values()) == {f"accelnet/cli/launchers/{file}" for each in _FILES.values() for file in each}
    assert all((ROOT / path).is_file() and Path(path).name == Path(there).name for path, there in brought.items())


def test_targets_and_runs_need_no_script(tmp_path, capsys):
    assert ended("targets", "--family", "v5e") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("name")
    assert ended("compare-runs", str(tmp_path), "--workdir", str(tmp_path / "out")) == 2
    assert "run" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_and_flags(shell, capsys):
    assert ended("completion", shell) == 0
    script = capsys.readouterr().out
    for word in ("compare-runs", "--devices-per-process", "jobset"):
        assert word in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True).returncode == 0


def test_bash_completes_a_verb_and_a_flag(tmp_path, capsys):
    assert ended("completion", "bash") == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    ask = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_tyro_accelnet
printf '%s\\n' "${COMPREPLY[@]}"
"""

    def completed(*words):
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        command = ["bash", "-c", ask, "bash", str(script), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert completed("accelnet", "com") == ["compare-runs", "completion"]
    assert "--devices-per-process" in completed("accelnet", "launch", "--dev")
