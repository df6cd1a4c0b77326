"""Settings that a file holds, lists with commas, and short trainings from the command line."""

import json

from tests.cli.conftest import small


def test_settings_are_written_and_read_again_and_flags_count_more(command, tmp_path):
    file, run = tmp_path / "settings.json", tmp_path / "run"
    first = command(small, "train", "--widths", "3,5", "--width=6", "--quiet", "--save-config", str(file),
                    "--workdir", str(run))  # fmt: skip
    assert first.code == 0, first.err
    assert json.loads(file.read_text()) == {
        "learning_rate": 0.01, "width": 6, "widths": [3, 5], "dropout": 0.0, "steps": 4, "seed": 0,
    }  # fmt: skip
    for source in (file, run / "config.json"):
        done = command(small, "train", "--quiet", "--config", str(source), "--seed", "7", "--json")
        settings = json.loads(done.out.splitlines()[-1])["config"]
        assert (settings["width"], settings["widths"], settings["seed"]) == (6, [3, 5], 7)


def test_bad_settings_are_named(command, tmp_path):
    file = tmp_path / "settings.json"
    for content, words in (
        ({"wdth": 3}, "settings.json was written with settings that tests.cli.conftest.Config does not have: wdth"),
        ({"width": "three"}, "settings.json was written with width = 'three'"),
        ([], "expected an object"),
    ):
        file.write_text(json.dumps(content))
        done = command(small, "train", "--config", str(file))
        assert done.code == 2 and words in done.err, done.err
    file.write_text("{}")
    both = command(small, "train", "--config", str(file), "--resume", "--workdir", str(tmp_path))
    assert both.code == 2 and "give one of them" in both.err


def test_a_fast_run_tries_everything_and_keeps_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(small, "train", "--steps", "4000", "--fast-dev-run")
    assert done.code == 0, done.err
    assert "step 2/2" in done.err and "its restoring went through" in done.out
    assert not list(tmp_path.iterdir())


def test_few_batches_are_learned_by_heart(command):
    done = command(small, "train", "--overfit-batches", "1", "--steps", "300", "--learning-rate", "0.05", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert result["metrics"]["train"]["accuracy"] == result["metrics"]["validation"]["accuracy"] == 1.0
    assert result["metrics"]["train"]["loss"] < 0.05 and result["metrics"]["test"] == {}
