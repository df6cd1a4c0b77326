"""What a run leaves in its work directory: whole files, and TensorBoard events."""

import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelnet.disk import raise_unwritable, write_atomically
from accelnet.json_file import plain_value

# How names of event files of this package end; others' files in the same directory stay.
_OURS = ".accelnet"
_TEMPORARY = r"\..+\.[0-9a-f]{8}\.tmp"
# What a row says beside its metrics.
ROW_FIELDS = ("step", "epoch", "seconds", "split", "learning_rate", "examples_per_second", "spike")


def remove_temporary(directory: str | os.PathLike[str]) -> None:
    """Remove what `write_atomically` left in a directory when it was killed; nobody else may be writing there.

    Raises:
        UserError: if it cannot be removed.
    """
    for path in Path(directory).glob(".*.tmp"):
        if re.fullmatch(_TEMPORARY, path.name):
            try:
                path.unlink()
            except OSError as error:
                raise_unwritable(path, error)


class RowLog(ABC):
    """A file of a run's rows."""

    @abstractmethod
    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row: "step", "split" and so on (`ROW_FIELDS`), and the metrics.

        Raises:
            UserError: if the file cannot be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file. May be called twice."""

    def __enter__(self) -> "RowLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EventFile:
    """A file of TensorBoard events of its own, which is written at once.

    Args:
        directory: Directory of the file, made if needed.
        ending: End of its name.

    Raises:
        UserError: if it cannot be written, as by all methods.
    """

    def __init__(self, directory: Path, ending: str) -> None:
        # The writer below SummaryWriter: that one hands events to a thread, which dies of a full disk and
        # leaves its caller waiting for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # The writer's own names repeat within a second, and its files are overwritten.
            self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}{ending}")
        except OSError as error:
            raise_unwritable(directory, error)
        # TensorBoard hides what it has read of this step or later.
        self.write(0, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, wall_time: float | None = None, **content: Any) -> None:
        """Add an event: one of the fields of TensorBoard's Event."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        wall_time = time.time() if wall_time is None else wall_time
        try:
            self._writer.write_event(Event(step=step, wall_time=wall_time, **content))
        except OSError as error:
            raise_unwritable(self.directory, error)

    def flush(self) -> None:
        """Give the file to the system."""
        try:
            self._writer.flush()
        except OSError as error:
            raise_unwritable(self.directory, error)

    def close(self) -> None:
        """Close the file. May be called twice."""
        try:
            self._writer.close()
        except OSError as error:
            raise_unwritable(self.directory, error)


class TensorBoardLog(RowLog):
    """Write rows as TensorBoard events, one scalar per number, tagged "loss/train" and so on; None is left out.

    Args:
        directory: Directory of the event file. The file of an earlier process goes, when the new one has its rows: so
            every step is there once, whatever the clock said then.
        rows: Rows of the checkpoint that the run goes on from; none for a new run.
        settings: Settings by name, for TensorBoard's table of hyperparameters; empty for none.
        metrics: Tags of the metrics beside them, such as "accuracy/test".

    Raises:
        UserError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> with TensorBoardLog(tempfile.mkdtemp()) as log:
        ...     log.append({"step": 10, "split": "train", "loss": 0.5, "learning_rate": 1e-3})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        rows: Sequence[Mapping[str, Any]] = (),
        settings: Mapping[str, Any] | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        older = list(Path(directory).glob(f"events.*{_OURS}"))
        self._file = EventFile(Path(directory), _OURS)
        self._end: Any = None
        if settings:
            from tensorboardX.summary import hparams

            plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
            *starts, self._end = hparams(plain, dict.fromkeys(metrics, 0.0))
            for start in starts:
                self._file.write(0, summary=start)
        last = rows[-1].get("seconds", 0.0) if rows else 0.0
        for row in rows:
            self._add(row, time.time() - (last - row.get("seconds", 0.0)))
        self._file.flush()
        try:
            for path in older:
                path.unlink()
        except OSError as error:
            raise_unwritable(Path(directory), error)

    def append(self, row: Mapping[str, Any]) -> None:
        self._add(row, time.time())
        self._file.flush()

    def finish(self) -> None:
        """Say that the run is at its end, in the table of hyperparameters."""
        if self._end is not None:
            self._file.write(0, summary=self._end)
            self._file.flush()

    def _add(self, row: Mapping[str, Any], wall_time: float) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = []
        for name, value in row.items():
            if name in ("step", "seconds", "split") or value is None:
                continue
            tag = name if name in ROW_FIELDS else f"{name}/{row['split']}"
            values.append(Summary.Value(tag=tag, simple_value=float(value)))
        self._file.write(row["step"], wall_time, summary=Summary(value=values))

    def close(self) -> None:
        self._file.close()


def write_report(directory: str | os.PathLike[str], name: str, values: Any, page: str) -> Path:
    """Write `name`.json, strict JSON with NaN as null, and report.html into a directory, each whole or not at all.

    Returns:
        The page's path.

    Raises:
        UserError: if they cannot be written.

    Example:
        >>> import tempfile
        >>> write_report(tempfile.mkdtemp(), "compare", {"loss": float("nan")}, "<!doctype html>").name
        'report.html'
    """
    path = Path(directory) / "report.html"
    write_atomically(path.with_name(f"{name}.json"), json.dumps(plain_value(values), indent=1, allow_nan=False) + "\n")
    write_atomically(path, page)
    return path
