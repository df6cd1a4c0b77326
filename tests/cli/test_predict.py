"""From a trained run to predictions in a file, with the script and without it."""

import csv
import json

import numpy as np
import pytest

import accelnet as an
from accelnet.artifact.load import LAST
from accelnet.cli.tool import tool
from tests.cli.conftest import Done, small

pytestmark = pytest.mark.usefixtures("no_pictures")

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the work directory of a run with its model, beside inputs in a file."""
    from tests.cli.conftest import Config

    folder = tmp_path_factory.mktemp("run")
    done = an.fit(small(Config()), workdir=folder / "run", progress=False)
    done.save(folder / "run" / LAST)
    np.save(folder / "x.npy", X)
    return folder / "run"


@pytest.fixture
def accelnet(capsys):
    """Return a function that runs the command `accelnet` and says how it ended."""

    def call(*args):
        capsys.readouterr()
        try:
            tool([str(arg) for arg in args])
        except SystemExit as end:
            return Done(end.code, *capsys.readouterr())
        return Done(0, *capsys.readouterr())

    return call


def labels(path):
    with path.open() as file:
        return [row["label"] for row in csv.DictReader(file)]


def expected(run, **options):
    from tests.cli.conftest import Config

    restored = an.evaluate(small(Config()), run, splits=[], **options)
    return np.asarray(restored.predict(X)).argmax(axis=1).astype(str).tolist()


def test_a_model_needs_no_script(run, accelnet, tmp_path):
    model = an.load(run)
    assert model.metrics["step"] == 4 and set(model.metrics["metrics"]) == {"train", "validation", "test"}
    done = accelnet("predict", run, run.parent / "x.npy", "-o", tmp_path / "out.csv", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1]) == {
        "predictions": 40, "kind": "classes", "out": str(tmp_path / "out.csv"), "skipped": {},
    }  # fmt: skip
    assert labels(tmp_path / "out.csv") == expected(run)
    of_file = accelnet("predict", run / LAST, run.parent / "x.npy", "--out", tmp_path / "b.csv", "--probabilities")
    assert of_file.code == 0 and "probability of 1" in (tmp_path / "b.csv").read_text().splitlines()[0]


def test_the_script_predicts_too_and_from_the_best_weights(run, command, tmp_path):
    out = tmp_path / "out.csv"
    done = command(small, "predict", "--workdir", str(run), str(run.parent / "x.npy"), "-o", str(out), "--best")
    assert done.code == 0, done.err
    assert "40 predictions of classes in" in done.out and labels(out) == expected(run, best=True)


@pytest.mark.slow
def test_a_run_that_is_not_finished_predicts_by_its_newest_checkpoint(command, tmp_path):
    from tests.cli.conftest import Config

    workdir, out = tmp_path / "run", tmp_path / "out.csv"
    experiment = small(Config(steps=10)).replace(config={"steps": 10}, name="conftest")
    an.fit(experiment, workdir=workdir, progress=False)  # as the library does, which writes no model
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(an.UserError, match=r"holds no model\.accelnet: the verb predict writes one"):
        an.load(workdir)
    for best in ((), ("--best",)):
        done = command(small, "predict", "--workdir", str(workdir), str(tmp_path / "x.npy"), "-o", str(out), *best)
        assert done.code == 0, done.err
    assert an.load(workdir).metrics["step"] == 10
    assert set(an.load(workdir).metrics["metrics"]) == {"validation"}  # as the checkpoint's rows tell
    assert an.load(workdir, best=True).metrics["step"] == an.evaluate(experiment, workdir, best=True, splits=[]).step


@pytest.mark.slow
def test_an_old_model_gives_way_to_a_newer_checkpoint(command, tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "out.csv"
    assert command(small, "train", "--workdir", str(workdir), "--quiet").code == 0
    np.save(tmp_path / "x.npy", X)
    predict = ("predict", "--workdir", str(workdir), str(tmp_path / "x.npy"), "-o", str(out))
    assert command(small, *predict).code == 0 and an.load(workdir).metrics["step"] == 4
    more = ("train", "--workdir", str(workdir), "--resume", "--steps", "8", "--allow-change", "--quiet")
    assert command(small, *more).code == 0
    done = command(small, *predict)
    assert done.code == 0 and an.load(workdir).metrics["step"] == 8


def test_evaluate_adds_its_intervals(run, command):
    done = command(small, "evaluate", "--workdir", str(run), "--quiet", "--split", "train")
    assert done.code == 0, done.err
    low, high = an.load(run).metrics["intervals"]["train"]["accuracy"]
    assert low <= an.load(run).metrics["metrics"]["train"]["accuracy"] <= high


def test_rows_that_cannot_be_read_are_named_or_skipped(run, accelnet, tmp_path):
    wrong = X.copy()
    wrong[[3, 30]] = np.nan
    np.save(tmp_path / "x.npy", wrong)
    done = accelnet("predict", run, tmp_path / "x.npy", "-o", tmp_path / "out.csv")
    assert done.code == 2 and done.err.count("\n") == 1 and "error: row 3: inputs are NaN" in done.err
    assert not (tmp_path / "out.csv").exists()
    done = accelnet("predict", run, tmp_path / "x.npy", "-o", tmp_path / "out.csv", "--skip-bad", "--json")
    assert done.code == 0 and done.err.count("skipped: row") == 2
    assert list(json.loads(done.out.splitlines()[-1])["skipped"]) == ["3", "30"]
    assert "38 predictions of classes" in done.out and "2 rows skipped" in done.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{run}", "{x}", "-o", "{out}.xlsx"], "expected '.csv', '.parquet', '.npz'"),
        (["{run}", "{x}.gone", "-o", "{out}.csv"], "x.npy.gone is no .npy or .npz file"),
        (["{run}", "-o", "{out}.csv"], "there are no inputs"),
        (["{run}/gone", "{x}", "-o", "{out}.csv"], "gone is not there"),
        (["{run}", "{x}", "-o", "{out}.csv", "--batch-size", "0"], "batch_size is 0, expected"),
        (["{x}", "{x}", "-o", "{out}.csv"], "x.npy is no artifact"),
        (["{run}", "{x}", "-o", "{x}/deep/out.csv"], "cannot write"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(run, accelnet, tmp_path, args, message):
    names = {"run": run, "x": run.parent / "x.npy", "out": tmp_path / "out"}
    done = accelnet("predict", *(arg.format(**names) for arg in args))
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_refreshes_a_model(run, accelnet, tmp_path):
    done = accelnet("refresh", run / LAST, "--out", tmp_path / "new.accelnet")
    assert done.code == 0 and "accelnet's own model, made again" in done.out
    np.testing.assert_array_equal(
        an.load(tmp_path / "new.accelnet").predict(X).outputs, an.load(run / LAST).predict(X).outputs
    )
