"""The faults: what may happen to a run, drawn from a seed, and files that are damaged between two starts."""

import errno
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from scripts.faultstorm.kinds import PROCESSES
from scripts.faultstorm.processes import FOREIGN, HANG_TIMEOUT, Place, Plan, Sent

# Of a running process, and of the files between two starts.
RUNNING = ("kill", "stop", "SIGTERM", "SIGINT", "full disk", "read-only", "torn write", "clock", "slow disk", "memory")
DAMAGES = ("flipped bit", "truncated file", "deleted file", "replaced file")
PLACES = ("open umask", "nameless user", "foreign cache")
OF_PROCESSES = ("kill", "stop", "SIGTERM", "SIGINT", "full disk", "read-only", "torn write", "slow disk", "network")
ALL = (*RUNNING, *DAMAGES, "network", *PLACES)
# Processes that find each other, save together and wait for a lost one take ten times as long as one alone.
_SHARE_OF_PROCESSES = 0.06
_NOBODY = 54321
# Its allocations are large enough to be refused.
RUN_OF_MEMORY = "wide"
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        index: Its number in the storm, which with the seed decides all of it.
        kind: One of ALL.
        run: Kind of the run.
        midway: Whether it happens to a run that goes on from its middle.
        rank: Process that it happens to.
        plan: What the shim does.
        sent: What the harness sends.
        place: Circumstances of the first start.
        file: Number that chooses the damaged file, and where in it, in [0, 1).
        path: Damaged file below the work directory; empty: one that `file` chooses.
    """

    index: int
    kind: str
    run: str
    midway: bool = False
    rank: int = 0
    plan: Plan | None = None
    sent: Sent | None = None
    place: Place = Place()  # noqa: RUF009, it is frozen
    file: tuple[float, float] = (0.0, 0.0)
    path: str = ""

    @property
    def is_long_stop(self) -> bool:
        """Whether a process of several stands still for longer than the others wait."""
        pause = self.sent.pause if self.sent else self.plan.amount if self.plan else 0.0
        return self.kind == "stop" and PROCESSES[self.run] > 1 and pause > HANG_TIMEOUT

    def describe(self) -> str:
        """Return it in words."""
        words = [self.kind, self.run, "from the middle" if self.midway else "from the start"]
        if PROCESSES[self.run] > 1:
            words.append(f"rank {self.rank}")
        if self.kind == "memory" and self.plan is not None:
            words.append(f"at the large allocation {self.plan.nth}")
        elif self.plan is not None and self.plan.nth:
            words.append(f"at operation {self.plan.nth} of [{self.plan.operations}] {self.plan.pattern}")
        elif self.plan is not None and self.kind not in PLACES:
            words.append(f"after {self.plan.seconds:.2f} s")
        if self.sent is not None:
            words.append(f"sent after {self.sent.seconds:.2f} s")
        return ", ".join(words)


@dataclass(frozen=True)
class Course:
    """What a start does when nothing happens: how long it takes, and its operations on files."""

    seconds: float
    operations: Sequence[str]

    @cached_property
    def groups(self) -> dict[str, int]:
        """How many operations change files of each group."""
        return dict(Counter(group_of(line[2:]) for line in self.operations if line[0] not in "RM" and len(line) > 2))

    @cached_property
    def large_allocations(self) -> int:
        """How many large blocks of memory it asks for."""
        return sum(line[0] == "M" for line in self.operations)


def draw(
    seed: int, index: int, runs: Sequence[str], kinds: Sequence[str], course_of: Callable[[str, bool], Course]
) -> Fault:
    """Draw a fault: each kind in turn, the rest at random.

    Args:
        seed: Seed of the storm.
        index: Number of the fault.
        runs: Kinds of runs to hurt.
        kinds: Kinds of faults.
        course_of: Function from a kind of run, and whether it goes on from its middle, to its course.
    """
    rng = np.random.default_rng([seed, index])
    kind = kinds[index % len(kinds)]
    alone = [run for run in runs if PROCESSES[run] == 1]
    several = [run for run in runs if PROCESSES[run] > 1]
    takes = bool(several) and kind in OF_PROCESSES
    takes &= kind == "network" or not alone or rng.random() < _SHARE_OF_PROCESSES * len(ALL) / len(OF_PROCESSES)
    run = str(rng.choice(several if takes else alone))
    # What a clock does matters most between two starts.
    midway = kind in DAMAGES or rng.random() < (0.8 if kind == "clock" else 0.4)
    fault = Fault(index, kind, run, midway, rank=int(rng.integers(PROCESSES[run])))
    if kind in DAMAGES:
        return _with(fault, file=(float(rng.random()), float(rng.random())))
    if kind in PLACES:
        return _with(
            fault,
            run=RUN_OF_PLACES,
            midway=False,
            place=_PLACES[kind],
            plan=Plan("signal", number=signal.SIGKILL, nth=int(rng.integers(1, 300))),
        )
    if kind == "memory":
        run, fault = RUN_OF_MEMORY, _with(fault, run=RUN_OF_MEMORY)
    course = course_of(run, midway)
    # What is before accelnet's first line is the harness's own.
    seconds = float(rng.uniform(0.1, max(0.2, course.seconds)))
    pause = float(rng.choice([0.5, HANG_TIMEOUT + 8.0])) if PROCESSES[run] > 1 else float(rng.uniform(0.1, 1.0))
    number = int(_SIGNALS.get(kind, 0))
    if number and rng.random() < 0.5:
        return _with(fault, sent=Sent(number, seconds, pause if kind == "stop" else 0.0))
    plan = _plan(kind, number, seconds, pause, course, rng)
    # Checkpoints are written by all, everything else by the first process alone.
    alone = plan.nth and not plan.pattern.startswith("checkpoints/")
    return _with(fault, plan=plan, rank=0 if alone else fault.rank)


def _plan(kind: str, number: int, seconds: float, pause: float, course: Course, rng: np.random.Generator) -> Plan:
    """Return what the shim does for a kind of fault."""
    # Each group of files is as likely as another; the checkpoints have many.
    groups = sorted(course.groups)
    group = groups[int(rng.integers(len(groups)))]
    at = {"pattern": group, "nth": int(rng.integers(1, course.groups[group] + 1))}
    match kind:
        case "full disk" | "read-only":
            return Plan("fail", number=errno.ENOSPC if kind == "full disk" else errno.EROFS, **at)
        case "torn write":
            return Plan("torn", **at)
        case "slow disk":
            return Plan("slow", amount=float(rng.uniform(0.01, 0.2)), **at)
        case "clock":
            jump = float(rng.choice([-86400.0, -3600.0, -5.0, 5.0, 3600.0, 86400.0]))
            return Plan("clock", amount=jump, **({} if rng.random() < 0.5 else at))
        case "network":
            return Plan("drop" if rng.random() < 0.5 else "reset", seconds=seconds)
        case "memory":
            return Plan("memory", nth=int(rng.integers(1, 1 + course.large_allocations)))
        case _:
            return Plan("signal", number=number, amount=pause, **at)


def group_of(path: str) -> str:
    """Return the pattern of the files that a path is one of: steps, times and random names left out, 4 levels deep."""
    parts = [re.sub(r"[0-9a-f]{8,}|\d[\w.-]*", "*", part) for part in path.split("/")[:4]]
    return "/".join(parts) + "*"


def _with(fault: Fault, **changes: object) -> Fault:
    return Fault(**{**vars(fault), **changes})  # type: ignore[arg-type]


# Without the cache each process would compile the kernels; in float16 there are none, and the numbers are the same.
_ENV: dict[str, str | None] = {"ACCELNET_KERNELS": "xla", "JAX_COMPILATION_CACHE_DIR": None}
_HOMELESS = dict.fromkeys(("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"))
_PLACES = {
    "open umask": Place(umask=0),
    "nameless user": Place(user=_NOBODY, env=_ENV | _HOMELESS),
    # It belongs to the harness's user, root.
    "foreign cache": Place(user=_NOBODY, env=_ENV | {"XDG_CACHE_HOME": FOREIGN}),
}
RUN_OF_PLACES = "float16"


def damage(workdir: Path, fault: Fault) -> str:
    """Damage one file of a work directory, and return its path there."""
    rng = np.random.default_rng([int(1e9 * fault.file[0]), int(1e9 * fault.file[1])])
    files = sorted(path for path in workdir.rglob("*") if path.is_file() and path.name != ".lock")
    # Each place as likely as another; the checkpoints have many files.
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(group_of(str(path.relative_to(workdir))), []).append(path)
    names = sorted(groups)
    chosen = groups[names[int(fault.file[0] * len(names))]]
    path = workdir / fault.path if fault.path else chosen[int(rng.integers(len(chosen)))]
    data = bytearray(path.read_bytes())
    match fault.kind:
        case "flipped bit" if data:
            position = int(fault.file[1] * len(data) * 8)
            data[position // 8] ^= 1 << position % 8
            path.write_bytes(data)
        case "truncated file" if data:
            path.write_bytes(data[: int(fault.file[1] * len(data))])
        case "replaced file":
            other = files[int(rng.integers(len(files)))]
            content = other.read_bytes()
            path.write_bytes(rng.bytes(len(data) + 7) if content == data else content)
        case _:
            path.unlink()
    return str(path.relative_to(workdir))


def flips(seed: int, run: str, workdir: Path, number: int) -> list[Fault]:
    """Return so many flipped bits in each file of the newest checkpoint of a work directory."""
    rng = np.random.default_rng([seed, number])
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    files = sorted(str(path.relative_to(workdir)) for path in newest.rglob("*") if path.is_file())
    faults = [Fault(0, "flipped bit", run, midway=True, path=path) for path in files for _ in range(number)]
    return [_with(fault, index=index, file=(0.0, float(rng.random()))) for index, fault in enumerate(faults)]


def mend(workdir: Path, damaged: str) -> None:
    """Move a damaged file away, as its message asks for: of a checkpoint all of it."""
    parts = Path(damaged).parts
    path = workdir.joinpath(*parts[: 2 if parts[0] == "checkpoints" else 1])
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
