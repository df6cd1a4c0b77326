"""Models that are served, each by one server in a thread, for all tests of a module."""

import asyncio
import contextlib
import http.client
import json
import threading
import time

import numpy as np
import pytest

import accelnet as an
from accelnet.serving.limits import Limits
from accelnet.serving.server import listening, make_server, run
from accelnet.serving.service import Service
from tests.artifact.conftest import images, series, trained

LIMITS = Limits(batch_rows=8, steps=16, body_bytes=1 << 16, queue_rows=40, seconds=2.0)


class Served:
    """A server in a thread."""

    def __init__(self, model):
        self.model, self.service = model, Service(model, LIMITS)
        self.server = make_server(self.service, LIMITS)
        listener = listening("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.failed = None

        def serve():
            try:
                asyncio.run(run(self.server, self.service, listener, progress=False))
            except BaseException as error:  # noqa: BLE001
                self.failed = error

        self.thread = threading.Thread(target=serve)
        self.thread.start()
        for _ in range(600):
            if self.service.ready or self.failed:
                break
            time.sleep(0.05)
        assert self.failed is None and self.service.ready

    def ask(self, method, path, body=None, kind="application/json", **headers):
        """Return status and body, of JSON its value."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, content, {"content-type": kind, **headers} if content else headers)
            response = connection.getresponse()
            found = response.read()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.status, json.loads(found) if is_json else found.decode()

    def predict(self, body, **options):
        status, found = self.ask("POST", "/predict", body, **options)
        assert status == 200, found
        return found

    def stop(self):
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive() and self.failed is None


def series_run():
    return trained(series(), lambda rngs: an.models.RNN(4, 8, 3, cell="gru", bidirectional=True, rngs=rngs))


def image_run():
    return trained(images(), lambda rngs: an.models.CNN((12, 12, 1), (4,), 3, norm="batch", rngs=rngs))


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Return a function that serves a run, until the tests of the module end."""
    folder, made = tmp_path_factory.mktemp("served"), []

    def serve(run, name):
        made.append(Served(an.load(run.save(folder / f"{name}.accelnet"))))
        return made[-1]

    yield serve
    for one in made:
        one.stop()


@pytest.fixture(scope="module")
def pictures(serving):
    return serving(image_run(), "pictures")


@pytest.fixture(scope="module")
def sequences(serving):
    return serving(series_run(), "sequences")


def close(found, expected):
    """Compare with what `predict` gives; sizes of batches differ, and with them how float32 rounds."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
