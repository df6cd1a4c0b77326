"""Compile programs for many targets side by side, each in a process of its own that may crash or take too long."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelnet.planning.export import ExportedProgram
from accelnet.planning.extras import missing_compiler
from accelnet.planning.kernels import Kernel
from accelnet.planning.process import end_process, run_worker

# A compiler was seen to take 1 to 2 GB.
_COMPILER_BYTES = 2 << 30


@dataclass(frozen=True)
class CompileJob:
    """Programs to compile for one target.

    Attributes:
        platform: "tpu", "cuda" or "cpu".
        topology: of `Target.topology_request`; None for the CPU.
        programs: to compile, for the same devices.
    """

    platform: str
    topology: dict[str, Any] | None
    programs: tuple[ExportedProgram, ...]


@dataclass(frozen=True)
class Compiled:
    """What a compiler said about one program.

    Attributes:
        status: "ok", "too large" (it refused for lack of the target's memory) or "failed".
        reason: in words, where it is not "ok".
        seconds: that compiling took.
        memory: bytes per device: "argument", "output", "alias", "temp", "generated_code".
        kernels: of one step.
        collectives: of one step, as the partitioner made them.
        custom_calls: names of what the program calls.
        required_bytes: of a program that is too large, where the compiler said it.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    memory: dict[str, int] | None = None
    kernels: tuple[Kernel, ...] = ()
    collectives: tuple[Kernel, ...] = ()
    custom_calls: tuple[str, ...] = ()
    required_bytes: int | None = None

    @property
    def total_bytes(self) -> int | None:
        """Peak bytes per device: arguments, results that are not arguments' buffers, and temporaries."""
        if self.memory is None:
            return self.required_bytes
        return self.memory["argument"] + self.memory["output"] - self.memory["alias"] + self.memory["temp"]


# What only one platform's programs may call, by the beginning of the name.
_CALLS_OF = {
    "cuda": ("__cudnn$", "__cublas$", "__cusolver$", "cuda_"),
    "cpu": ("accelnet_", "__onednn$", "lapack_", "__ynn"),
}


def foreign_calls(platform: str, custom_calls: Sequence[str]) -> list[str]:
    """Return the custom calls of a program that belong to another platform than it was compiled for.

    Args:
        platform: "tpu", "cuda" or "cpu".
        custom_calls: names of what it calls.

    Example:
        >>> foreign_calls("tpu", ["__onednn$matmul", "AssumeGatherIndicesInBound"])
        ['__onednn$matmul']
    """
    others = tuple(prefix for owner, prefixes in _CALLS_OF.items() if owner != platform for prefix in prefixes)
    return [name for name in custom_calls if name.startswith(others)]


def compile_all(
    jobs: Iterable[tuple[str, CompileJob]],
    *,
    time_limit: float,
    progress: Callable[[str, dict[str, Compiled]], None] = lambda _key, _compiled: None,
) -> dict[str, dict[str, Compiled]]:
    """Compile every job's programs, as many side by side as cores and memory allow.

    Args:
        jobs: each with a key of the caller's. The first are compiled while later ones are still being made.
        time_limit: seconds for one job, after which its process is ended.
        progress: called with key and result of every job that is done, from other threads.

    Returns:
        By key and name of the program. What failed says why; nothing is raised.
    """

    def run(item: tuple[str, CompileJob]) -> tuple[str, dict[str, Compiled]]:
        key, job = item
        compiled = _compile(job, time_limit, processes)
        progress(key, compiled)
        return key, compiled

    processes: set[subprocess.Popen[bytes]] = set()
    pool = ThreadPoolExecutor(_num_workers())
    try:
        return dict(pool.map(run, jobs))
    except BaseException:  # interrupted: nothing is left running
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(processes):
            end_process(process)
        raise
    finally:
        pool.shutdown()


def _num_workers() -> int:
    return max(1, min(len(os.sched_getaffinity(0)), _available_bytes() // _COMPILER_BYTES))


def _available_bytes() -> int:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return int(found[1]) << 10 if found else 0
    except OSError:
        return 0


def _compile(job: CompileJob, time_limit: float, processes: set[subprocess.Popen[bytes]]) -> dict[str, Compiled]:
    missing = missing_compiler(job.platform)
    if missing is not None:
        return {program.name: Compiled("failed", missing) for program in job.programs}
    with tempfile.TemporaryDirectory(prefix="accelnet-plan-") as name:
        folder = Path(name)
        entries = []
        for program in job.programs:
            path = folder / f"{program.name}.jax"
            path.write_bytes(program.data)
            entries.append(
                {"name": program.name, "path": str(path), "num_donated": program.num_donated, "axes": program.axes}
            )
        answer = folder / "answer.json"
        # Autotuning needs the GPU. Level 0 changes no shape and no kernel here, and halves the time.
        options = {"xla_gpu_autotune_level": 0} if job.platform == "cuda" else {}
        request = {"topology": job.topology, "options": options, "programs": entries, "answer": str(answer)}
        num_devices = max(_num_devices(program) for program in job.programs)
        reason = run_worker(request, folder, job.platform, num_devices, time_limit, processes)
        if not answer.exists():
            return {program.name: Compiled("failed", reason) for program in job.programs}
        return {name: _checked(_read(values), job.platform) for name, values in json.loads(answer.read_text()).items()}


def _num_devices(program: ExportedProgram) -> int:
    size = 1
    for number in program.axes.values():
        size *= number
    return size


def _checked(compiled: Compiled, platform: str) -> Compiled:
    foreign = foreign_calls(platform, compiled.custom_calls)
    if not foreign:
        return compiled
    return Compiled("failed", f"the program for {platform} calls what is another platform's: {', '.join(foreign)}")


def _read(values: dict[str, Any]) -> Compiled:
    kernels = {name: tuple(map(Kernel.from_dict, values.get(name, ()))) for name in ("kernels", "collectives")}
    return Compiled(**{**values, **kernels, "custom_calls": tuple(values.get("custom_calls", ()))})
