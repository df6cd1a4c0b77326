"""Daily habits of trying, following and using a model, each as docs/habits.md tells it."""

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import threading
from pathlib import Path

import chex
import numpy as np
import pytest

import accelnet as an
from accelnet.cli.tool import tool
from tests.habits.conftest import X, small


def test_try_everything_once(command):
    assert "the metrics mean nothing" in command("train --fast-dev-run --quiet")


def test_overfit_a_few_batches(command):
    told = command("train --overfit-batches 2 --epochs 60 --quiet --json")
    result = json.loads(told.splitlines()[-1])
    assert result["metrics"]["train"]["accuracy"] > 0.95


def test_profile():
    run = an.fit(small(epochs=20), workdir="runs/traced", profile=True, progress=False)
    assert run.profile is not None and list(Path("runs/traced/profile").rglob("*.xplane.pb"))


@pytest.mark.filterwarnings("ignore")  # W&B warns of its own dependencies
def test_log_to_weights_and_biases(folder, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    experiment = small()
    an.fit(experiment, trackers=[an.tracking.WandBTracker(project="toy")], progress=False)
    assert list(folder.glob("wandb/offline-run-*"))


def test_evaluate_with_a_confusion_matrix(run):
    found = an.assess(run).values
    assert np.sum(found["confusion"]) == 12 and found["metrics"]["accuracy"]["low"] < 1 and found["worst"]


def test_predict(run):
    outputs = run.predict(X[:5])
    chex.assert_shape(outputs, (5, 2))


def test_save_a_model_that_needs_no_code(run):
    run.save("model.accelnet")
    model = an.load("model.accelnet")
    np.testing.assert_array_equal(model.predict(X[:5]).labels, np.argmax(run.predict(X[:5]), axis=1))


def test_export_to_onnx(run):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    found = an.export(run, to="onnx", out="dist")
    assert Path("dist/model.onnx").exists() and found.values["formats"]["onnx"]["largest"] < 1e-4


def test_serve(run):
    pytest.importorskip("uvloop", reason="the extra serve is not installed")
    run.save("model.accelnet")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers, ended = [], threading.Event()

    def ask():
        body, kind = json.dumps(X[:2].tolist()), {"content-type": "application/json"}
        while not ended.wait(0.1):
            with (
                contextlib.suppress(OSError),
                contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection,
            ):
                connection.request("POST", "/predict", body, kind)
                answer = connection.getresponse()
                if answer.status == 200:
                    answers.append(json.loads(answer.read()))
                    os.kill(os.getpid(), signal.SIGTERM)  # which the server waits for
                    return

    client = threading.Thread(target=ask)
    client.start()
    try:
        tool(shlex.split(f"serve model.accelnet --port {port} --quiet"))
    finally:
        ended.set()
        client.join()
    assert [one["label"] for one in answers[0]["predictions"]] == np.argmax(run.predict(X[:2]), axis=1).tolist()
