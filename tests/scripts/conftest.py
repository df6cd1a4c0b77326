"""A cloud for the tests of launching."""

import contextlib
import os
import signal

import pytest

from tests.scripts import fake_gcloud
from tests.scripts.cloud import Cloud


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    made = Cloud(tmp_path)
    monkeypatch.setattr(fake_gcloud, "CLOUD", made.folder)
    yield made
    for process in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for pid in made.folder.glob("homes/*/accelnet-run/pid"):
        if not (pid.parent / "exit").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
