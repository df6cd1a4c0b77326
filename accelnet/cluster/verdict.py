"""The verdict: who is lost or hangs, from what the processes say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Beat:
    """What a process says of itself.

    Attributes:
        step: Step that its main thread was at when it last made progress.
        phase: "compile", "train", "evaluate", "save", "input" and so on.
        marks: Number of times that the main thread has made progress.
        seconds: Time since it last did.
        count: Number of beats so far; a beat whose count stays the same is not heard again.

    Example:
        >>> Beat(1, "a", 10, "train", 12, 0.5, 3).place
        'step 10, phase train'
    """

    rank: int
    host: str
    step: int
    phase: str
    marks: int
    seconds: float
    count: int

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @property
    def place(self) -> str:
        return f"step {self.step}, phase {self.phase}"


@dataclass(frozen=True)
class Verdict:
    """Ranks of the processes that are to blame, and the sentence that says so."""

    ranks: frozenset[int]
    reason: str


def lost(
    beats: Mapping[int, Beat], silent: Mapping[int, float], num_processes: int, timeout_seconds: float
) -> Verdict | None:
    """Name the processes that were not heard of for too long.

    Args:
        beats: last beat of each process that was ever heard of, by rank.
        silent: seconds since each process was last heard of, or since the watch began, by rank.
        num_processes: number of processes of the run.
        timeout_seconds: time for which a process may be silent.

    Example:
        >>> beat = Beat(1, "a", 10, "train", 12, 0.5, 3)
        >>> lost({1: beat}, {0: 0.0, 1: 7.0}, 2, 5.0).reason
        'rank 1 on a is lost: not heard of for 7.0 s (last at step 10, phase train)'
    """
    ranks = [rank for rank in range(num_processes) if silent[rank] > timeout_seconds]
    if not ranks:
        return None
    return Verdict(frozenset(ranks), "; ".join(_silence(rank, beats.get(rank), silent[rank]) for rank in ranks[:8]))


def _silence(rank: int, beat: Beat | None, seconds: float) -> str:
    if beat is None:
        return f"rank {rank} is lost: it joined, but was not heard of in {seconds:.1f} s"
    return f"{beat.name} is lost: not heard of for {seconds:.1f} s (last at {beat.place})"


def stalled(beats: Mapping[int, Beat], timeout_seconds: float) -> Verdict | None:
    """Name the processes that the others wait for, if nothing has moved for too long.

    Those with the least progress are to blame: first by step, then by how often they made progress. While one of those
    at the lowest step compiles, all wait for it, and nothing hangs.

    Example:
        >>> ahead, behind = Beat(0, "a", 10, "train", 12, 6.0, 3), Beat(1, "b", 10, "input", 11, 6.5, 3)
        >>> stalled({0: ahead, 1: behind}, 5.0).reason
        'no progress for 6.5 s: rank 1 on b stands at step 10, phase input, and the others wait for it'
    """
    lowest = min((beat.step for beat in beats.values()), default=0)
    last = [beat for beat in beats.values() if beat.step == lowest]
    if not any(beat.seconds > timeout_seconds for beat in last) or any(beat.phase == "compile" for beat in last):
        return None
    marks = min(beat.marks for beat in last)
    blamed = sorted((beat for beat in last if beat.marks == marks), key=lambda beat: beat.rank)
    seconds = max(beat.seconds for beat in blamed)
    start, everyone = f"no progress for {seconds:.1f} s", frozenset(beat.rank for beat in blamed)
    if seconds <= timeout_seconds:
        return None
    if len(blamed) == len(beats):
        return Verdict(
            everyone,
            f"{start}: all processes stand at {blamed[0].place}, so that what they exchange hangs, and none can be "
            "singled out",
        )
    names = ", ".join(f"{beat.name} stands at {beat.place}" for beat in blamed[:8])
    return Verdict(everyone, f"{start}: {names}, and the others wait for {'it' if len(blamed) == 1 else 'them'}")


def patience(timeout_seconds: float) -> tuple[float, float]:
    """Return how often processes are heard of, and when one that is not must be gone, once there is a sign of it.

    Example:
        >>> patience(300.0)
        (2.0, 7.0)
    """
    interval = min(2.0, timeout_seconds / 20)
    return interval, 3 * interval + 1.0
