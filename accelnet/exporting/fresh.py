"""A fresh process that has jax alone and runs an exported program."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from accelnet.errors import UserError
from accelnet.exporting import bare

_SECONDS = 600.0


class FreshProcess:
    """Run `bare.py` on the files of an export; used as a context.

    Args:
        program: Program in jax's own format.
        bytecode: Portable bytecode of StableHLO.
        weights: Weights, as safetensors.
    """

    def __init__(self, program: Path, bytecode: Path, weights: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._taken: Any = None
        self._log = (Path(self._folder.name) / "log").open("w+b")
        # -I: neither this directory nor PYTHONPATH, where accelnet may be.
        command = [sys.executable, "-I", str(bare.__file__), *map(str, (program, bytecode, weights))]
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        self._process = subprocess.Popen(  # noqa: S603, our own file and files of ours
            command, env=kept | {"JAX_PLATFORMS": "cpu"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log,
        )  # fmt: skip

    def __enter__(self) -> "FreshProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._process.stdin.close()
        self._log.close()
        self._folder.cleanup()

    def take(self, inputs: Any) -> None:
        """Take the inputs of the calls that are timed, unless they are those of the last call."""
        if inputs is not self._taken:
            self(inputs)

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """Compute the answers for encoded inputs.

        Raises:
            UserError: if the process fails; with its last message.
        """
        given, out = (str(Path(self._folder.name) / name) for name in ("inputs.npz", "outputs.npz"))
        np.savez(given, allow_pickle=False, **_paths(inputs))
        self._ask({"inputs": given, "outputs": out})
        self._taken = inputs
        with np.load(out, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def time(self, calls: int) -> list[float]:
        """Compute the answers for the last inputs a number of times, and return the seconds of each time."""
        return self._ask({"calls": calls})["seconds"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line:
            return json.loads(line)
        self._process.wait(_SECONDS)
        self._log.seek(0)
        said = [one for one in self._log.read().decode(errors="replace").splitlines() if one.strip()]
        raise UserError(
            f"the StableHLO program cannot be run in a process of its own: {said[-1] if said else 'it ended'}"
        )


def _paths(inputs: Any, name: str = "") -> dict[str, np.ndarray]:
    """Name the arrays of nested dicts as "a/b", and one that stands alone as ""."""
    if not isinstance(inputs, dict):
        return {name: inputs}
    return {path: one for key in inputs for path, one in _paths(inputs[key], f"{name}/{key}".strip("/")).items()}
