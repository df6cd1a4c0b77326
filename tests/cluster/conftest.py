"""Real processes of one run on this machine."""

import socket
import subprocess
import time
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


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
            env = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{self.port}",
                "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{self.port}",
                "JAX_NUM_PROCESSES": str(num_processes),
                "JAX_PROCESS_ID": str((ids or {}).get(rank, rank)),
                "RUN_DIRECTORY": str(self.directory),
            }
            env |= {name.upper(): str(value) for name, value in settings.items()}
            self.processes[rank] = self.forks.start(WORKER, mode, output=self.directory / f"{rank}.txt", **env)
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
            process.kill()


@pytest.fixture
def run(tmp_path, forks):
    made = Run(tmp_path, forks)
    yield made
    made.close()


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
