"""Connections to process 0 of a run, and what they say."""

import json
import socket
import threading
import time
from contextlib import closing

from accelnet.cluster.rendezvous import meet
from accelnet.errors import LostProcessError, UserError


class Process:
    """A process of the run, in a thread."""

    def __init__(self, port, num_processes, rank, seconds=10.0):
        self.told = None

        def come():
            try:
                self.told = meet(f"127.0.0.1:{port}", num_processes, rank, timeout_seconds=seconds)
            except (UserError, LostProcessError) as error:
                self.told = error

        self.thread = threading.Thread(target=come)
        self.thread.start()

    def end(self):
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.told


def connect(port):
    deadline = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            connection.settimeout(10)
            return closing(connection)


def greeting(connection):
    return json.loads(connection.recv(4096))


def hello(**changes):
    return {"rank": 1, "num_processes": 3, "host": "far", "seconds": 9.0, "nonce": "0" * 32} | changes


def answer_of(connection):
    """Return what process 0 says after its greeting; nothing if it hangs up."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
