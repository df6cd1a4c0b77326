"""Real processes of one run on this machine."""

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


class Run:
    """The processes of a run; what rank K says is in `directory`/K.txt."""

    def __init__(self, directory):
        self.directory = directory
        self.processes = {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def start(self, mode, num_processes, *, ranks=None, ids=None, **settings):
        """Start worker.py in a mode; `ids` gives ranks other process ids, for mistakes."""
        for rank in range(num_processes) if ranks is None else ranks:
            env = os.environ | {
                "PYTHONPATH": str(ROOT),
                "JAX_NUM_CPU_DEVICES": "1",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{self.port}",
                "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{self.port}",
                "JAX_NUM_PROCESSES": str(num_processes),
                "JAX_PROCESS_ID": str((ids or {}).get(rank, rank)),
                "RUN_DIRECTORY": str(self.directory),
            }
            with (self.directory / f"{rank}.txt").open("w") as output:
                self.processes[rank] = subprocess.Popen(
                    [sys.executable, WORKER, mode],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=env | {name.upper(): str(value) for name, value in settings.items()},
                )
        return self

    def said(self, rank):
        return (self.directory / f"{rank}.txt").read_text()

    def stacks(self, rank):
        return self.directory / "stacks" / f"rank-{rank}.txt"

    def wait_for(self, rank, text, seconds=60):
        deadline = time.monotonic() + seconds
        while text not in self.said(rank):
            assert self.processes[rank].poll() is None, self.said(rank)
            assert time.monotonic() < deadline, self.said(rank)
            time.sleep(0.02)

    def code(self, rank, seconds=60):
        try:
            return self.processes[rank].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"rank {rank} did not end: {self.said(rank)}") from None

    def codes(self, seconds=60):
        return [self.code(rank, seconds) for rank in self.processes]

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    yield made
    made.close()
