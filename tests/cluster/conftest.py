"""Real processes of one run on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")


class Forks:
    """Starts workers as forks of one process that has imported what they need."""

    def __init__(self, folder):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, WORKER.with_name("fork_server.py"), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def start(self, mode, output, env):
        request = {"worker": str(WORKER), "mode": mode, "output": str(output), "env": env}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return Fork(int(self.server.stdout.readline()), self.folder)

    def close(self):
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()


class Fork:
    """A process as `subprocess.Popen` shows it."""

    def __init__(self, number, folder):
        self.number, self.ended = number, folder / str(number)

    def poll(self):
        return int(self.ended.read_text()) if self.ended.exists() else None

    def wait(self, seconds):
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(WORKER), seconds)
            time.sleep(0.01)
        return code

    def send_signal(self, number):
        os.kill(self.number, number)


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


class Run:
    """The processes of a run; what rank K says is in `directory`/K.txt."""

    def __init__(self, directory, forks):
        self.directory, self.forks = directory, forks
        self.processes = {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def start(self, mode, num_processes, *, ranks=None, ids=None, **settings):
        """Start worker.py in a mode; `ids` gives ranks other process ids, for mistakes."""
        for rank in range(num_processes) if ranks is None else ranks:
            env = os.environ | {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{self.port}",
                "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{self.port}",
                "JAX_NUM_PROCESSES": str(num_processes),
                "JAX_PROCESS_ID": str((ids or {}).get(rank, rank)),
                "RUN_DIRECTORY": str(self.directory),
            }
            env |= {name.upper(): str(value) for name, value in settings.items()}
            self.processes[rank] = self.forks.start(mode, self.directory / f"{rank}.txt", env)
        return self

    def said(self, rank):
        file = self.directory / f"{rank}.txt"
        return file.read_text() if file.exists() else ""

    def stacks(self, rank):
        return self.directory / "stacks" / f"rank-{rank}.txt"

    def wait_for(self, rank, text, seconds=180):
        deadline = time.monotonic() + seconds
        while text not in self.said(rank):
            assert self.processes[rank].poll() is None, self.said(rank)
            assert time.monotonic() < deadline, self.said(rank)
            time.sleep(0.02)

    def code(self, rank, seconds=180):
        try:
            return self.processes[rank].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"rank {rank} did not end: {self.said(rank)}") from None

    def codes(self, seconds=180):
        return [self.code(rank, seconds) for rank in self.processes]

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGKILL)
            process.wait(60)


@pytest.fixture
def run(tmp_path, forks):
    made = Run(tmp_path, forks)
    yield made
    made.close()
