"""Compile programs for many targets side by side, each in a process of its own that may crash or take too long."""

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelnet.planning.export import ExportedProgram
from accelnet.planning.kernels import Kernel

# A compiler was seen to take 1 to 2 GB.
_COMPILER_BYTES = 2 << 30

# What a compiling process inherits; all else could change the program, or reach for hardware.
_KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "VIRTUAL_ENV", "SYSTEMROOT", "LD_LIBRARY_PATH")
_TPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # libtpu wants to know where it runs; one answer serves every target.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


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
    "cuda": ("__cudnn$", "__cublas$", "__cusolver$", "cudnn_", "cuda_"),
    "cpu": ("__onednn$", "lapack_", "__ynn"),
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


def missing_compiler(platform: str) -> str | None:
    """Say what is missing to compile for a platform, and the command that adds it; None if nothing is.

    Args:
        platform: "tpu", "cuda" or "cpu".

    Example:
        >>> missing_compiler("cpu") is None
        True
    """
    if platform == "tpu":
        installed = _version("libtpu")
        if installed is None:
            return 'libtpu is not installed: pip install "accelnet[plan-tpu]"'
        wanted = _pinned("libtpu")
        if wanted and not installed.startswith(wanted.rstrip("*")):
            jax_version = importlib.metadata.version("jax")
            return f'libtpu {installed} does not match jax {jax_version}: pip install "jax[tpu]=={jax_version}"'
        return None
    if platform == "cuda":
        plugins = {line: version for line in ("13", "12") if (version := _version(f"jax-cuda{line}-plugin"))}
        if not plugins:
            return 'XLA\'s CUDA compiler is not installed: pip install "accelnet[plan-cuda]"'
        line, installed = next(iter(plugins.items()))
        wanted = importlib.metadata.version("jax")
        if _release(installed) != _release(wanted):
            return (
                f"jax-cuda{line}-plugin {installed} does not match jax {wanted}: pip install "
                f'"jax[cuda{line}-local]=={wanted}"'
            )
        return None
    return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:3])


def _pinned(distribution: str) -> str | None:
    """Return the version of a distribution that the installed jax pins in one of its extras."""
    for line in importlib.metadata.requires("jax") or ():
        found = re.match(rf"{distribution}\s*==\s*([\w.*]+)", line)
        if found:
            return found[1]
    return None


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
            _end(process)
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


def run_worker(
    request: dict[str, Any],
    folder: Path,
    platform: str,
    num_devices: int,
    time_limit: float,
    processes: "set[subprocess.Popen[bytes]] | None" = None,
) -> str:
    """Run `accelnet.planning.worker` with a request, in a clean environment.

    Args:
        request: JSON values.
        folder: for the request and the process's messages.
        platform: that it compiles for.
        num_devices: that the CPU plays, where that is the platform.
        time_limit: seconds, after which it is ended.
        processes: where the process is noted while it runs, so that others can end it.

    Returns:
        How it ended, in words.
    """
    path, log = folder / "request.json", folder / "log"
    path.write_text(json.dumps(request))
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603, our own module and a file of ours
            [sys.executable, "-m", "accelnet.planning.worker", str(path)],
            env=compiler_environment(platform, num_devices),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    processes = set() if processes is None else processes
    processes.add(process)
    try:
        process.wait(time_limit)
        return f"the compiler ended with code {process.returncode}: {_last_line(log)}"
    except subprocess.TimeoutExpired:
        return f"the compiler took more than {time_limit:g} s (--compile-seconds allows more)"
    finally:
        _end(process)
        processes.discard(process)


def _num_devices(program: ExportedProgram) -> int:
    size = 1
    for number in program.axes.values():
        size *= number
    return size


def compiler_environment(platform: str, num_devices: int) -> dict[str, str]:
    """Return the environment of a process that compiles: nothing in it changes programs or reaches for hardware.

    Args:
        platform: "tpu", "cuda" or "cpu".
        num_devices: that the CPU plays, where that is the platform.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    package = str(Path(__file__).resolve().parents[2])
    environment = kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": package, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if platform == "cpu":
        # The flags of the real run make the real program.
        if "XLA_FLAGS" in os.environ:
            environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
        environment["JAX_NUM_CPU_DEVICES"] = str(num_devices)
    if platform == "tpu":
        environment |= _TPU_VARIABLES
        if not list(Path("/dev").glob("accel*")) and not Path("/dev/vfio").is_dir():
            # Without it, a second process stops at libtpu's lock; with a TPU present, the lock is what protects it.
            environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    return environment


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def _checked(compiled: Compiled, platform: str) -> Compiled:
    foreign = foreign_calls(platform, compiled.custom_calls)
    if not foreign:
        return compiled
    return Compiled("failed", f"the program for {platform} calls what is another platform's: {', '.join(foreign)}")


def _read(values: dict[str, Any]) -> Compiled:
    kernels = {name: tuple(map(Kernel.from_dict, values.get(name, ()))) for name in ("kernels", "collectives")}
    return Compiled(**{**values, **kernels, "custom_calls": tuple(values.get("custom_calls", ()))})
