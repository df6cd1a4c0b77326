"""One system on one case, in a process of its own: `worker.py SYSTEM`, commands and answers as lines of JSON.

export {case, path}   write the initial weights and the batches, accelnet's own, for all the others
prepare {case, path}  build the model and take the first step
losses {steps}        the losses of the first steps
time {steps}          take steps
memory {}             the most memory that this process has held

Whatever else is printed goes to standard error.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Beside accelnet's own folder: this file's would offer modules named like others'.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench_systems.cases import CASES, load_arrays, save_arrays

MODULES = {
    "accelnet": "accelnet_chunks",
    "torch": "pytorch",
    "torch_compile": "pytorch",
    "keras_jax": "keras_fit",
    "keras_torch": "keras_fit",
    "flax": "flax_loop",
    "onnxruntime": "onnx_runtimes",
    "openvino": "onnx_runtimes",
    "limit": "limit",
}


def peak_bytes() -> int:
    """Return the peak of the resident memory.

    Linux's getrusage would count the process that started this one, up to the start.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make_commands(system: str) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return the commands by name."""
    made: Any = None

    def export(case: str, path: str) -> dict[str, Any]:
        from bench_systems import accelnet_chunks

        save_arrays(path, accelnet_chunks.export(CASES[case]))
        return {}

    def prepare(case: str, path: str) -> dict[str, Any]:
        nonlocal made
        module = importlib.import_module(f"bench_systems.{MODULES[system]}")
        try:
            made = module.make(CASES[case], system, load_arrays(path))
        except NotImplementedError as reason:
            return {"absent": str(reason)}
        first, _ = made.run(1)
        finished = time.time()
        # The second step may still allocate; the third is as all that follow.
        made.run(1)
        later, _ = made.run(1)
        return {"finished": finished, "compile_seconds": max(0.0, first - later)}

    def losses(steps: int) -> dict[str, Any]:
        return {"losses": made.losses(steps)}

    def take(steps: int) -> dict[str, Any]:
        seconds, taken = made.run(steps)
        return {"seconds": seconds, "steps": taken}

    return {
        "export": export,
        "prepare": prepare,
        "losses": losses,
        "time": take,
        "memory": lambda: {"peak_bytes": peak_bytes()},
    }


def main() -> None:
    """Answer commands until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    commands = make_commands(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        answer = commands[request.pop("command")](**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
