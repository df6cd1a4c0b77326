"""The trackers of others, offline, with their own packages."""

import importlib
import json

import pytest

from accelnet.tracking import MLflowTracker, TrackioTracker, WandBTracker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those packages warn of their own dependencies
]


def installed(name):
    return pytest.importorskip(name, reason=f"the extra {name} is not installed")


def told(tracker, second):
    """Tell two starts of one run, as Tracking does."""
    identity = tracker.start({"width": 8}, "toy-run", None)
    tracker.log(1, {"train/loss": 2.0})
    tracker.finish("preempted")
    assert second.start({"width": 8}, "toy-run", identity) == identity
    second.log(2, {"train/loss": 1.0, "validation/accuracy": 0.5})
    return identity


def test_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    installed("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    first, second = (WandBTracker(project="toy", mode="offline", dir=str(tmp_path)) for _ in range(2))
    (tmp_path / "result.json").write_text("{}")
    identity = told(first, second)
    second.file(tmp_path / "result.json")
    second.finish("finished")
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))) == 2


def test_mlflow_keeps_a_run_in_a_file(tmp_path, monkeypatch):
    mlflow = installed("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first, second = (MLflowTracker(experiment="toy", uri=uri) for _ in range(2))
    (tmp_path / "result.json").write_text("{}")
    identity = told(first, second)
    second.file(tmp_path / "result.json")
    second.finish("finished")
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run(identity)
    assert run.info.status == "FINISHED" and run.data.params == {"width": "8"}
    assert [(one.step, one.value) for one in client.get_metric_history(identity, "train/loss")] == [(1, 2.0), (2, 1.0)]
    assert [one.path for one in client.list_artifacts(identity)] == ["result.json"]


def test_trackio_keeps_a_run_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    installed("trackio")
    first, second = (TrackioTracker(project="toy") for _ in range(2))
    told(first, second)
    second.finish("finished")
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    rows = storage.get_logs("toy", "toy-run")
    assert [(row["step"], row["train/loss"]) for row in rows] == [(1, 2.0), (2, 1.0)], json.dumps(rows, default=str)
