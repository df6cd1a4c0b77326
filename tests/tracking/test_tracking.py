"""Trackers are told each step once, whatever ends and resumes a run, and never end one."""

import sys

import pytest

import accelnet as an
from accelnet.cli.tool import tool
from accelnet.errors import UserError
from accelnet.tracking import CsvTracker, Tracking
from tests.cli.conftest import Config, small


class Book:
    """A tracker that remembers what it is told; `fails` names a method that raises."""

    name = "book"

    def __init__(self, fails=""):
        self.told, self.fails = [], fails

    def start(self, config, name, resume_id):
        self.told.append(("start", config, name, resume_id))
        return resume_id or "first"

    def log(self, step, values):
        if self.fails == "log":
            raise ConnectionError("the network is down")
        self.told.append(("log", step, values))

    def file(self, path):
        self.told.append(("file", path.name))

    def finish(self, status):
        self.told.append(("finish", status))

    @property
    def steps(self):
        return [step for what, step, *_ in self.told if what == "log"]


def test_a_run_tells_its_rows_its_files_and_its_end(tmp_path):
    book = Book()
    run = an.fit(small(Config(steps=6)), workdir=tmp_path / "run", trackers=[book], progress=False)
    what, config, name, resume_id = book.told[0]
    assert (what, name, resume_id) == ("start", "experiment-run", None) and config["batch_size"] == 8
    assert book.steps == sorted({row["step"] for row in run.rows})
    last = [values for what, _, values in (told for told in book.told if told[0] == "log")][-1]
    assert last["validation/loss"] == run.metrics["validation"]["loss"] and "learning_rate" in last
    assert last["test/accuracy"] == run.metrics["test"]["accuracy"]
    assert book.told[-3:] == [("file", "curves.png"), ("file", "result.json"), ("finish", "finished")]


def test_a_resumed_run_goes_on_in_the_same_tracked_run_and_tells_no_step_twice(tmp_path):
    first, second = Book(), Book()
    an.fit(small(Config(steps=4)), workdir=tmp_path / "run", trackers=[first], progress=False)
    an.fit(small(Config(steps=8)), workdir=tmp_path / "run", resume=True, allow_change=True, trackers=[second],
           progress=False)  # fmt: skip
    assert second.told[0][3] == "first"
    assert max(first.steps) < min(second.steps) and max(second.steps) == 8


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, capsys):
    book, other = Book(fails="log"), CsvTracker(tmp_path / "curves.csv")
    run = an.fit(small(Config()), trackers=[book, other], progress=False)
    assert run.step == 4 and "the tracker book is left out from here on: ConnectionError" in capsys.readouterr().err
    header, *rows = other.path.read_text().splitlines()
    assert header.startswith("step,") and "validation/loss" in header and rows[-1].startswith("4,")


def test_an_error_of_the_run_ends_the_tracked_run_as_failed():
    book = Book()
    experiment = small(Config(learning_rate=1e30, steps=40)).replace(optimizer=an.optim.sgd(1e30))
    with pytest.raises(an.DivergenceError):
        an.fit(experiment, trackers=[book], progress=False)
    assert book.told[-1] == ("finish", "failed")


@pytest.mark.parametrize(
    ("trackers", "words"), [([object()], "expected an object with name, start"), ([Book(), Book()], "give each once")]
)
def test_what_is_no_tracker_is_refused(trackers, words):
    with pytest.raises(UserError, match=words):
        Tracking(trackers, {}, "toy", None)


def test_a_run_is_told_to_a_tracker_afterwards(tmp_path, capsys):
    run = tmp_path / "run"
    an.main(small, ["train", "--quiet", "--workdir", str(run), "--track", "csv"])
    told = (run / "curves.csv").read_text()
    (run / "curves.csv").unlink()
    (run / "trackers.json").unlink()
    tool(["track", str(run), "--to", "csv"])
    assert "to csv" in capsys.readouterr().out and (run / "curves.csv").read_text() == told
    tool(["track", str(run), "--to", "csv"])
    assert (run / "curves.csv").read_text() == told
    with pytest.raises(SystemExit) as end:
        tool(["track", str(tmp_path / "nowhere"), "--to", "csv"])
    assert end.value.code == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as end:
        an.main(small, ["train", "--track", name])
    assert end.value.code == 2
