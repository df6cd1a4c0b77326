"""One case: its systems prepared, compared, and timed in turns."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_systems import comparison
from bench_systems.cases import CHECKED_STEPS, Case
from bench_systems.processes import Worker, WorkerError, has_glibc

PEERS = ("torch", "torch_compile", "keras_jax", "keras_torch", "flax", "onnxruntime", "openvino")
SYSTEMS = ("accelnet", *PEERS)
_COMMAND_SECONDS = 300.0
# Threads of a parallel loop wait for the next one for a moment, at the cost of whoever comes next.
_PAUSE_SECONDS = 0.05

Key = tuple[str, str]
_OURS: Key = ("accelnet", "default")


def measure(
    case: Case, systems: Sequence[str], *, rounds: int, turn_seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: what is measured.
        systems: names; accelnet is measured in any case, the others are compared with it.
        rounds: turns of each system.
        turn_seconds: how long a turn takes, about.
        say: told what happens.

    Returns:
        The case's row of the result.
    """
    with tempfile.TemporaryDirectory(prefix="accelnet-bench-") as name:
        folder = Path(name)
        workers: dict[Key, Worker] = {}
        notes: dict[Key, dict[str, Any]] = {}
        try:
            for key in _variants(systems):
                say(f"{case.name}: preparing {key[0]} ({key[1]} allocator)")
                notes[key] = _prepare(case, key, folder, workers)
            notes |= compared(notes)
            for key, note in notes.items():
                if note["status"] != "measured":
                    say(f"{case.name}: {key[0]} is {note['status']}: {note['reason']}")
                    workers.pop(key).close()
            times = _take_turns(case, workers, notes, rounds, turn_seconds, say)
            for key in times:
                notes[key] |= workers[key].ask("memory")
        finally:
            for worker in workers.values():
                worker.close()
    return _row(case, notes, times)


def _variants(systems: Sequence[str]) -> list[Key]:
    """Return what is run: accelnet as it comes, and every peer also with the tuned allocator."""
    allocators = ("default", "tuned") if has_glibc() else ("default",)
    peers = [(system, allocator) for system in systems if system != "accelnet" for allocator in allocators]
    return [("limit", "default"), ("accelnet", "default"), *peers]


def _prepare(case: Case, key: Key, folder: Path, workers: dict[Key, Worker]) -> dict[str, Any]:
    worker = workers[key] = Worker(*key, folder, _COMMAND_SECONDS)
    arguments = {"case": case.name, "path": str(folder / "arrays.npz")}
    try:
        if key[0] == "limit":
            worker.ask("export", **arguments)
        answer = worker.ask("prepare", **arguments)
        if "absent" in answer:
            return {"status": "absent", "reason": answer["absent"]}
        note = {
            "status": "measured",
            "compile_seconds": answer["compile_seconds"],
            "first_step_seconds": answer["finished"] - worker.started,
        }
        return note | worker.ask("losses", steps=CHECKED_STEPS)
    except WorkerError as error:
        return {"status": "failed", "reason": str(error)}


def compared(notes: dict[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """Return what is known of the peers, with a refusal of those whose losses say that they do other work."""
    measured = {key: note for key, note in notes.items() if note["status"] == "measured" and key[0] != "limit"}
    reference = measured.pop(_OURS, {}).get("losses")
    if reference is None:
        return {}
    found = {}
    for key, note in measured.items():
        # Another allocator changes no bit, so that it would say nothing about rounding.
        others = {system: other["losses"] for (system, _), other in measured.items() if system != key[0]}
        difference = comparison.largest_difference(reference, note["losses"]).relative
        found[key] = note | {"max_loss_difference": difference}
        refused = comparison.refusal(reference, note["losses"], list(others.values()))
        if refused is not None:
            reason = f"its loss at step {refused.step + 1} is {refused.loss:.6g}, accelnet's {refused.reference:.6g}"
            found[key] = {"status": "refused", "reason": reason, "max_loss_difference": difference}
    return found


def _take_turns(
    case: Case,
    workers: dict[Key, Worker],
    notes: dict[Key, dict[str, Any]],
    rounds: int,
    turn_seconds: float,
    say: Callable[[str], None],
) -> dict[Key, list[float]]:
    """Return the seconds per step of each round. A worker that fails loses its row, not the others theirs."""
    times: dict[Key, list[float]] = {key: [] for key in workers}
    steps: dict[Key, int] = {}

    def turn(key: Key, take: Callable[[Worker], None]) -> None:
        if key not in times:
            return
        time.sleep(_PAUSE_SECONDS)
        try:
            take(workers[key])
        except WorkerError as error:
            notes[key] = {"status": "failed", "reason": str(error)}
            del times[key]

    def calibrate(key: Key, worker: Worker) -> None:
        num_steps, seconds = 1, 0.0
        while True:
            answer = worker.ask("time", steps=num_steps)
            num_steps, seconds = answer["steps"], answer["seconds"]
            if seconds >= turn_seconds / 4:
                break
            num_steps *= 4
        steps[key] = max(1, round(num_steps * turn_seconds / seconds))

    def take(key: Key, worker: Worker) -> None:
        answer = worker.ask("time", steps=steps[key])
        times[key].append(answer["seconds"] / answer["steps"])

    for key in workers:
        turn(key, lambda worker, key=key: calibrate(key, worker))
    names = {f"{system}, {allocator}": (system, allocator) for system, allocator in workers}
    for number in range(rounds):
        say(f"{case.name}: round {number + 1} of {rounds}")
        for name in comparison.rotated(list(names), number):
            turn(names[name], lambda worker, key=names[name]: take(key, worker))
    return times


def _row(case: Case, notes: dict[Key, dict[str, Any]], times: dict[Key, list[float]]) -> dict[str, Any]:
    allocators = comparison.counted_variants(times)
    counted = {system: times[system, allocator] for system, allocator in allocators.items()}
    limit = statistics.median(counted["limit"]) if "limit" in counted else None
    systems: dict[str, Any] = {}
    for system, allocator in notes:
        if system == "limit" or system in systems:
            continue
        chosen = allocators.get(system, allocator)
        note = notes[system, chosen]
        cell = {
            name: note.get(name)
            for name in ("compile_seconds", "first_step_seconds", "peak_bytes", "max_loss_difference")
        }
        cell = {"status": note["status"], "step_seconds": None, "spread": None, **cell, "allocator": chosen}
        if system in counted:
            seconds = statistics.median(counted[system])
            cell |= {"step_seconds": seconds, "spread": [min(counted[system]), max(counted[system])]}
            cell["over_limit"] = seconds / limit if limit else None
        else:
            cell["reason"] = note["reason"]
        systems[system] = cell
    peer = comparison.best_peer(counted)
    ours = counted.get("accelnet")
    ratio = comparison.paired_ratio(counted[peer], ours) if peer and ours else None
    return {
        "case": case.name,
        "kind": case.kind,
        "limit_seconds": limit,
        "systems": systems,
        "best_peer": peer,
        "ratio": ratio,
    }
