"""Clients that are slow, huge, malformed or gone harm neither the server nor other clients."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from accelnet.errors import UserError
from accelnet.serving.bodies import read_npy
from tests.artifact.conftest import IMAGES

GOOD = json.dumps(IMAGES[0].tolist()).encode()
HEAD = b"POST /predict HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "text"),
    [
        ("POST", "/predict", b"[[1, 2", {}, 400, "the body is no JSON"),
        ("POST", "/predict", b"", {}, 400, "the body is no JSON"),
        ("POST", "/predict", b"\xff\xfe", {"content-type": "application/json"}, 422, "the picture is no picture"),
        ("POST", "/predict", b"[" * 5000, {}, 400, "the body is no JSON"),
        ("POST", "/predict", b"[NaN]", {}, 400, "the body is no JSON"),
        ("POST", "/predict", b"7", {}, 422, "expected [B, 12, 12, 1]"),
        ("POST", "/predict", b'"/etc/passwd"', {}, 422, "picture 0 is text that is no base64"),
        ("POST", "/predict", b"[[[1], 2]]", {}, 422, "rows of unequal lengths"),
        ("POST", "/predict", b'{"a": 1}', {}, 422, "inputs"),
        ("POST", "/predict", b"\x93NUMPY\x01\x00", {}, 422, "the .npy file cannot be read"),
        ("POST", "/predict", b"GIF89a", {"content-type": "image/gif"}, 422, "no picture that can be read"),
        ("POST", "/predict", b"--x\r\n", {"content-type": "multipart/form-data; boundary=x"}, 400, "cut short"),
        ("POST", "/predict", GOOD, {"content-encoding": "gzip"}, 415, "the body is compressed"),
        ("POST", "/predict", b"1" * (1 << 17), {}, 413, "more than 65,536 bytes"),
        (
            "POST",
            "/predict",
            json.dumps([[[[1]] * 12] * 12] * 41).encode(),
            {},
            413,
            "has 41 rows, expected 40",
        ),
        ("PUT", "/predict", GOOD, {}, 405, "/predict takes POST, not PUT"),
        ("GET", "/not/there", None, {}, 404, "there is no '/not/there'"),
        ("POST", "/v2/models/experiment/infer", b"[]", {}, 400, 'no list "inputs"'),
    ],
)
def test_a_bad_request_gets_one_message(pictures, method, path, body, headers, status, text):
    found = pictures.ask(method, path, body, headers.get("content-type", "application/json"), **headers)
    assert found[0] == status and set(found[1]) == {"error"} and text in found[1]["error"], found


def test_a_npy_file_that_claims_more_than_it_holds_asks_for_no_memory(pictures):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({1 << 45}, 12, 12, 1), }}".ljust(117) + "\n"
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"1" * 10
    status, found = pictures.ask("POST", "/predict", body)
    assert status == 422 and "the .npy file cannot be read" in found["error"]


@pytest.mark.parametrize("seed", range(10))
def test_a_npy_file_with_a_damaged_header_is_refused_whatever_numpy_makes_of_it(seed):
    buffer, rng = io.BytesIO(), np.random.default_rng(seed)
    np.save(buffer, IMAGES[:1])
    for _ in range(40):
        content = bytearray(buffer.getvalue())
        for place in rng.integers(6, 128, 3):  # behind the magic bytes
            content[place : place + rng.integers(0, 3)] = bytes(rng.choice(list(b" (){}[]'\":,\n\x00\xff0a"), 1))
        with contextlib.suppress(UserError):
            assert read_npy(bytes(content)).dtype.hasobject is False


def test_a_small_file_of_a_huge_picture_is_not_decoded(pictures):
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "png")
    status, found = pictures.ask("POST", "/predict", buffer.getvalue(), "image/png")
    assert status == 422 and "9000 x 9000 pixels, expected 67,108,864 at most" in found["error"]


def answer_to(port, *parts):
    """Send parts; return what comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for part in parts:
            client.sendall(part)
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(1 << 16):
                found += part
    return found


def test_clients_that_send_nonsense_too_much_or_nothing_are_let_go(pictures):
    chunk = b"8000\r\n" + b"1" * 0x8000 + b"\r\n"
    cases = [
        ([b"hello\r\n\r\n"], b"HTTP/1.1 400 Bad Request"),
        ([HEAD + b"content-length: 100\r\n\r\n[1"], b"HTTP/1.1 408 Request Timeout"),
        ([HEAD + b"transfer-encoding: chunked\r\n\r\n", chunk, chunk, chunk], b"HTTP/1.1 413 Content Too Large"),
        ([HEAD + b"content-le"], b""),
    ]
    began = time.monotonic()
    with ThreadPoolExecutor(len(cases)) as threads:
        found = list(threads.map(lambda case: answer_to(pictures.port, *case[0]).partition(b"\r\n")[0], cases))
    found[2] = found[2].replace(b"Request Entity Too Large", b"Content Too Large")  # its name before Python 3.13
    assert found == [expected for _, expected in cases]
    assert time.monotonic() - began < 8  # two seconds are allowed, and connections looked at every second


@pytest.mark.parametrize("start", [HEAD + b"x: ", b"GET /"])
def test_a_head_without_an_end_is_let_go_before_it_fills_the_memory(pictures, start):
    with socket.create_connection(("127.0.0.1", pictures.port), timeout=10) as client:
        client.sendall(start + b"y" * ((1 << 16) + 1 - len(start)))
        time.sleep(0.2)  # until all of it is read: with unread bytes, the end of a connection takes its answer along
        client.sendall(b"y")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert client.recv(1 << 16) == b""
    with socket.create_connection(("127.0.0.1", pictures.port), timeout=10) as client:
        # Long heads that end are answered, one after the other.
        head = b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 60_000
        for _ in range(3):
            client.sendall(head)
            time.sleep(0.1)
            client.sendall(b"\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")


def test_bad_clients_leave_others_unharmed_and_nothing_behind(pictures):
    """Good clients get the same answers, while others send half, send nonsense, and leave."""
    expected = pictures.model.predict(IMAGES).labels.tolist()
    over = threading.Event()
    bad = [GOOD[:-20], b"[[1, 2]]", b"[", json.dumps(IMAGES[:9].tolist()).encode()]

    def misbehave(number):
        while not over.is_set():
            body = bad[number % len(bad)]
            length = len(body) + 5 * (number % 2)  # of which some never come
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", pictures.port)) as client:
                client.sendall(HEAD + b"content-length: %d\r\n\r\n" % length + body)
            time.sleep(0.005)

    found = []

    def behave(number):
        connection = http.client.HTTPConnection("127.0.0.1", pictures.port, timeout=30)
        with contextlib.closing(connection):
            for row in range(number, 60, 4):
                connection.request("POST", "/predict", json.dumps(IMAGES[row].tolist()))
                response = connection.getresponse()
                found.append((response.status, row, json.loads(response.read()).get("label")))

    strangers = [threading.Thread(target=misbehave, args=(number,)) for number in range(4)]
    clients = [threading.Thread(target=behave, args=(number,)) for number in range(4)]
    for thread in (*strangers, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    over.set()
    for thread in strangers:
        thread.join()
    assert sorted(found, key=lambda one: one[1]) == [(200, row, expected[row]) for row in range(60)]
    for _ in range(100):
        if not pictures.server.server_state.connections:
            break
        time.sleep(0.1)
    assert not pictures.server.server_state.connections and not pictures.server.server_state.tasks
    status, text = pictures.ask("GET", "/metrics")
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200 and counts["accelnet_queue_rows"] == "0" and counts["accelnet_ready"] == "1"
    assert int(counts['accelnet_requests_total{route="/predict",status="499"}']) > 0
    assert int(counts["accelnet_request_seconds_count"]) >= 60
    assert float(counts["accelnet_batch_rows_sum"]) >= 60 and pictures.service.application._held_bytes == 0


def test_a_client_that_does_not_read_its_answer_is_let_go(pictures):
    """Requests in a row on one connection, whose answers nobody reads, fill its buffer."""
    body = json.dumps(IMAGES[:8].tolist()).encode()
    one = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.connect(("127.0.0.1", pictures.port))
        client.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(3000):
                client.sendall(one)
        assert pictures.server.server_state.connections
        for _ in range(300):
            if not pictures.server.server_state.connections:
                break
            time.sleep(0.1)
        assert not pictures.server.server_state.connections
    assert np.isclose(pictures.predict(GOOD)["probability"], pictures.model.predict(IMAGES[:1]).probabilities.max())
