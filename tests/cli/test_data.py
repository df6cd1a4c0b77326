"""The verb `data`: the page and the JSON file of an experiment's data, without a training."""

import json
from pathlib import Path

import numpy as np

import accelnet as an
from accelnet.data.dataset import Data
from accelnet.data.rows import lazy_arrays
from accelnet.data.stored import StoredRows
from tests.cli.conftest import Config, small
from tests.pages import needs_nothing


def test_it_writes_a_page_and_the_values_that_it_prints(command, tmp_path):
    done = command(small, "data", "--workdir", str(tmp_path / "look"), "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out.splitlines()[-1])
    assert values == json.loads((tmp_path / "look" / "data.json").read_text())
    assert values["splits"] == {"train": 32, "validation": 4, "test": 4}
    assert [one["name"] for one in values["findings"]] == ["inputs that tell the target"]
    assert "1. inputs that tell the target: of 1 of 3 inputs" in done.out and "float32 [N, 3]" in done.out
    page = needs_nothing((tmp_path / "look" / "data.html").read_text())
    assert "inputs that tell the target" in page.text
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["data.html", "data.json"]


def test_without_a_directory_the_page_is_beside_the_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(small, "data", "--width", "5").code == 0
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("data.html"))] == [
        Path("runs", "data", "conftest", "data.html")
    ]


def test_a_damaged_row_is_one_message_and_nothing_is_written(command, tmp_path):
    x = np.zeros((60, 3), np.float32)
    x[50] = np.nan

    def damaged(config: Config) -> an.Experiment:
        rows = StoredRows({"inputs": x, "targets": np.arange(60) % 2})
        rows.stored = False  # values of such are looked at when they are read
        data = Data("damaged", lazy_arrays(rows), {"train": range(60)}, info={"num_classes": 2})
        return small(config).replace(data=data)

    done = command(damaged, "data", "--workdir", str(tmp_path / "look"))
    assert done.code == 2 and "NaN or infinite" in done.err and done.err.count("error: ") == 1
    assert "Traceback" not in done.err and [*tmp_path.rglob("*.*")] == []
    # Where this row is not among those that are read, it is not found.
    assert command(damaged, "data", "--workdir", str(tmp_path / "look"), "--rows", "2").code == 0
