"""One fault from its start to its end: a run is hurt, goes on until it is done, and is compared with its reference."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.faultstorm.faults import DAMAGES, PLACES, Course, Fault, damage, mend
from scripts.faultstorm.judge import DONE, misnamed, misnamed_resume
from scripts.faultstorm.outcome import Outcome, Reader, Reference, differences
from scripts.faultstorm.processes import Ended, Plan, Server, start

# Each may end with a message that names what is damaged; there are three checkpoints, and some files more.
_MOST_STARTS = 6


@dataclass(frozen=True)
class Verdict:
    """What became of a run that was hurt.

    Attributes:
        fault: What happened to it.
        hit: Where; empty: the run ended before, and nothing happened.
        lost: Why the run could not be brought to its end; empty: it was.
        different: Where its outcome is not that of the reference.
        misnamed: What is wrong with codes and messages.
        recover_seconds: From each restart to the first new step, without compilation.
        steps_lost: Steps that were computed a second time.
        seconds: All starts together.
        said: Last words of each start.
    """

    fault: Fault
    hit: str
    lost: str
    different: Sequence[str]
    misnamed: Sequence[str]
    recover_seconds: Sequence[float]
    steps_lost: int
    seconds: float
    said: Sequence[str]


class Ground:
    """What a kind of run is like when nothing happens: its reference, its courses, and a copy of its middle.

    Args:
        server: Where runs come from.
        kind: Kind of the run.
        folder: An empty directory for it.
    """

    def __init__(self, server: Server, kind: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.server, self.kind, self.folder = server, kind, folder
        self.middle, self._lock = folder / "middle", threading.Lock()
        with _READING:
            self._reader = Reader(kind)
        _done(start(server, kind, folder / "first"))  # it compiles, and its times are others
        whole = _done(start(server, kind, folder / "whole", log_all=True))
        _done(start(server, kind, folder / "steps", every_step=True))
        expected, steps = self.read(folder / "whole"), self.read(folder / "steps").checkpoints
        self.reference = Reference(expected, {step: arrays for step, arrays in steps.items() if arrays is not None})
        if found := differences(self.read(folder / "first"), self.reference):
            raise RuntimeError(f"two runs of {kind} to which nothing happened differ: {found}")
        self.seconds = whole.seconds
        # The middle is where most of the rows are written: two checkpoints are whole by then.
        nth = 2 * len(expected.rows) // 3
        plan = Plan("signal", "metrics.jsonl", "w", number=signal.SIGKILL, nth=nth)
        start(server, kind, self.middle, plan=plan)
        if len(self.read(self.middle).checkpoints) < 2:
            raise RuntimeError(f"the middle of {kind} has fewer than 2 checkpoints")
        shutil.copytree(self.middle, folder / "rest")
        rest = _done(start(server, kind, folder / "rest", log_all=True))
        self.courses = {
            False: Course(whole.seconds, whole.operations), True: Course(rest.seconds, rest.operations),
        }  # fmt: skip

    def read(self, workdir: Path) -> Outcome:
        """Return what is in a work directory of this kind."""
        with _READING:
            return self._reader.read(workdir)


class Grounds(dict[str, Ground]):
    """The grounds of each kind of run, made when they are asked for."""

    def __init__(self, server: Server, folder: Path) -> None:
        super().__init__()
        self._server, self._folder, self._begun = server, folder, time.monotonic()

    def __missing__(self, kind: str) -> Ground:
        print(f"{time.monotonic() - self._begun:5.0f} s  the reference of {kind} begins", flush=True)
        self[kind] = Ground(self._server, kind, self._folder / kind)
        return self[kind]


# JAX in this process serves one thread at a time.
_READING = threading.Lock()


def _done(ended: Ended) -> Ended:
    if set(ended.codes) != {DONE}:
        raise RuntimeError(f"a run to which nothing happened ended with {ended.codes}: {ended.said}")
    return ended


def endure(ground: Ground, fault: Fault, workdir: Path) -> Verdict:
    """Let a fault happen to a run in a directory that does not exist yet, and let the run go on until it is done."""
    server, kind = ground.server, ground.kind
    if fault.midway:
        shutil.copytree(ground.middle, workdir)
    else:
        workdir.mkdir()
    if fault.place.user is not None:
        os.chown(workdir, fault.place.user, fault.place.user)
    damaged = damage(workdir, fault) if fault.kind in DAMAGES else ""
    starts, wrong, recoveries, lost = list[Ended](), list[str](), list[float](), ""
    if damaged:
        hit, reached = damaged, _last_step(ground, fault)
    else:
        first = start(server, kind, workdir, plan=fault.plan, sent=fault.sent, rank=fault.rank, place=fault.place)
        starts.append(first)
        hit = fault.kind if fault.kind in PLACES else first.hit
        reached = max((step for _, step, _ in first.trace), default=0)
        if hit and fault.kind not in PLACES:
            wrong += misnamed(fault, first)
    # A user without a place for caches is told so, at every start.
    untrusted = fault.kind in ("nameless user", "foreign cache")
    steps_lost, cause = 0, "^accelnet: nothing is kept between processes" if untrusted else _named(damaged)
    while not starts or set(starts[-1].codes) != {DONE}:
        if len(starts) >= _MOST_STARTS or (len(starts) > 1 and starts[-1].said == starts[-2].said != ("",)):
            lost = f"not done after {len(starts)} starts: {starts[-1].codes}, {starts[-1].said}"
            break
        ended = start(server, kind, workdir, place=fault.place)
        if damaged and set(ended.codes) != {DONE} and not misnamed_resume(ended, cause):
            mend(workdir, damaged)
        wrong += misnamed_resume(ended, cause)
        if damaged and not starts and Path(damaged).parts[:2] == ("checkpoints", str(reached)):
            # It goes on from there, so it reads all of it; of the others it may never read anything.
            wrong += [] if any(re.search(cause, said) for said in ended.said) else [f"{damaged} was accepted silently"]
        starts.append(ended)
        if len(ended.trace) > 1:
            begun, new = ended.trace[0], ended.trace[1]
            steps_lost += max(0, reached - begun[1])
            recoveries.append(new[0] - new[2] + server.import_seconds)
            reached = max(step for _, step, _ in ended.trace)
    different = [] if lost else _different(ground, workdir, damaged)
    if fault.kind == "foreign cache" and any(server.foreign.iterdir()):
        wrong.append("something was written into another user's cache")
    said = tuple("; ".join(text.strip() for text in ended.said if text.strip()) for ended in starts)
    seconds = sum(ended.seconds for ended in starts)
    return Verdict(fault, hit, lost, different, list(dict.fromkeys(wrong)), recoveries, steps_lost, seconds, said)


def _last_step(ground: Ground, fault: Fault) -> int:
    return max(ground.read(ground.middle).checkpoints) if fault.midway else 0


def _different(ground: Ground, workdir: Path, damaged: str) -> list[str]:
    """Return where a finished run is not its reference; what was damaged may be missing, or known to be damaged."""
    parts = Path(damaged).parts if damaged else ()
    harmed = "/".join(parts[:2]) if parts[:1] == ("checkpoints",) else parts[0] if parts else None
    return differences(ground.read(workdir), ground.reference, harmed)


def _named(damaged: str) -> str:
    """Return a regular expression for what names a damaged file, or the checkpoint that it is in."""
    if not damaged:
        return ""
    parts = Path(damaged).parts
    return rf"checkpoints?[/ ]{parts[1]}\b|checkpoint of step {parts[1]}\b" if parts[0] == "checkpoints" else parts[0]
