"""The server as a process, its pages in a browser, and what an image is built from."""

import base64
import hashlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

import accelnet as an
from accelnet.cli.tool import tool
from accelnet.serving.docker import write_docker
from accelnet.serving.http import HTML, Response
from accelnet.serving.server import listening
from accelnet.serving.service import _constant
from tests.artifact.conftest import IMAGES, table_run
from tests.serving.conftest import image_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return image_run().save(tmp_path_factory.mktemp("server") / "model.accelnet")


@pytest.mark.slow  # a process: how it begins and ends is what is tested
def test_sigterm_ends_a_server_after_what_is_under_way(artifact):
    command = [sys.executable, "-m", "accelnet", "serve", str(artifact), "--port", "0", "--batch-size", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        lines = iter(server.stderr.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r"served at http://127.0.0.1:(\d+)", line)))
        body = json.dumps(IMAGES[:20].tolist())
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
            client.putrequest("POST", "/predict")
            client.putheader("content-length", str(len(body)))
            client.endheaders(body[:100].encode())
            server.send_signal(signal.SIGTERM)
            while True:  # until it accepts nobody any more
                try:
                    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as other:
                        other.request("GET", "/health")
                        other.getresponse().read()
                except OSError:
                    break
            client.send(body[100:].encode())
            response = client.getresponse()
            assert response.status == 200
            labels = [row["label"] for row in json.loads(response.read())["predictions"]]
        out, err = server.communicate(timeout=30)
    assert labels == an.load(artifact).predict(IMAGES[:20]).labels.tolist()
    assert (server.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--port", "{port}"], "port {port} of 127.0.0.1 is in use: give another port"),
        (["--port", "70000"], "port is 70000, expected a whole number from 0 to 65535"),
        (["--host", "no.such.host.invalid"], "host is 'no.such.host.invalid', expected an address of this machine"),
        (["--max-queue", "0"], "--max-queue is 0, expected"),
        (["--timeout", "0"], "--timeout is 0.0, expected a finite number above 0"),
    ],
)
def test_a_mistake_is_one_message(artifact, args, text, capsys):
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SystemExit) as end:
            tool(["serve", str(artifact), *(one.format(port=port) for one in args)])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and text.format(port=port) in error


def in_browser(served, page, actions, tmp_path):
    """Return what a browser makes of a page of the server after some actions, which its policy is made to allow."""
    status, text = served.ask("GET", page)
    assert status == 200 and "https:" not in text.replace("https://json", "")
    digest = base64.b64encode(hashlib.sha256(actions.encode()).digest()).decode()
    text = text.replace("script-src 'sha256-", f"script-src 'sha256-{digest}' 'sha256-")
    text = text.replace("</body>", f"<script>{actions}</script></body>")
    served.service.application._routes["GET", "/acted"] = _constant(Response(text.encode(), HTML))
    command = [
        shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", f"--user-data-dir={tmp_path}", "--virtual-time-budget=4000", "--dump-dom",
        f"http://127.0.0.1:{served.port}/acted",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow  # a browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_the_page_predicts_in_a_browser(serving, tmp_path):
    served = serving(table_run(), "table")
    actions = """
const set = (name, value) => { document.getElementsByName(name)[0].value = value };
set("size", "4.5"); set("hue", "red"); document.querySelector("button").click();
"""
    found = in_browser(served, "/", actions, tmp_path)
    expected = served.model.predict([{"size": 4.5, "hue": "red"}]).numbers[0, 0]
    number = float(re.search(r'<div id="answer"[^>]*><strong>([^<]*)</strong>', found)[1])
    assert number == pytest.approx(expected, rel=1e-5)
    missing = in_browser(served, "/", actions.replace("red", "").replace("4.5", "1e999"), tmp_path)
    assert "<strong>" not in missing


def test_the_descriptions_name_every_route(pictures):
    status, found = pictures.ask("GET", "/openapi.json")
    told = {(method.upper(), path) for path, methods in found["paths"].items() for method in methods}
    pages = {("GET", path) for path in ("/", "/docs", "/openapi.json")}
    assert status == 200 and told | pages == set(pictures.service.application._routes)
    status, page = pictures.ask("GET", "/docs")
    assert status == 200 and "curl $SERVER/predict --data-binary @picture.png" in page and "<script" not in page


def test_an_image_is_built_from_pinned_versions_this_accelnet_and_the_artifact(artifact, tmp_path):
    names = write_docker(an.load(artifact), tmp_path / "image")
    assert {path.name for path in (tmp_path / "image").iterdir()} == set(names)
    text = (tmp_path / "image" / "Dockerfile").read_text()
    lines = text.splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert set(copied) == set(names) - {"Dockerfile"}
    assert lines.index("USER accelnet") < lines.index(next(line for line in lines if line.startswith("CMD")))
    assert "HEALTHCHECK" in text and f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in lines
    pins = dict(line.split("==") for line in (tmp_path / "image" / "requirements.txt").read_text().splitlines())
    versions = an.load(artifact).config["versions"]
    assert {name: pins[name] for name in ("jax", "jaxlib", "flax", "numpy")} == {
        "jax": versions["jax"], "jaxlib": versions["jax"], "flax": versions["flax"], "numpy": versions["numpy"],
    }  # fmt: skip
    assert {"uvicorn", "orjson", "optax", "tensorstore"} <= set(pins)
    assert (tmp_path / "image" / "model.accelnet").read_bytes() == artifact.read_bytes()
    wheel = next(name for name in names if name.endswith(".whl"))
    with zipfile.ZipFile(tmp_path / "image" / wheel) as archive:
        held = set(archive.namelist())
    assert {"accelnet/serving/try.js", "accelnet/ops/kernels/kernels.cc", "accelnet/__init__.py"} <= held
