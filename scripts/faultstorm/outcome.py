"""What a run left in its work directory, and where two of them differ: times aside, not in one bit."""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.errors import UserError
from accelnet.parallel.rules import path_names
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.program import prepare
from scripts.faultstorm import kinds

# What is not the same twice, in rows and in result.json.
_TIMES = {"seconds", "examples_per_second", "timing", "workdir", "compiles"}
CHECKPOINTS = "checkpoints"

Arrays = Mapping[str, tuple[str, tuple[int, ...], int]]


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        result: result.json without times; None where there is none.
        rows: metrics.jsonl without times.
        scalars: What TensorBoard shows: values by tag and step.
        checkpoints: By step, of each array its dtype, shape and a hash of its bytes; None for one that says of itself
            that it is damaged.
        left: Files and directories that no run is to leave, such as temporary ones.
    """

    result: Any
    rows: tuple[Any, ...]
    scalars: Mapping[str, tuple[tuple[int, float], ...]]
    checkpoints: Mapping[int, Arrays | None]
    left: tuple[str, ...] = ()


class Reader:
    """Read the outcome of the runs of a kind; the steps of any layout are read onto this process's one device."""

    def __init__(self, kind: str) -> None:
        experiment = kinds.experiment(kinds.Config(kind))
        feed, programs = prepare(experiment, None, "jit")
        feed.close()
        self._abstract = programs.abstract_state

    def read(self, workdir: Path) -> Outcome:
        """Return what is in a work directory."""
        result, rows = workdir / "result.json", workdir / "metrics.jsonl"
        return Outcome(
            result=_timeless(json.loads(result.read_text())) if result.exists() else None,
            rows=tuple(_timeless(json.loads(line)) for line in rows.read_text().splitlines()) if rows.exists() else (),
            scalars=shown_by_tensorboard(workdir / "tensorboard"),
            checkpoints=self.checkpoints(workdir),
            left=tuple(sorted(str(path.relative_to(workdir)) for path in workdir.rglob("*") if _is_temporary(path))),
        )

    def checkpoints(self, workdir: Path) -> dict[int, Arrays | None]:
        """Return the checkpoints of a work directory, each read as `evaluate` reads it."""
        notes: list[str] = []
        checkpoints = Checkpoints(workdir, note=notes.append)
        return {step: self._arrays(checkpoints, step) for step in checkpoints.steps()}

    def _arrays(self, checkpoints: Checkpoints, step: int) -> Arrays | None:
        try:
            found = checkpoints.restore(self._abstract, step)
        except UserError:
            return None
        assert found is not None
        arrays = {name: np.asarray(array) for name, array in path_names(found[0])}
        return {name: (str(array.dtype), array.shape, zlib.crc32(array.tobytes())) for name, array in arrays.items()}


def _is_temporary(path: Path) -> bool:
    return "tmp" in path.name or (path.name.startswith(".") and path.name != ".lock")


def _timeless(value: Any) -> Any:
    return {name: item for name, item in value.items() if name not in _TIMES}


def shown_by_tensorboard(directory: Path) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return what TensorBoard shows of a directory of event files.

    It reads them in the order of their names, hides what a later file does again, and does not see what follows damage
    in a file.
    """
    from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

    shown: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.glob("*tfevents*")):
        for event in _events(path.read_bytes()):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                for tag, points in shown.items():
                    shown[tag] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                if not value.tag.startswith("examples_per_second"):
                    shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: tuple(points) for tag, points in shown.items() if points}


def _events(data: bytes) -> Iterator[Any]:
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    def masked(part: bytes) -> int:
        crc = crc32c(part)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    while len(data) >= 16:
        (length,), (check,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        content, end = data[12 : 12 + length], data[12 + length : 16 + length]
        whole = len(end) == 4 and masked(data[:8]) == check and masked(content) == struct.unpack("<I", end)[0]
        if not whole:
            return
        yield Event.FromString(content)
        data = data[16 + length :]


@dataclass(frozen=True)
class Reference:
    """A run that nothing happened to.

    Attributes:
        outcome: What it left.
        steps: The arrays after every step, or after those that were kept.
    """

    outcome: Outcome
    steps: Mapping[int, Arrays]


def differences(found: Outcome, reference: Reference, harmed: str | None = None) -> list[str]:
    """Return where a run differs from the reference, in words; nothing if it is the same, bit for bit.

    Args:
        found: What the run left.
        reference: What it should have left, and the arrays of each step.
        harmed: "checkpoints/STEP" or "tensorboard", where the fault was: it may be missing, or known to be damaged, but
            never wrong.
    """
    expected = reference.outcome
    lines = _of_values("result.json", found.result, expected.result)
    lines += _of_values("metrics.jsonl", list(found.rows), list(expected.rows))
    for tag in sorted(expected.scalars.keys() | found.scalars.keys()):
        ours, theirs = found.scalars.get(tag, ()), expected.scalars.get(tag, ())
        if harmed == "tensorboard" and set(ours) <= set(theirs):
            continue
        lines += _of_values(f"TensorBoard's {tag}", list(ours), list(theirs))
    for step in sorted({max(expected.checkpoints), best_step(expected.rows)} - found.checkpoints.keys()):
        if harmed != f"{CHECKPOINTS}/{step}":
            lines.append(f"checkpoint {step} is missing, there are {sorted(found.checkpoints)}")
    for step, arrays in found.checkpoints.items():
        if arrays is None:
            if harmed != f"{CHECKPOINTS}/{step}":
                lines.append(f"checkpoint {step} is damaged")
        elif step in reference.steps:
            wrong = [name for name, value in reference.steps[step].items() if arrays.get(name) != value]
            wrong += sorted(arrays.keys() - reference.steps[step].keys())
            if wrong:
                lines.append(
                    f"checkpoint {step} differs in {len(wrong)} of {len(arrays)} arrays: {', '.join(wrong[:3])}"
                )
    return lines + [f"{name} is left over" for name in found.left]


def best_step(rows: Sequence[Any]) -> int:
    """Return the step whose validation loss is the lowest, the first of several."""
    scored = [row for row in rows if row["split"] == "validation"]
    return min(scored, key=lambda row: row["loss"])["step"]


def _of_values(name: str, found: Any, expected: Any) -> list[str]:
    if found is None or not isinstance(found, list):
        if found == expected:
            return []
        if not isinstance(found, dict) or not isinstance(expected, dict):
            return [f"{name} is {_short(found)}, expected {_short(expected)}"]
        keys = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
        return [f"{name}: {key} is {_short(found.get(key))}, expected {_short(expected.get(key))}" for key in keys]
    if len(found) != len(expected):
        return [f"{name} has {len(found)} entries, expected {len(expected)}"]
    wrong = [i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
    if not wrong:
        return []
    first = wrong[0]
    values = f"{_short(found[first])}, expected {_short(expected[first])}"
    return [f"{name} differs in {len(wrong)} of {len(found)} entries: {values}"]


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 160 else text[:157] + "..."
