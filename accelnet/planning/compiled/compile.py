"""Compile programs for many targets side by side, each in a process of its own that may crash or take too long."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelnet.parallel.memory import host_limits
from accelnet.planning.compiled.export import ExportedProgram
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.compiled.process import end_process, run_worker
from accelnet.planning.targets.compilers import missing_compiler
from accelnet.planning.targets.target import Target
from accelnet.training.compiled import DETERMINISTIC

# A compiler was seen to take 1 to 2 GB.
_COMPILER_BYTES = 2 << 30
# What only one platform's programs may call, by the beginning of the name.
_CALLS_OF = {
    "cuda": ("__cudnn$", "__cublas$", "__cusolver$", "cuda_"),
    "cpu": ("accelnet_", "__onednn$", "lapack_", "__ynn"),
}
# A key of the caller's, a target, and programs for its devices.
Job = tuple[str, Target, Sequence[ExportedProgram]]


@dataclass(frozen=True)
class Compiled:
    """What a compiler said about one program.

    Attributes:
        status: "ok", "too large" (it refused for lack of the target's memory) or "failed".
        memory: Bytes per device: "argument", "output", "alias", "temp", "generated_code".
        collectives: Exchanges of one step, as the partitioner made them.
        required_bytes: Bytes that a program needs that is too large, where the compiler says so.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    memory: dict[str, int] | None = None
    ops: tuple[DeviceOp, ...] = ()
    collectives: tuple[DeviceOp, ...] = ()
    custom_calls: tuple[str, ...] = ()
    required_bytes: int | None = None

    @property
    def total_bytes(self) -> int | None:
        """Peak bytes per device: arguments, results that are not arguments' buffers, and temporaries."""
        if self.memory is None:
            return self.required_bytes
        return self.memory["argument"] + self.memory["output"] - self.memory["alias"] + self.memory["temp"]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Compiled":
        """Read what `to_dict` gave."""
        ops = {name: tuple(map(DeviceOp.from_dict, values[name])) for name in ("ops", "collectives")}
        return Compiled(**{**values, **ops, "custom_calls": tuple(values["custom_calls"])})


def foreign_calls(platform: str, custom_calls: Sequence[str]) -> list[str]:
    """Return the custom calls of a program that belong to another platform than it was compiled for.

    Args:
        platform: "tpu", "cuda" or "cpu".
        custom_calls: Names of what it calls.

    Example:
        >>> foreign_calls("tpu", ["__onednn$matmul", "AssumeGatherIndicesInBound"])
        ['__onednn$matmul']
    """
    others = tuple(prefix for owner, prefixes in _CALLS_OF.items() if owner != platform for prefix in prefixes)
    return [name for name in custom_calls if name.startswith(others)]


def compile_all(
    jobs: Iterable[Job],
    *,
    time_limit: float,
    progress: Callable[[str, dict[str, Compiled]], None] = lambda _key, _compiled: None,
) -> dict[str, dict[str, Compiled]]:
    """Compile every job's programs, as many side by side as cores and memory allow.

    Args:
        jobs: Jobs, of which the first are compiled while later ones are still being made.
        time_limit: Seconds for one job, after which its process is ended.
        progress: Function that is called with key and result of every job that is done, from other threads.

    Returns:
        By key and name of the program. What failed says why; nothing is raised.
    """

    def run(job: Job) -> tuple[str, dict[str, Compiled]]:
        key, target, programs = job
        compiled = _compile(target, programs, time_limit, processes)
        progress(key, compiled)
        return key, compiled

    processes: set[subprocess.Popen[bytes]] = set()
    free = min((limit.free_bytes for limit in host_limits()), default=0)
    pool = ThreadPoolExecutor(max(1, min(len(os.sched_getaffinity(0)), free // _COMPILER_BYTES)))
    try:
        return dict(pool.map(run, jobs))
    except BaseException:  # interrupted: nothing is left running
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(processes):
            end_process(process)
        raise
    finally:
        pool.shutdown()


def _compile(
    target: Target, programs: Sequence[ExportedProgram], time_limit: float, processes: set[subprocess.Popen[bytes]]
) -> dict[str, Compiled]:
    platform = target.accelerator.platform
    missing = missing_compiler(platform)
    if missing is not None:
        return {program.name: Compiled("failed", missing) for program in programs}
    with tempfile.TemporaryDirectory(prefix="accelnet-plan-") as name:
        folder = Path(name)
        entries = []
        for program in programs:
            path = folder / f"{program.name}.jax"
            path.write_bytes(program.data)
            entries.append({"name": program.name, "data": str(path), "donated": program.donated, "axes": program.axes})
        answer = folder / "answer.json"
        # Autotuning needs the GPU. Level 0 changes no shape and no kernel here, and halves the time.
        options: dict[str, Any] = {"xla_gpu_autotune_level": 0} if platform == "cuda" else {}
        if platform == "cuda" and any(program.deterministic for program in programs):
            options |= DETERMINISTIC
        request = {"topology": target.topology_request(), "options": options, "programs": entries}
        num_devices = max(program.num_devices for program in programs)
        reason = run_worker(request | {"answer": str(answer)}, folder, platform, num_devices, time_limit, processes)
        if not answer.exists():
            return {program.name: Compiled("failed", reason) for program in programs}
        answers = json.loads(answer.read_text())
        return {name: _checked(Compiled.from_dict(values), platform) for name, values in answers.items()}


def _checked(compiled: Compiled, platform: str) -> Compiled:
    foreign = foreign_calls(platform, compiled.custom_calls)
    if not foreign:
        return compiled
    return Compiled("failed", f"the program for {platform} calls what is another platform's: {', '.join(foreign)}")
