"""Compile exported programs for one target, or run them, in a process of its own.

    python -m accelnet.planning.compiled.worker REQUEST

REQUEST is a JSON file that `run_worker` writes. What a compiler does to its process (a crash, messages, gigabytes of
memory) ends here.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from accelnet.hlo import HloModule
from accelnet.ops.kernels import load
from accelnet.parallel.mesh import make_mesh
from accelnet.planning.compiled.compile import Compiled
from accelnet.planning.compiled.export import ExportedProgram, load_arrays, lower_exported, run_artifact, save_arrays
from accelnet.planning.compiled.ops import DeviceOp, collectives, custom_calls, step_ops
from accelnet.planning.compiled.scratch import scratch_bytes

_MEMORY = ("argument", "output", "alias", "temp", "generated_code")
_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_REQUIRED = re.compile(r"total memory required[^(]*\(([\d.]+)([BKMGT]?)\)|Used ([\d.]+)([BKMGT]?) of")


def compile_request(request: dict[str, Any]) -> dict[str, Compiled]:
    """Compile the programs of a request.

    Args:
        request: "topology" (of `Target.topology_request`), "options" for the compiler, and "programs": name, data (a
            path), donated and axes of each.

    Returns:
        By program.
    """
    topology = request["topology"]
    if topology["platform"] == "cpu":
        load()  # which a program for this machine may call
        devices: list[Any] = list(jax.devices())
    else:
        settings = {
            name: tuple(value) if isinstance(value, list) else value for name, value in topology["kwargs"].items()
        }
        described = topologies.get_topology_desc(
            platform=topology["platform"], topology_name=topology["topology_name"], **settings
        )
        devices = list(described.devices)
    results = {}
    for entry in request["programs"]:
        data, donated = Path(entry["data"]).read_bytes(), tuple(entry["donated"])
        program = ExportedProgram(entry["name"], data, donated, entry["axes"])
        results[program.name] = _compile(program, devices, dict(request["options"]))
    return results


def _compile(program: ExportedProgram, devices: list[Any], options: dict[str, Any]) -> Compiled:
    start = time.perf_counter()
    mesh = make_mesh(program.axes, devices) if program.axes else None
    on_tpu = devices[0].platform == "tpu"
    with tempfile.TemporaryDirectory() as dump:
        if on_tpu or program.num_devices > 1:
            options |= {"xla_dump_to": dump, "xla_dump_hlo_pass_re": "spmd.*", "xla_dump_hlo_as_text": True}
        try:
            compiled = lower_exported(program, devices, mesh).compile(compiler_options=options or None)
        except jax.errors.JaxRuntimeError as error:
            return _failure(str(error), time.perf_counter() - start)
        seconds = time.perf_counter() - start
        module = HloModule(compiled.as_text())
        ops = step_ops(module)
        exchanges = _partitioned_collectives(Path(dump)) or [op for op in ops if op.kind == "collective"]
        reports = [path.read_text() for path in Path(dump).glob("*memory-usage-report.txt")] if on_tpu else []
    stats = compiled.memory_analysis()
    memory = {name: getattr(stats, f"{name}_size_in_bytes") for name in _MEMORY}
    if devices[0].platform == "cpu":
        memory["temp"] += scratch_bytes(module)
    allocated = allocated_bytes(reports)
    if allocated is not None:
        memory["temp"] = max(0, allocated - memory["argument"] - memory["output"] + memory["alias"])
    calls = tuple(custom_calls(module))
    return Compiled("ok", "", seconds, memory, tuple(ops), tuple(exchanges), calls)


def allocated_bytes(reports: Sequence[str]) -> int | None:
    r"""Return the bytes that the TPU compiler's allocator gave a program in the device's main memory.

    The compiler compares these with the memory there is. Its statistics differ: in "temp" they count buffers that share
    a place several times (21.7 GB of a program that has 13.1 GB of them).

    Args:
        reports: Texts of "memory-usage-report" dumps; beside the program's there may be those of small ones.

    Returns:
        Arguments, results and temporaries together; None where no report has it.

    Example:
        >>> allocated_bytes(["Memory Space: default (color=0)\nTotal bytes: 13932350464 (12.97GiB)"])
        13932350464
    """
    found = [re.search(r"\(color=0\)\s+Total bytes: (\d+)", report) for report in reports]
    return max((int(match[1]) for match in found if match), default=None)


def _partitioned_collectives(dump: Path) -> list[DeviceOp]:
    """Read the collectives behind XLA's partitioner: later passes merge and rewrite them, each backend its own way."""
    passes = re.compile(r"after_spmd-?_?partition|after_tpu-spmd-partitioning")
    texts = [path.read_text() for path in dump.glob("*.txt") if passes.search(path.name)]
    # Beside the program there may be small ones, of its constants.
    return collectives(HloModule(max(texts, key=len))) if texts else []


def _failure(message: str, seconds: float = 0.0) -> Compiled:
    reason = message.strip().splitlines()[0][:300]
    if "RESOURCE_EXHAUSTED" not in message:
        return Compiled("failed", reason, seconds)
    found = _REQUIRED.search(message)
    numbers = [part for part in (found.groups() if found else ()) if part is not None]
    required = int(float(numbers[0]) * _UNITS[numbers[1]]) if len(numbers) == 2 else None
    return Compiled("too large", reason, seconds, required_bytes=required)


def main(path: str) -> None:
    """Answer a request file; the answer lies beside it, whole or not at all."""
    request = json.loads(Path(path).read_text())
    if "run" in request:
        for run in request["run"]:
            operands = load_arrays(Path(run["inputs.npz"]))
            save_arrays(Path(run["outputs.npz"]), run_artifact(Path(run["artifact"]).read_bytes(), operands))
        return
    answer = Path(request["answer"])
    partial = answer.with_suffix(".partial")
    compiled = compile_request(request)
    partial.write_text(json.dumps({name: program.to_dict() for name, program in compiled.items()}))
    partial.replace(answer)


if __name__ == "__main__":
    main(sys.argv[1])
    # Orderly exits of some compilers crash after all is done.
    sys.stdout.flush()
    os._exit(0)
