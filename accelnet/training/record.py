"""What a run leaves in its work directory: whole files, metrics.jsonl and TensorBoard events."""

import json
import math
import numbers
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from accelnet.errors import UserError

# What a row says beside its metrics.
ROW_FIELDS = ("step", "epoch", "seconds", "split", "learning_rate", "examples_per_second")


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file, so that at any instant its path holds either the old content or the new.

    Args:
        path: File to write; its directory is made if needed.
        content: Text (written as UTF-8) or bytes.

    Raises:
        UserError: if it cannot be written, for want of permission or space.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "runs" / "note.txt"
        >>> write_atomically(path, "kept")
        >>> path.read_text()
        'kept'
    """
    path = Path(path)
    # Names of files that are no UTF-8 have characters that cannot be encoded.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    # In the same directory, since a rename is atomic within a file system only.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        # Without it a power failure can undo the rename.
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        _raise_unwritable(path, error)


def _raise_unwritable(path: Path, error: OSError) -> NoReturn:
    # What is wrong with a directory above is said of that directory.
    culprit = f"{error.filename}: " if error.filename and Path(error.filename) in path.parents else ""
    raise UserError(
        f"cannot write {path}: {culprit}{error.strerror or error}. The files that were there are untouched. "
        f"Free space, get permission to write there, or choose another --workdir"
    ) from error


def plain_value(value: Any) -> Any:
    """Turn a value into one that strict JSON can hold.

    Numbers of any library become int, float or bool. NaN and infinities, which JSON lacks, become None.

    Example:
        >>> import numpy as np
        >>> plain_value({"loss": np.float32(0.5), "r2": float("nan"), "shape": (1, 2)})
        {'loss': 0.5, 'r2': None, 'shape': [1, 2]}
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and jax
        return plain_value(value.tolist())
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


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


class MetricsLog(RowLog):
    r"""Keep the metrics of a run in a file with one JSON object per line.

    Every row is in the file when `append` returns; NaN and infinities are null. A row that does not fit on the disk
    leaves no trace, and the rows before it stay readable.

    Args:
        path: File metrics.jsonl. What it held is replaced, atomically, by `rows`.
        rows: Rows of the checkpoint that the run goes on from; none for a new run.

    Raises:
        UserError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> with MetricsLog(path) as log:
        ...     log.append({"step": 10, "split": "train", "loss": float("nan")})
        >>> path.read_text()
        '{"step": 10, "split": "train", "loss": null}\n'
    """

    def __init__(self, path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path = Path(path)
        write_atomically(self.path, "".join(map(_line, rows)))
        try:
            self._descriptor: int | None = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            _raise_unwritable(self.path, error)

    def append(self, row: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed: no row can be added")
        data = _line(row).encode()
        length = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            os.ftruncate(self._descriptor, length)
            _raise_unwritable(self.path, error)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain_value(row), allow_nan=False) + "\n"


class TensorBoardLog(RowLog):
    """Write rows as TensorBoard events, one scalar per number, tagged "loss/train" and so on; None is left out.

    Args:
        directory: Directory of the event files; a new file is added.
        purge_step: First step not yet done: events of older files at this step or later are hidden.

    Raises:
        UserError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> with TensorBoardLog(tempfile.mkdtemp()) as log:
        ...     log.append({"step": 10, "split": "train", "loss": 0.5, "learning_rate": 1e-3})
    """

    def __init__(self, directory: str | os.PathLike[str], purge_step: int = 0) -> None:
        # The writer below SummaryWriter: that one hands events to a thread, which dies of a full disk and
        # leaves its caller waiting for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # The writer's own names repeat within a second, and its files are overwritten.
            self._writer = EventsWriter(str(self.directory / "events"), f".{time.time_ns()}")
        except OSError as error:
            _raise_unwritable(self.directory, error)
        self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def append(self, row: Mapping[str, Any]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = []
        for name, value in row.items():
            if name in ("step", "seconds", "split") or value is None:
                continue
            tag = name if name in ROW_FIELDS else f"{name}/{row['split']}"
            values.append(Summary.Value(tag=tag, simple_value=float(value)))
        self._write(row["step"], summary=Summary(value=values))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        try:
            self._writer.write_event(Event(step=step, wall_time=time.time(), **content))
            self._writer.flush()
        except OSError as error:
            _raise_unwritable(self.directory, error)

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            _raise_unwritable(self.directory, error)


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
