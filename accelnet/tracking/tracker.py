"""What a tracker is, and how the rows of a run reach it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

from accelnet.disk import write_atomically
from accelnet.errors import PreemptedError, UserError
from accelnet.json_file import plain_value, read_json
from accelnet.terminal import say

Status = Literal["finished", "failed", "preempted"]

FILE = "trackers.json"
_SHAPE = {str: {"id": str, "step": int}}
# What a row says of itself; the rest are metrics of its split.
_OF_THE_RUN = ("learning_rate", "examples_per_second", "epoch")
_NOT_TOLD = ("step", "split", "seconds")


@runtime_checkable
class Tracker(Protocol):
    """A tool that keeps runs.

    Attributes:
        name: Name by which a work directory remembers the run in it.
    """

    name: str

    def start(self, config: Mapping[str, Any], name: str, resume_id: str | None) -> str:
        """Begin a run, or go on with one; return its identity.

        Args:
            config: Settings, JSON values.
            name: Name of the run.
            resume_id: Identity that an earlier `start` returned. None: a new run.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step, such as {"validation/loss": 0.5}."""
        ...

    def file(self, path: Path) -> None:
        """Keep a file."""
        ...

    def finish(self, status: Status) -> None:
        """End the run."""
        ...


class Tracking:
    """Tell trackers what is recorded of a run, each step once, whatever ends and resumes it.

    A tracker that fails is left out from then on, with one line: it never ends a training.

    Args:
        trackers: The trackers, each name once.
        config: Settings by name.
        name: Name of the run.
        directory: Work directory, which remembers the runs of the trackers. None: none.

    Raises:
        UserError: if one of them is no tracker, two have one name, or one cannot begin.

    Example:
        >>> import tempfile
        >>> from accelnet.tracking import CsvTracker
        >>> path = Path(tempfile.mkdtemp()) / "run.csv"
        >>> with Tracking([CsvTracker(path)], {"width": 8}, "toy", None) as tracking:
        ...     tracking.log({"step": 5, "split": "train", "loss": 0.5, "learning_rate": 1e-3})
        >>> path.read_text().splitlines()
        ['step,train/loss,learning_rate', '5,0.5,0.001']
    """

    def __init__(
        self,
        trackers: Sequence[Tracker] = (),
        config: Mapping[str, Any] | None = None,
        name: str = "",
        directory: Path | None = None,
    ) -> None:
        for tracker in trackers:
            if not isinstance(tracker, Tracker):
                raise UserError(
                    f"a tracker is of type {type(tracker).__name__}, expected an object with name, start, log, file "
                    "and finish, such as an.tracking.CsvTracker(path)"
                )
        names = [tracker.name for tracker in trackers]
        if len(set(names)) < len(names):
            raise UserError(f"trackers are {', '.join(names)}: give each once")
        self._path = None if directory is None else directory / FILE
        self._known: dict[str, dict[str, Any]] = {}
        if self._path is not None and trackers:
            self._known = read_json(self._path, "identities of trackers", _SHAPE, "remove it") or {}
        self._live: dict[str, Tracker] = {}
        self._pending: dict[str, tuple[int, dict[str, float]]] = {}
        for tracker in trackers:
            known = self._known.get(tracker.name)
            try:
                identity = tracker.start(plain_value(config or {}), name, known["id"] if known else None)
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"the tracker {tracker.name} cannot begin: {error}") from error
            self._known[tracker.name] = {"id": identity, "step": known["step"] if known else -1}
            self._live[tracker.name] = tracker
        self._keep()

    def log(self, row: Mapping[str, Any]) -> None:
        """Tell a row, as metrics.jsonl has it; rows of one step are told together."""
        values = {
            name if name in _OF_THE_RUN else f"{row['split']}/{name}": float(value)
            for name, value in row.items()
            if name not in _NOT_TOLD and isinstance(value, int | float)
        }
        for name in list(self._live):
            step, told = self._pending.get(name, (row["step"], {}))
            if step != row["step"]:
                self._tell(name)
                told = {}
            self._pending[name] = row["step"], {**values, **told}

    def files(self, directory: Path | None) -> None:
        """Give the trackers the curves and the result of a work directory, after all that was recorded."""
        for name in list(self._live):
            self._tell(name)
        for path in () if directory is None else (directory / "curves.png", directory / "result.json"):
            for name in list(self._live) if path.exists() else ():
                self._call(name, "file", path)

    def finish(self, status: Status) -> None:
        """End the runs. May be called twice."""
        for name in list(self._live):
            self._tell(name)
            self._call(name, "finish", status)
            self._live.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("finished" if error is None else "preempted" if isinstance(error, PreemptedError) else "failed")

    def _tell(self, name: str) -> None:
        step, values = self._pending.pop(name, (-1, {}))
        if values and step > self._known[name]["step"]:
            self._call(name, "log", step, values)
            self._known[name]["step"] = step
            self._keep()

    def _call(self, name: str, method: str, *args: Any) -> None:
        tracker = self._live.get(name)
        if tracker is None:
            return
        try:
            getattr(tracker, method)(*args)
        except Exception as error:  # noqa: BLE001, of a tool of others
            self._live.pop(name)
            say(f"the tracker {name} is left out from here on: {type(error).__name__}: {error}")

    def _keep(self) -> None:
        if self._path is not None and self._live:
            write_atomically(self._path, json.dumps(self._known, indent=1) + "\n")
