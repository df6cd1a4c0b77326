"""Compile exported programs for one target, in a process of its own.

    python -m accelnet.planning.worker REQUEST

REQUEST is a JSON file that `accelnet.planning.compile` writes. What a compiler does to its process (a crash, messages,
gigabytes of memory) ends here.
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

from accelnet.ops.kernels import load
from accelnet.planning.export import ExportedProgram, lower_exported
from accelnet.planning.hlo import HloModule
from accelnet.planning.kernels import Kernel
from accelnet.planning.scratch import scratch_bytes
from accelnet.planning.steps import collectives, custom_calls, kernels


def compile_request(request: dict[str, Any]) -> dict[str, Any]:
    """Compile the programs of a request.

    Args:
        request: "topology" (of `Target.topology_request`, None for this machine's own devices), "options" for the
            compiler, and "programs": name, path, num_donated and axes of each.

    Returns:
        By program: "status" ("ok", "too large" or "failed"), "reason", "seconds", "memory" (bytes), "kernels",
        "collectives" and "custom_calls".
    """
    import jax

    from accelnet.parallel.mesh import make_mesh

    topology = request["topology"]
    if topology is None:
        load()  # which a program for this machine may call
        devices: list[Any] = list(jax.devices())
    else:
        from jax.experimental import topologies

        settings = {
            name: tuple(value) if isinstance(value, list) else value for name, value in topology["kwargs"].items()
        }
        described = topologies.get_topology_desc(
            platform=topology["platform"], topology_name=topology["topology_name"], **settings
        )
        devices = list(described.devices)
    results = {}
    for entry in request["programs"]:
        program = ExportedProgram(entry["name"], Path(entry["path"]).read_bytes(), entry["num_donated"], entry["axes"])
        mesh = make_mesh(program.axes, devices) if program.axes else None
        results[program.name] = _compile(program, devices, mesh, dict(request["options"]))
    return results


def _compile(program: ExportedProgram, devices: list[Any], mesh: Any, options: dict[str, Any]) -> dict[str, Any]:
    import jax

    start = time.perf_counter()
    on_tpu = devices[0].platform == "tpu"
    with tempfile.TemporaryDirectory() as dump:
        if on_tpu or (mesh is not None and mesh.size > 1):
            options |= {"xla_dump_to": dump, "xla_dump_hlo_pass_re": "spmd.*", "xla_dump_hlo_as_text": True}
        try:
            compiled = lower_exported(program, devices, mesh).compile(compiler_options=options or None)
        except jax.errors.JaxRuntimeError as error:
            return _failure(str(error)) | {"seconds": time.perf_counter() - start}
        seconds = time.perf_counter() - start
        module = HloModule(compiled.as_text())
        of_step = kernels(module)
        exchanges = _partitioned_collectives(Path(dump)) or [k for k in of_step if k.kind == "collective"]
        reports = [path.read_text() for path in Path(dump).glob("*memory-usage-report.txt")] if on_tpu else []
    stats = compiled.memory_analysis()
    memory = {
        name: getattr(stats, f"{name}_size_in_bytes")
        for name in ("argument", "output", "alias", "temp", "generated_code")
    }
    if devices[0].platform == "cpu":
        memory["temp"] += scratch_bytes(module)
    allocated = allocated_bytes(reports)
    if allocated is not None:
        memory["temp"] = max(0, allocated - memory["argument"] - memory["output"] + memory["alias"])
    return {
        "status": "ok",
        "reason": "",
        "seconds": seconds,
        "memory": memory,
        "kernels": [kernel.to_dict() for kernel in of_step],
        "collectives": [kernel.to_dict() for kernel in exchanges],
        "custom_calls": custom_calls(module),
    }


def allocated_bytes(reports: Sequence[str]) -> int | None:
    r"""Return the bytes that the TPU compiler's allocator gave a program in the device's main memory.

    That is what it compares with the memory there is. Its statistics say something else: buffers that share a place are
    counted several times in "temp" (21.7 GB of a program that has 13.1 GB of them).

    Args:
        reports: texts of "memory-usage-report" dumps; beside the program's there may be those of small ones.

    Returns:
        Arguments, results and temporaries together; None where no report has it.

    Example:
        >>> allocated_bytes(["Memory Space: default (color=0)\nTotal bytes: 13932350464 (12.97GiB)"])
        13932350464
    """
    found = [re.search(r"\(color=0\)\s+Total bytes: (\d+)", report) for report in reports]
    return max((int(match[1]) for match in found if match), default=None)


def _partitioned_collectives(dump: Path) -> list[Kernel]:
    """Read the collectives behind XLA's partitioner: later passes merge and rewrite them, each backend its own way."""
    found = [
        path for path in dump.glob("*.txt")
        if re.search(r"after_spmd-?_?partition|after_tpu-spmd-partitioning", path.name)
    ]  # fmt: skip
    texts = [path.read_text() for path in found]
    if not texts:
        return []
    # Beside the program there may be small ones, of its constants.
    return collectives(HloModule(max(texts, key=len)))


_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_REQUIRED = re.compile(r"total memory required[^(]*\(([\d.]+)([BKMGT]?)\)|Used ([\d.]+)([BKMGT]?) of")


def _failure(message: str) -> dict[str, Any]:
    reason = message.strip().splitlines()[0][:300]
    if "RESOURCE_EXHAUSTED" not in message:
        return {"status": "failed", "reason": reason}
    found = _REQUIRED.search(message)
    numbers = [part for part in (found.groups() if found else ()) if part is not None]
    required = int(float(numbers[0]) * _UNITS[numbers[1]]) if len(numbers) == 2 else None
    return {"status": "too large", "reason": reason, "required_bytes": required}


def main(path: str) -> None:
    """Answer a request file; the answer lies beside it, whole or not at all."""
    request = json.loads(Path(path).read_text())
    if "run" in request:
        from accelnet.planning.prove import run_artifact

        for run in request["run"]:
            run_artifact(run)
        return
    answer = Path(request["answer"])
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps(compile_request(request)))
    partial.replace(answer)


if __name__ == "__main__":
    main(sys.argv[1])
    # Orderly exits of some compilers crash after all is done.
    sys.stdout.flush()
    os._exit(0)
