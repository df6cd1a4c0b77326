"""The workers, as seen from the process that starts them."""

import json
import os
import platform
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("worker.py")
_TUNABLES = {"hugetlb": 1, "mmap_threshold": 8 << 30, "trim_threshold": 8 << 30}
TUNED_ALLOCATOR = ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())


class WorkerError(RuntimeError):
    """Report that a worker died or took too long."""


def has_glibc() -> bool:
    """Whether GLIBC_TUNABLES means anything here."""
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


class Worker:
    """A system's process.

    Args:
        system: its name.
        allocator: "default", or "tuned" for glibc with huge pages and without giving memory back.
        folder: for what it prints and for what its compiler keeps.
        limit_seconds: the longest that a command may take.
    """

    def __init__(self, system: str, allocator: str, folder: Path, limit_seconds: float) -> None:
        self.name = f"{system}, {allocator} allocator"
        self.limit_seconds = limit_seconds
        self.log = folder / f"{system}-{allocator}.log"
        environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "KERAS_BACKEND": "torch" if system == "keras_torch" else "jax",
            # What an earlier run compiled would make the time to the first step meaningless, and the peak of memory.
            "TORCHINDUCTOR_CACHE_DIR": str(folder / f"{system}-{allocator}-cache"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / f"{system}-{allocator}-xla"),
        }
        if allocator == "tuned":
            environment["GLIBC_TUNABLES"] = TUNED_ALLOCATOR
        self.started = time.time()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(_WORKER), system],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            WorkerError: with the last lines that the worker printed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words(command)) from None
        # An answer is one line that is written at once.
        ready, _, _ = select.select([self.process.stdout], [], [], self.limit_seconds)
        if not ready:
            self.close()
            raise WorkerError(f"{self.name}: `{command}` took longer than {self.limit_seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words(command))
        return json.loads(line)

    def _last_words(self, command: str) -> str:
        status = self.process.wait()
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return "\n".join([f"{self.name}: ended with status {status} in `{command}`", *lines[-3:]])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
