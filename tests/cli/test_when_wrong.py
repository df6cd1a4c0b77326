"""On the command line: a profile, histograms, the account of the time, and the replay of what diverged."""

import json

import pytest

from accelnet.cli.tool import tool
from tests.cli.conftest import small


@pytest.mark.slow
def test_train_shows_its_time_and_layers_and_keeps_histograms(command, tmp_path):
    done = command(small, "train", "--workdir", str(tmp_path / "run"), "--profile", "--histograms", "--json", "--quiet")
    assert done.code == 0, done.err
    assert "% compiling" in done.out and "ms a step" in done.out and "belongs to no one layer" in done.out
    assert "lost_seconds" in json.loads(done.out.splitlines()[-1])["timing"]
    assert len(list((tmp_path / "run" / "tensorboard").glob("*-histograms"))) == 1
    assert json.loads((tmp_path / "run" / "profile" / "profile.json").read_text())["steps"] == 4


@pytest.mark.parametrize("flag", ["--profile", "--histograms"])
def test_what_writes_files_wants_a_place_for_them(command, flag):
    done = command(small, "train", flag)
    assert done.code == 2 and f"{flag} writes into --workdir, which was not given" in done.err


@pytest.mark.slow
def test_replay_tells_what_train_told_and_in_json(command, tmp_path):
    run = str(tmp_path / "run")
    failed = command(small, "train", "--workdir", run, "--learning-rate", "1e30", "--quiet")
    assert failed.code == 3 and "It began here: " in failed.err
    again = command(small, "replay", "--workdir", run, "--json", "--quiet")
    assert again.code == 0, again.err
    assert json.loads(again.out.splitlines()[-1]) == json.loads((tmp_path / "run" / "replay.json").read_text())


def test_replay_without_a_run_or_a_script_says_what_is_missing(command, tmp_path, capsys):
    done = command(small, "replay", "--workdir", str(tmp_path))
    assert done.code == 2 and "holds no run" in done.err
    (tmp_path / "config.json").write_text(json.dumps({"description": {"experiment": "toy"}, "config": {}}))
    for args, message in [
        ((), "names no script"),
        (("--script", "gone.py"), "was made by gone.py, which is not there"),
    ]:
        with pytest.raises(SystemExit) as end:
            tool(["replay", str(tmp_path), *args])
        assert end.value.code == 2 and message in capsys.readouterr().err
