"""Whether a run that was hurt ended as it promises: with the right code, and one message that names the cause."""

import re

from scripts.faultstorm.faults import Fault
from scripts.faultstorm.processes import HANG, Ended

DONE, MISTAKE, PREEMPTED, LOST, INTERRUPTED = 0, 2, 4, 5, 130
KILLED = -9
_KILLS = ("kill", "torn write")
# Before there is something to save, those whose peer was interrupted are told of an error.
_ENDS = {MISTAKE: "error: ", PREEMPTED: "preempted: ", LOST: "error: ", INTERRUPTED: ("interrupted", "error: rank ")}
# What C++ writes by itself; jax does it where process 0 is gone, and accelnet cannot keep it from that.
_OF_CPP = re.compile(
    r"^[IWEF]\d{4} |^WARNING: All log messages before absl|^\s*\[?(external|third_party)/|^terminate call|^  what\("
)
_CAUSES = {
    "full disk": r"No space left|full",
    "read-only": r"[Rr]ead-only",
    "memory": r"[Mm]emory",
    "SIGTERM": r"told to end|SIGTERM",
    "SIGINT": r"(?i)interrupt|Ctrl-C",
}


def misnamed(fault: Fault, ended: Ended) -> list[str]:
    """Return what is wrong with the codes and messages of the start that a fault happened in, in words."""
    lines: list[str] = []
    for rank, (code, said) in enumerate(zip(ended.codes, ended.said, strict=True)):
        allowed = _codes(fault, rank, len(ended.codes))
        if _came_too_late(fault, ended):
            allowed = {DONE, *(allowed & {KILLED})}
        if _never_came(fault, rank, ended):
            allowed = {LOST}
        if code not in allowed:
            lines.append(f"rank {rank} ended with {code}, expected {' or '.join(map(str, sorted(allowed)))}")
        cause = rf"missing: [\d, ]*\b{fault.rank}\b" if _never_came(fault, rank, ended) else cause_of(fault, rank)
        lines += [f"rank {rank} {line}" for line in _of_messages(fault, rank, code, said, cause)]
    return lines


def _came_too_late(fault: Fault, ended: Ended) -> bool:
    """Say whether all had come to the end of the run before: then they end as if nothing had happened."""
    ends = {DONE, KILLED} if fault.kind in _KILLS else {DONE}
    return ended.was_late and fault.kind in ("SIGTERM", "SIGINT", "stop", *_KILLS) and set(ended.codes) <= ends


def _never_came(fault: Fault, rank: int, ended: Ended) -> bool:
    """Say whether the others could not learn why a process was missing: it was told to end before it met them."""
    return rank != fault.rank and fault.kind == "SIGTERM" and "before anything began" in ended.said[fault.rank]


def misnamed_resume(ended: Ended, cause: str = "") -> list[str]:
    """Return what is wrong with a start that no fault happened in: it must be done.

    Args:
        ended: How it ended.
        cause: Regular expression of the file that was damaged before; then it may say so, in a note or in an error.
    """
    lines = []
    for rank, (code, said) in enumerate(zip(ended.codes, ended.said, strict=True)):
        if code != DONE and not (cause and code == MISTAKE):
            lines.append(f"rank {rank} ended with {code} after the fault, expected 0")
        texts = said.splitlines()
        if any("Traceback" in text for text in texts):
            lines.append(f"rank {rank} shows a traceback")
        elif len(texts) > 3:
            lines.append(f"rank {rank} says {len(texts)} lines")
        unnamed = [text for text in texts if not (cause and re.search(cause, text))]
        lines += [f"rank {rank} says {text[:200]!r}" for text in unnamed[:1]]
    return lines


def _codes(fault: Fault, rank: int, processes: int) -> set[int | str]:
    """Return the codes that are promised to a process."""
    hurt = rank == fault.rank or processes == 1
    match fault.kind:
        case kind if kind in _KILLS:
            return {KILLED} if hurt else {LOST}
        case "stop":
            # One that stands still for longer than the others wait is lost to them, and learns it when it goes on.
            return {LOST} if fault.is_long_stop else {DONE}
        case "SIGTERM":
            return {PREEMPTED}
        case "SIGINT":
            return {INTERRUPTED}
        case "full disk" | "read-only" | "memory":
            return {MISTAKE}
        case "network":
            return {LOST}
        case _:
            return {DONE}


def _of_messages(fault: Fault, rank: int, code: int | str, said: str, cause: str) -> list[str]:
    texts = [text for text in said.splitlines() if text.strip()]
    if "Traceback" in said:
        return [f"shows a traceback, of {len(texts)} lines, with {texts[-1][:160]!r} at its end"]
    if code in (KILLED, HANG):
        return []
    # Documented: jax's client says more when process 0 is gone, as it is for one that stood still for too long.
    stood_still = fault.kind == "stop" and code == LOST and rank == fault.rank
    if (fault.rank == 0 and rank > 0) or fault.kind == "network" or stood_still:
        texts = [text for text in texts if not _OF_CPP.match(text)]
    if code == DONE:
        return [f"says {len(texts)} lines: {texts[0][:200]!r}"] if texts else []
    wrong = []
    if len(texts) != 1:
        wrong.append(f"says {len(texts)} lines, expected one message" + (f": {texts[0][:200]!r}" if texts else ""))
    start = _ENDS.get(code) if isinstance(code, int) else None
    if texts and start is not None and not any(text.startswith(start) for text in texts):
        wrong.append(f"says {texts[0][:200]!r}, expected a message that begins with {start!r}")
    if texts and not re.search(cause, said):
        wrong.append(f"does not name the cause: {texts[0][:200]!r}")
    return wrong


def cause_of(fault: Fault, rank: int) -> str:
    """Return a regular expression for what a message has to name."""
    if fault.kind in ("kill", "torn write", "stop", "network") and rank != fault.rank:
        return rf"(rank|process) {fault.rank}\b"  # before they have met, they are processes
    return _CAUSES.get(fault.kind, "")
