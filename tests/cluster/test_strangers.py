"""The rendezvous among strangers: nothing that they send ends the start, delays it, or takes a process's place."""

import json
import socket
import time
from contextlib import ExitStack, closing, suppress

import pytest

from accelnet.cluster import meeting, rendezvous, sealed
from accelnet.cluster.rendezvous import bind_address
from accelnet.errors import LostProcessError
from tests.cluster.hellos import Process, answer_of, connect, greeting, hello

pytestmark = [pytest.mark.slow, pytest.mark.waits]

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Without a launcher, and without jax's service, which takes the port over."""
    for name in ("JAX_COORDINATOR_BIND_ADDRESS", sealed.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rendezvous, "_wait_for_service", lambda *_: None)


@pytest.fixture(params=["with a secret", "without"])
def secret(request, monkeypatch):
    if request.param == "with a secret":
        monkeypatch.setenv(sealed.VARIABLE, "the run's")
    return request.param == "with a secret"


LINES = [
    b"",
    b"\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"[]\n",
    b"\xff\xfe\n",
    b"[" * 4000 + b"\n",
    b"x" * 100_000,
    json.dumps(hello()).encode() + b"\n",
]
WRONG = [
    {"num_processes": 10**9},
    {"num_processes": 1},
    {"rank": 0},
    {"rank": -1},
    {"rank": 3},
    {"rank": True},
    {"rank": "1"},
    {"rank": 1.0},
    {"rank": None},
    {"seconds": -1.0},
    {"seconds": 0.0},
    {"seconds": 1},
    {"seconds": float("nan")},
    {"seconds": float("inf")},
    {"host": ""},
    {"host": 5},
    {"host": "h" * 300},
    {"host": ["a"]},
    {"nonce": ""},
    {"nonce": 5},
]


def test_what_no_process_says_is_dropped_and_the_run_starts(port, secret):
    first = Process(port, 3, 0)
    for line in LINES:
        with connect(port) as stranger:
            greeting(stranger)
            stranger.sendall(line)
            if line.endswith(b"\n") or len(line) > 4096:
                assert answer_of(stranger) == b""
    for wrong in WRONG:
        with connect(port) as stranger:
            stranger.sendall(sealed.seal(hello(**wrong), "hello", greeting(stranger)["nonce"]))
            assert answer_of(stranger) == b"", wrong
    others = [Process(port, 3, rank) for rank in (2, 1)]
    assert [one.end() for one in (first, *others)] == [[HOST] * 3] * 3


def test_a_stranger_without_the_secret_takes_no_place_whatever_it_says(port, monkeypatch):
    monkeypatch.setenv(sealed.VARIABLE, "the run's")
    first = Process(port, 3, 0)
    for words in ({}, {"rank": 2}, {"num_processes": 4}, {"seconds": 0.001}):
        with connect(port) as stranger:
            told = greeting(stranger)
            assert told["secret"] is True
            text = json.dumps(hello(**words))
            mac = sealed.hmac.new(b"a guess", f"hello\n{told['nonce']}\n{text}".encode(), "sha256").hexdigest()
            stranger.sendall(f"{mac} {text}\n".encode())
            assert answer_of(stranger) == b""
    # What a process of the run said on one connection is worth nothing on another.
    with connect(port) as one, connect(port) as two:
        line = sealed.seal(hello(), "hello", greeting(one)["nonce"])
        greeting(two)
        two.sendall(line)
        assert answer_of(two) == b""
    others = [Process(port, 3, rank) for rank in (1, 2)]
    assert [one.end() for one in (first, *others)] == [[HOST] * 3] * 3


def test_the_secret_is_never_sent(port, monkeypatch):
    monkeypatch.setenv(sealed.VARIABLE, "the run's secret")
    seen = bytearray()
    receive, send = socket.socket.recv, socket.socket.sendall

    class Heard(socket.socket):
        def recv(self, *args):
            seen.extend(data := receive(self, *args))
            return data

        def sendall(self, data, *args):
            seen.extend(data)
            return send(self, data, *args)

    monkeypatch.setattr(socket, "socket", Heard)
    processes = [Process(port, 2, rank) for rank in (0, 1)]
    assert [one.end() for one in processes] == [[HOST] * 2] * 2
    assert b"num_processes" in seen and b"secret" in seen and b"the run's secret" not in seen


def test_without_a_secret_a_wrong_number_ends_the_one_that_said_it_alone(port):
    first = Process(port, 3, 0)
    wrong = Process(port, 4, 1)
    assert "process 1 on" in str(wrong.end()) and "for a run of 4 processes, and process 0" in str(wrong.told)
    with connect(port) as impatient:
        impatient.sendall(sealed.seal(hello(rank=2, seconds=1e-3), "hello", greeting(impatient)["nonce"]))
        time.sleep(0.3)  # its time is over, and that of the run is not
        assert "two processes have the id 2, on far and on" in str(Process(port, 3, 2).end())
    others = [Process(port, 3, rank) for rank in (1, 2)]
    assert [one.end() for one in (first, *others)] == [[HOST] * 3] * 3


def test_connections_that_say_nothing_or_little_neither_delay_nor_keep_out(port, secret, monkeypatch):
    monkeypatch.setattr(meeting, "_MOST_WAITING", 16)
    first = Process(port, 3, 0)
    with ExitStack() as open_connections:
        slow = [open_connections.enter_context(connect(port)) for _ in range(60)]
        for connection in slow[-10:]:
            connection.sendall(b"x")
        start = time.monotonic()
        others = [Process(port, 3, rank) for rank in (1, 2)]
        assert [one.end() for one in (first, *others)] == [[HOST] * 3] * 3
        assert time.monotonic() - start < 5


def test_one_that_is_slow_to_say_hello_is_dropped(port, secret, monkeypatch):
    monkeypatch.setattr(meeting, "_HELLO_SECONDS", 0.3)
    first = Process(port, 2, 0)
    with connect(port) as slow:
        greeting(slow)
        start = time.monotonic()
        for byte in sealed.seal(hello(), "hello", "0"):
            try:
                slow.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("it was listened to for ever")
        assert time.monotonic() - start < 3
    assert [one.end() for one in (first, Process(port, 2, 1))] == [[HOST] * 2] * 2


def test_when_no_more_connections_fit_into_the_process_it_goes_on(port, secret, monkeypatch):
    with socket.create_server(("127.0.0.1", port)) as listener:
        accept, refusals = listener.accept, iter([True, True, False])

        class Full:
            def __getattr__(self, name):
                return getattr(listener, name)

            def accept(self):
                if next(refusals, False):
                    raise OSError(24, "Too many open files")
                return accept()

        where = {"num_processes": 2, "host": HOST}
        visitor = Process(port, 2, 1)
        assert meeting.Meeting(Full(), where, time.monotonic() + 10, 10.0).wait() == [HOST] * 2
        assert visitor.end() == [HOST] * 2


def test_a_process_that_went_away_may_come_again(port, secret):
    first = Process(port, 3, 0)
    with connect(port) as gone:
        gone.sendall(sealed.seal(hello(host="gone"), "hello", greeting(gone)["nonce"]))
        time.sleep(0.2)
    time.sleep(0.2)
    others = [Process(port, 3, rank) for rank in (1, 2)]
    assert [one.end() for one in (first, *others)] == [[HOST] * 3] * 3


def test_processes_of_which_one_lacks_the_secret_are_told_what_is_missing(port, monkeypatch):
    first = Process(port, 2, 0, seconds=1.0)
    with connect(port):  # it listens, and has no secret
        pass
    with monkeypatch.context() as patch:
        patch.setenv(sealed.VARIABLE, "the run's")
        # Both are threads of this process, whose secret is the same: the greeting told of none.
        assert rendezvous._turned_away(False) == (
            "process 0 has no ACCELNET_TOKEN and the other has one: give all processes the same"
        )
        assert "ACCELNET_TOKEN must be the same in all" in rendezvous._turned_away(True)
    assert rendezvous._turned_away(True).startswith("this process has no ACCELNET_TOKEN")
    with connect(port) as stranger:
        greeting(stranger)
        stranger.sendall(b"nothing\n")
        assert answer_of(stranger) == b""
    told = str(first.end())
    assert "missing: 1" in told and "Turned away: 127.0.0.1 (is no process of this run)" in told


@pytest.mark.parametrize(
    "says",
    [
        lambda nonce: b'{"hosts": ["a", "b"]}\n',
        lambda nonce: b"0" * 64 + b' {"error": "end now"}\n',
        lambda nonce: b"x" * 10_000_000 + b"\n",
        lambda nonce: b"",
    ],
)
def test_what_is_no_process_0_of_this_run_ends_no_other_process(port, monkeypatch, says):
    monkeypatch.setenv(sealed.VARIABLE, "the run's")
    monkeypatch.setattr(rendezvous, "_GRACE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", port)) as false:
        visitor = Process(port, 2, 1, seconds=10.0)
        connection, _ = false.accept()
        with closing(connection):
            connection.sendall(json.dumps({"nonce": "0" * 32, "secret": True}).encode() + b"\n")
            nonce = connection.recv(65536)
            with suppress(OSError):  # it may have heard enough
                connection.sendall(says(nonce))
    first = Process(port, 2, 0)
    assert [one.end() for one in (first, visitor)] == [[HOST] * 2] * 2


def test_a_false_process_0_that_drips_an_answer_takes_no_more_than_the_time_there_is(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_GRACE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", port)) as false:
        start = time.monotonic()
        visitor = Process(port, 2, 1, seconds=1.0)
        connection, _ = false.accept()
        with closing(connection):
            connection.sendall(json.dumps({"nonce": "0" * 32, "secret": False}).encode() + b"\n")
            while visitor.thread.is_alive() and time.monotonic() - start < 10:
                try:
                    connection.sendall(b"x")
                except OSError:
                    break
                time.sleep(0.1)
        assert isinstance(visitor.end(), LostProcessError) and time.monotonic() - start < 5


def test_process_0_listens_where_it_has_to_be_reached(port, monkeypatch):
    assert bind_address("127.0.0.1:1") == bind_address("localhost:1") == "127.0.0.1:1"
    assert bind_address("[::1]:1") == "[::1]:1"
    assert bind_address("10.0.0.1:1") is bind_address("node7:1") is None
    with rendezvous._listen(port, bind_address(f"127.0.0.1:{port}")) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "127.0.0.2:5")
    assert bind_address("10.0.0.1:1") == "127.0.0.2:5"
