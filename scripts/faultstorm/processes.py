"""Real processes of real runs: forks of one server that has the shim, their faults, ends and last words."""

import compileall
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from accelnet.cluster.local import free_port
from scripts.faultstorm.kinds import MESHES, PROCESSES

ROOT = Path(__file__).resolve().parents[2]
# The order is that of `enum action` in shim.c.
ACTIONS = ("nothing", "signal", "fail", "torn", "slow", "clock", "drop", "reset", "memory")
HANG = "hang"
# Stands for a directory of root's in the environment of a process.
FOREIGN = "a foreign directory"
# A process that is silent for so long is lost to the others.
HANG_TIMEOUT = 15.0
_MOST_SECONDS = {1: 60.0, 3: 150.0}
# On CPUs jax keeps the programs of the first process alone: the others compile at every start.
_QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"


@dataclass(frozen=True)
class Plan:
    """What the shim lets happen in one process.

    Attributes:
        action: One of ACTIONS.
        pattern: Path below the work directory as a pattern of fnmatch, of the operations that count.
        operations: Letters of the operations that count, as in shim.c.
        number: Signal, or errno.
        nth: Operation at which it happens, from 1; 0: after `seconds`.
        seconds: Seconds after the start.
        amount: Seconds of a delay, of a jump or of a stop.
    """

    action: str = "nothing"
    pattern: str = "*"
    operations: str = "owsrumt"
    number: int = 0
    nth: int = 0
    seconds: float = 0.0
    amount: float = 0.0


@dataclass(frozen=True)
class Sent:
    """A signal that the harness sends: `number` after `seconds`, and SIGCONT after `pause` more if that is above 0."""

    number: int
    seconds: float
    pause: float = 0.0


@dataclass(frozen=True)
class Place:
    """Circumstances of a process: its umask, its user, and environment variables; None: without that one."""

    umask: int | None = None
    user: int | None = None
    env: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """What a start of a run ended with.

    Attributes:
        codes: Exit code of each process; "hang" for one that had to be killed.
        said: Standard error of each process.
        hit: Operation at which the shim acted, or what the harness sent; empty: nothing happened.
        seconds: From the start to the end of the last process.
        trace: (seconds since the start, step, seconds of compilation so far), first where the run went on from.
        hit_seconds: When that was, since the start.
        operations: What the shim saw, where it was asked for.
    """

    codes: tuple[int | str, ...]
    said: tuple[str, ...]
    hit: str
    seconds: float
    trace: tuple[tuple[float, int, float], ...]
    hit_seconds: float = 0.0
    operations: tuple[str, ...] = ()

    @property
    def was_late(self) -> bool:
        """Whether it happened when the last steps were done: then the run may end as if nothing had happened."""
        return len(self.trace) > 1 and self.hit_seconds >= self.trace[-2][0]


class Server:
    """Fork runs from a process that has imported what they need. A context; no process outlives it.

    Args:
        folder: Directory of the shim, the cache of compiled programs, and what is said.

    Attributes:
        import_seconds: Time that a process takes before a fork begins: Python, and all imports before the first step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock, self._alive, self._number = threading.Lock(), set[int](), 0
        shim = folder / "shim.so"
        compiler = os.environ.get("CC", "cc").split()
        source = Path(__file__).with_name("shim.c")
        subprocess.run(
            [*compiler, "-O2", "-shared", "-fPIC", "-Wall", "-o", shim, source, "-ldl", "-lpthread"], check=True
        )
        self.env = {
            **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
            "OPENBLAS_NUM_THREADS": "1",  # no threads before the fork
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip
        for name in ("ends", "foreign", "notes"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        self.foreign = folder / "foreign"
        (folder / "notes").chmod(0o1777)  # other users write there too
        # As Python leaves them after the first start, unless it is told not to.
        for name in ("accelnet", "scripts/faultstorm"):
            compileall.compile_dir(ROOT / name, quiet=1)
        start = time.monotonic()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "scripts.faultstorm.server", folder / "ends"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=self.env | {"LD_PRELOAD": str(shim)},
        )  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._to, self._from = self._server.stdin, self._server.stdout
        lines = [self._from.readline()]
        self.import_seconds = time.monotonic() - start
        lines.append(self._from.readline())
        if lines != ["imported\n", "ready\n"]:
            raise RuntimeError("the server could not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._alive):
            self.kill(process)
        self._to.close()
        self._server.wait(60)
        self._from.close()

    def fork(self, request: dict[str, Any]) -> int:
        """Start a process and return its number."""
        with self._lock:
            self._to.write(json.dumps(request) + "\n")
            self._to.flush()
            process = int(self._from.readline())
            self._alive.add(process)
            return process

    def code(self, process: int) -> int | None:
        """Return the exit code of a process, None as long as it runs."""
        ended = self.folder / "ends" / str(process)
        if process in self._alive and ended.exists():
            self._alive.discard(process)
            return int(ended.read_text())
        return None

    def kill(self, process: int) -> None:
        """Kill a process and wait for its end."""
        while process in self._alive and self.code(process) is None:
            send(process, signal.SIGKILL)
            time.sleep(0.01)
        self.forget(process)

    def forget(self, process: int) -> None:
        """Remove what was noted of a process, since numbers are used again."""
        (self.folder / "ends" / str(process)).unlink(missing_ok=True)

    def scratch(self) -> Path:
        """Return a new name for files about one start."""
        with self._lock:
            self._number += 1
            return self.folder / "notes" / f"start-{self._number}"


def send(process: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def start(
    server: Server,
    kind: str,
    workdir: Path,
    *,
    plan: Plan | None = None,
    sent: Sent | None = None,
    rank: int = 0,
    place: Place = Place(),
    every_step: bool = False,
    log_all: bool = False,
) -> Ended:
    """Start a run in a work directory, or go on there, let its fault happen to one rank, and wait for its end."""
    number, scratch, port = PROCESSES[kind], server.scratch(), free_port()
    args = ["train", "--kind", kind, "--workdir", str(workdir), "--resume", "--quiet"]
    args += ["--every-step"] if every_step else []
    args += ["--mesh", MESHES[kind], "--hang-timeout", str(HANG_TIMEOUT)] if kind in MESHES else []
    trace, log = Path(f"{scratch}.trace"), Path(f"{scratch}.log")
    begun, processes = time.monotonic(), []
    for one in range(number):
        env = server.env | {"FAULTSTORM_TRACE": str(trace)} | place.env
        if number > 1:
            address = f"127.0.0.1:{port}"
            env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address}
            env |= {"JAX_NUM_PROCESSES": str(number), "JAX_PROCESS_ID": str(one), "XLA_FLAGS": _QUICK_COMPILATION}
        mine = plan if plan is not None and one == rank else Plan()
        request = {
            "args": args, "said": f"{scratch}.{one}", "umask": place.umask, "user": place.user,
            "env": {name: str(server.foreign) if value == FOREIGN else value
                    for name, value in env.items() if value is not None},
            "plan": asdict(mine) | {"action": ACTIONS.index(mine.action), "directory": str(workdir), "log": str(log),
                                    "log_all": log_all and one == rank},
        }  # fmt: skip
        processes.append(server.fork(request))
    stops = plan is not None and plan.number == signal.SIGSTOP and plan.action == "signal"
    hit, hit_at, codes = _watch(server, processes, begun, processes[rank], sent, plan.amount if plan and stops else 0.0)
    seconds = time.monotonic() - begun
    said = tuple(_take(Path(f"{scratch}.{one}")) for one in range(number))
    operations = _take(log).splitlines()
    for line in operations:
        if line.startswith("!"):
            moment, hit = line[1:].split(" ", 1)
            hit_at = float(moment)
    places = (map(float, line.split()) for line in _take(trace).splitlines())
    steps = tuple((when - begun, int(step), compiling) for when, step, compiling in places)
    return Ended(tuple(codes), said, hit, seconds, steps, hit_at - begun, tuple(operations) if log_all else ())


def _watch(
    server: Server, processes: Sequence[int], begun: float, victim: int, sent: Sent | None, pause: float
) -> tuple[str, float, list[int | str]]:
    """Wait until all have ended, or took too long; send what is to be sent, and let a stopped victim go on."""
    hit, hit_at, deadline, wakes = "", begun, begun + _MOST_SECONDS[len(processes)], None
    codes: dict[int, int | None] = dict.fromkeys(processes)
    while None in codes.values() and time.monotonic() < deadline:
        codes = {one: server.code(one) if code is None else code for one, code in codes.items()}
        now = time.monotonic()
        if sent is not None and not hit and now - begun >= sent.seconds and codes[victim] is None:
            send(victim, sent.number)
            hit_at, hit = now, f"{signal.Signals(sent.number).name} after {sent.seconds:.2f} s"
            wakes = now + sent.pause if sent.pause else None
        elif wakes is None and pause and _is_stopped(victim):
            wakes, pause = now + pause, 0.0
        if wakes is not None and now >= wakes:
            send(victim, signal.SIGCONT)
            wakes = None
        time.sleep(0.005)
    for process, code in codes.items():
        if code is None:
            server.kill(process)
        server.forget(process)
    return hit, hit_at, [HANG if code is None else code for code in codes.values()]


def _is_stopped(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def _take(path: Path) -> str:
    """Return what is in a file, and remove it."""
    if not path.exists():
        return ""
    text = path.read_text(errors="replace")
    path.unlink()
    return text
