"""A file of rows that grows: one JSON object per line, and a position in it that a checkpoint can name."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelnet.disk import raise_unwritable, write_atomically
from accelnet.errors import UserError
from accelnet.json_file import plain_value
from accelnet.training.checkpoint import Checkpoints, on_first
from accelnet.training.events import rank
from accelnet.training.manifest import DamagedError, new_hash
from accelnet.training.record import RowLog

Row = dict[str, Any]
Position = dict[str, Any]


class RowFile(RowLog):
    r"""Keep rows in a file with one JSON object per line.

    Every row is in the file when `append` returns; NaN and infinities are null. A row that does not fit on the disk
    leaves no trace, and the rows before it stay readable.

    Args:
        path: File, such as metrics.jsonl. What it held is replaced, atomically, by `rows`.
        rows: Rows of the checkpoint that the run goes on from; none for a new run.

    Raises:
        UserError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> with RowFile(path) as log:
        ...     log.append({"step": 10, "split": "train", "loss": float("nan")})
        ...     position = log.position()
        >>> path.read_text()
        '{"step": 10, "split": "train", "loss": null}\n'
        >>> position["bytes"], read_rows(position, [path])
        (45, [{'step': 10, 'split': 'train', 'loss': None}])
    """

    def __init__(self, path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path = Path(path)
        content = b"".join(map(_line, rows))
        write_atomically(self.path, content)
        self._length, self._hash = len(content), new_hash(content)
        try:
            self._descriptor: int | None = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise_unwritable(self.path, error)

    def append(self, row: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed: no row can be added")
        left = data = _line(row)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._length)
            raise_unwritable(self.path, error)
        self._length += len(data)
        self._hash.update(data)

    def position(self) -> Position:
        """Return how far the file goes now, JSON values: its bytes, and a checksum of them."""
        return {"bytes": self._length, "checksum": self._hash.hexdigest()}

    def sync(self) -> None:
        """Wait until all rows are on the disk.

        Raises:
            OSError: if they cannot be written.
        """
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain_value(row), allow_nan=False) + "\n").encode()


def read_rows(position: Position, paths: Sequence[Path], *, lenient: bool = False) -> list[Row]:
    """Return the rows up to a position, from the first of some equal files that holds them.

    Args:
        position: Position in the files.
        paths: The files.
        lenient: If none holds them all, return the most that can be read.

    Raises:
        DamagedError: if none holds them.
    """
    found: list[list[Row]] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                content = file.read(position["bytes"])
        except OSError:
            continue
        if new_hash(content).hexdigest() == position["checksum"]:
            return [json.loads(line) for line in content.splitlines()]
        found.append(_readable(content))
    if not lenient:
        raise DamagedError(f"its rows are not in {' or '.join(path.name for path in paths)}")
    return max(found, key=len, default=[])


def _readable(content: bytes) -> list[Row]:
    rows: list[Row] = []
    with contextlib.suppress(ValueError, RecursionError):
        for line in content.splitlines():
            row = json.loads(line)
            if not isinstance(row, dict) or not {"step", "split"} <= set(row):
                break
            rows.append(row)
    return rows


def row_files(workdir: Path) -> tuple[Path, Path]:
    """Return the two equal files of a run's rows: one is out of the way, the other is for everybody."""
    return workdir / "checkpoints" / "rows.jsonl", workdir / "metrics.jsonl"


def recorded_seconds(workdir: Path) -> float:
    """Return the time of the last row that a process recorded, whether or not a checkpoint has it; 0 without rows."""
    for path in row_files(workdir):
        with contextlib.suppress(OSError):
            seconds = [row.get("seconds") for row in _readable(path.read_bytes())[-1:]]
            return next((float(value) for value in seconds if isinstance(value, int | float)), 0.0)
    return 0.0


def with_rows(workdir: Path, note: Callable[[str], None], record: dict[str, Any], lenient: bool) -> dict[str, Any]:
    """Return a checkpoint's record with the rows themselves instead of their position.

    Args:
        workdir: Directory of the run.
        note: Function that gets a sentence if rows are missing.
        record: The record.
        lenient: Take the rows that can be read if not all can.

    Raises:
        DamagedError: if the rows are not there.
    """
    files = row_files(workdir)
    rows = read_rows(record["rows"], files, lenient=lenient)
    if lenient:  # which is asked for where they are not all there
        last = rows[-1]["step"] if rows else 0
        note(f"{' and '.join(map(str, files))} are damaged: rows after step {last} are lost, the weights are whole")
    return record | {"rows": rows}


def ranks(rows: Iterable[Row], metric: str, *, lower_is_better: bool) -> dict[int, float]:
    """Return how good each validation was: by step a number that is the smaller the better.

    Example:
        >>> found = ranks([{"step": 5, "split": "validation", "r2": 0.3}], "r2", lower_is_better=False)
        >>> found, best_of(found, [5, 9])
        ({5: -0.3}, 5)
    """
    validations = (row for row in rows if row["split"] == "validation" and metric in row)
    return {row["step"]: rank(row[metric], lower_is_better) for row in validations}


def is_among_best(ranks: Mapping[int, float], step: int, others: Iterable[int], count: int) -> bool:
    """Say whether a step was evaluated, and so well that fewer than `count` of some others are better or as good.

    Example:
        >>> is_among_best({3: 0.5, 6: 0.4}, 6, [3], 1), is_among_best({3: 0.4, 6: 0.4}, 6, [3], 1)
        (True, False)
    """
    better = [other for other in others if other != step and ranks.get(other, math.inf) <= ranks.get(step, -math.inf)]
    return step in ranks and len(better) < count


def best_of(ranks: Mapping[int, float], steps: Iterable[int]) -> int | None:
    """Return the best of some steps, of equals the earliest, which took less training; None if none was evaluated."""
    return min((step for step in steps if step in ranks), key=lambda step: (ranks[step], step), default=None)


def best_step(checkpoints: Checkpoints, metric: str, lower_is_better: bool) -> int | None:
    """Return the step of the checkpoint with the best validation metric; None if there is no checkpoint.

    Args:
        checkpoints: Checkpoints of a run, completed by `with_rows`.
        metric: Name of the metric.
        lower_is_better: Its direction.

    Raises:
        UserError: if none was evaluated, or none is whole.
    """
    found = checkpoints.read_record()
    if found is None:
        return None
    steps = on_first(checkpoints.hosts, checkpoints.steps)
    step = best_of(ranks(found[1]["rows"], metric, lower_is_better=lower_is_better), steps)
    if step is None:
        raise UserError(
            f"{checkpoints.directory.parent} holds no checkpoint with a validation {metric}, only those of the steps "
            f"{steps}: leave out --best (best=True) for the newest"
        )
    return step
