"""A process that compiles for hardware that is not here, or runs an artifact: what it sees, and how it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

# What a compiling process inherits; all else could change the program, or reach for hardware.
_KEPT_VARIABLES = (
    "PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "VIRTUAL_ENV", "SYSTEMROOT", "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME", "CXX", "ACCELNET_KERNELS",
)  # fmt: skip
_TPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # libtpu wants to know where it runs; one answer serves every target.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def run_worker(
    request: dict[str, Any],
    folder: Path,
    platform: str,
    num_devices: int,
    time_limit: float,
    processes: set[subprocess.Popen[bytes]],
) -> str:
    """Run `accelnet.planning.compiled.worker` with a request, in a clean environment.

    Args:
        request: JSON values.
        folder: Directory for the request and the process's messages.
        platform: Platform that it compiles for.
        num_devices: Devices that the CPU plays, where that is the platform.
        time_limit: Seconds, after which it is ended.
        processes: Set that holds the process while it runs, so that others can end it.

    Returns:
        How it ended, in words.
    """
    path, log = folder / "request.json", folder / "log"
    path.write_text(json.dumps(request))
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603, our own module and a file of ours
            [sys.executable, "-m", "accelnet.planning.compiled.worker", str(path)],
            env=compiler_environment(platform, num_devices),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    processes.add(process)
    try:
        process.wait(time_limit)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1][:200] if lines else "no message"
        return f"the compiler ended with code {process.returncode}: {last}"
    except subprocess.TimeoutExpired:
        return f"the compiler took more than {time_limit:g} s (--compile-seconds allows more)"
    finally:
        end_process(process)
        processes.discard(process)


def compiler_environment(platform: str, num_devices: int) -> dict[str, str]:
    """Return the environment of a process that compiles: nothing in it changes programs or reaches for hardware.

    Args:
        platform: "tpu", "cuda" or "cpu".
        num_devices: Devices that the CPU plays, where that is the platform.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    package = str(Path(__file__).resolve().parents[3])
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


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
