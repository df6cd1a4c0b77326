"""Processes of runs, as forks of one that has imported what they need."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Forks:
    """Starts scripts as forks of one process that has imported what they need."""

    def __init__(self, folder):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "fork_server.py", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # One thread, until the fork.
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def start(self, script, *args, output, **env):
        """Start `python script args >output 2>&1` with further variables in its environment."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"} | env
        request = {"script": str(script), "args": args, "output": str(output), "env": environment}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return Fork(int(self.server.stdout.readline()), self.folder, output)

    def close(self):
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()


class Fork:
    """A process as `subprocess.Popen` shows it; `output` is the file of all that it says."""

    def __init__(self, number, folder, output):
        self.number, self.output, self.ended = number, output, folder / str(number)

    def poll(self):
        return int(self.ended.read_text()) if self.ended.exists() else None

    def wait(self, seconds):
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.output), seconds)
            time.sleep(0.01)
        return code

    def said(self):
        return self.output.read_text() if self.output.exists() else ""

    def send_signal(self, number):
        os.kill(self.number, number)

    def kill(self):
        """End the process, stopped or not, if it has not ended."""
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self.wait(60)
