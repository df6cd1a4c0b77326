"""The work directory of a run: what is in it, who may use it, and what is read when a run resumes."""

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.fingerprint import fingerprint
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.curves import write_curves
from accelnet.training.evaluation import keeps_average
from accelnet.training.hosts import Hosts
from accelnet.training.record import MetricsLog, TensorBoardLog, plain_value, write_atomically
from accelnet.training.result import write_result

Row = dict[str, Any]
Tree = Any

CONFIG = "config.json"
# TensorStore takes them for a pattern, and for a separator.
_UNREADABLE = "[]\\"


@dataclass(frozen=True)
class Restored:
    """What a run goes on from.

    Attributes:
        state: the `TrainState`.
        seconds: where the time went so far.
        changed: names of configuration fields that are not what they were.
    """

    state: Any
    seconds: dict[str, float]
    changed: Sequence[str]


class Workdir:
    """A run's rows in memory, and nothing on the disk."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.rows: list[Row] = []

    def open(self, abstract_state: Tree) -> Restored | None:
        """Begin, or go on: return what was restored, None at the start."""
        return None

    def log(self, row: Mapping[str, Any]) -> None:
        """Record a row of metrics."""
        self.rows.append(plain_value(row))

    def is_logged(self, step: int) -> bool:
        """Say whether training metrics were recorded at a step, so that the next begin anew."""
        return any(row["step"] == step for row in reversed(self.rows[-2:]) if row["split"] == "train")

    def save(self, state: Tree, seconds: dict[str, float], validation: dict[str, float] | None) -> None:
        """Write a checkpoint."""

    def best(self, abstract_state: Tree) -> Any:
        """Return the state with the best validation metric, None if there is none."""

    def last_good(self) -> str:
        """Return a sentence about the newest checkpoint."""
        return "Nothing was saved, because no work directory was given"

    def saved_as(self) -> str:
        """Return a sentence about the newest checkpoint, which is complete."""
        return "nothing was saved, because no work directory was given"

    def wait(self) -> None:
        """Wait until what was saved is on the disk."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result and the curves."""

    def close(self) -> None:
        """Finish writing and let go. May be called twice."""


class DiskWorkdir(Workdir):
    """A run's directory: config.json, checkpoints, metrics.jsonl, tensorboard, curves.png, result.json.

    Args:
        path: the directory, made if needed.
        experiment: that runs in it.
        hosts: the processes of the run; the first one writes, all take part in checkpoints.
        resume: go on where the run in it stopped.
        allow_change: go on although the configuration changed.
        note: called with sentences worth knowing.

    Raises:
        UserError: if it holds a run and `resume` is off, holds another experiment, cannot be written, or another
            process uses it.
    """

    def __init__(
        self,
        path: str | Path,
        experiment: Experiment,
        hosts: Hosts,
        *,
        resume: bool,
        allow_change: bool,
        note: Callable[[str], None],
    ) -> None:
        super().__init__()
        if wrong := sorted(set(str(path)) & set(_UNREADABLE)):
            raise UserError(
                f"the work directory {str(path)!r} has {' and '.join(map(repr, wrong))} in its path: Orbax cannot read "
                "a checkpoint back from there, give another --workdir"
            )
        self.path = self.directory = Path(path)
        self.experiment = experiment
        self.note = note
        self._saved: int | None = None
        self._averaged = False
        self._logs: list[Any] = []
        self._lock: int | None = None
        self.hosts = hosts
        self.changed = hosts.on_first(lambda: self._claim(resume, allow_change))
        self.checkpoints = Checkpoints(
            self.directory,
            hosts=hosts,
            keep_last=experiment.keep_last,
            keep_best=experiment.keep_best,
            best_metric=experiment.best_metric,
            lower_is_better=experiment.best_is_lower,
            note=note,
        )

    def _claim(self, resume: bool, allow_change: bool) -> list[str]:
        changed = self._check(resume, allow_change)
        self._lock = _lock(self.directory)
        return changed

    def _check(self, resume: bool, allow_change: bool) -> list[str]:
        """Return the names of changed fields, or say why the directory cannot be used."""
        before, now = read_description(self.directory), plain_value(self.experiment.description())
        if before is None:
            return []
        if not resume:
            raise UserError(
                f"{self.directory} already holds a run of {before.get('experiment')}: pass --resume to go on "
                "with it, or another --workdir"
            )
        if before.get("experiment") != now["experiment"]:
            raise UserError(
                f"{self.directory} holds the experiment {before.get('experiment')}, not {now['experiment']}: give "
                "another --workdir"
            )
        changes = {
            name: (before.get(name), now.get(name))
            for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name)
        }
        # More or fewer steps alone change nothing that was done, unless the optimizer follows the run's progress.
        harmless = () if self.experiment.follows_progress else ("steps", "epochs")
        harmful = {name: change for name, change in changes.items() if name not in harmless}
        if harmful and not allow_change:
            listed = ", ".join(_changed(name, *change) for name, change in harmful.items())
            raise UserError(
                f"the configuration of the run in {self.directory} changed: {listed}. Give the old values, or "
                "--allow-change to go on with the new ones"
            )
        return list(changes)

    def open(self, abstract_state: Tree) -> Restored | None:
        """Restore the newest whole checkpoint, and rewrite the metrics as they were then."""
        found = self.checkpoints.restore(abstract_state)
        state, record = found or (None, {"rows": [], "seconds": {}})
        step = 0 if state is None else int(state.step)
        if step > self.experiment.total_steps:
            raise UserError(
                f"the run in {self.directory} is at step {step} already, and {self.experiment.total_steps} steps were "
                f"asked for: give at least {step} steps, or another --workdir"
            )
        self._saved = step or None
        self.rows = list(record["rows"])
        self._averaged = keeps_average(abstract_state)
        if self.hosts.is_first:
            write_atomically(self.directory / CONFIG, json.dumps(self._content(), indent=2) + "\n")
            self._logs = [MetricsLog(self.directory / "metrics.jsonl", self.rows)]
            self._logs.append(TensorBoardLog(self.directory / "tensorboard", purge_step=step + 1))
        return None if state is None else Restored(state, record["seconds"], self.changed)

    def _content(self) -> dict[str, Any]:
        experiment = self.experiment
        return plain_value(
            {
                "description": experiment.description(),
                "config": experiment.config,
                "fitted": experiment.data.fitted,
                "objective": fingerprint(experiment.objective),
                "directions": experiment.objective.directions,
            }
        )

    def log(self, row: Mapping[str, Any]) -> None:
        """Record a row of metrics, in memory and on the disk."""
        plain = plain_value(row)
        for log in self._logs:
            log.append(plain)
        super().log(plain)

    def save(self, state: Tree, seconds: dict[str, float], validation: dict[str, float] | None) -> None:
        """Write a checkpoint, unless there is one of this step already."""
        step = int(state.step)
        if self._saved != step:
            # A list of its own: the checkpoint is written while the run, and its rows, go on.
            record = {"rows": list(self.rows), "seconds": seconds} | self._content()
            record |= {
                "best_metric": self.experiment.best_metric,
                "lower_is_better": self.experiment.best_is_lower,
                "averaged": self._averaged,
            }
            self.checkpoints.save(state, record, validation)
            self._saved = step

    def best(self, abstract_state: Tree) -> Any:
        """Return the state with the best validation metric, None if there is none."""
        self.checkpoints.wait()
        step = self.checkpoints.best_step()
        found = None if step is None else self.checkpoints.restore(abstract_state, step)
        return None if found is None else found[0]

    def last_good(self) -> str:
        """Return a sentence about the newest checkpoint."""
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        return (
            f"The last good checkpoint is {self.checkpoints.directory / str(steps[-1])}" if steps else "None was saved"
        )

    def saved_as(self) -> str:
        """Return a sentence about the newest checkpoint, which is complete."""
        return f"the state is saved in {self.directory}, go on with --resume"

    def wait(self) -> None:
        """Wait until what was saved is on the disk."""
        self.checkpoints.wait()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, the last of all files, and the curves."""
        if not self.hosts.is_first:
            return
        write_curves(
            self.directory, self.rows, title=self.experiment.name, directions=self.experiment.objective.directions
        )
        write_result(self.directory, result)

    def close(self) -> None:
        """Finish writing and let go."""
        try:
            self.checkpoints.close()
        finally:
            for log in self._logs:
                log.close()
            if self._lock is not None:
                os.close(self._lock)
            self.close = lambda: None  # type: ignore[method-assign]


def read_description(path: str | Path) -> dict[str, Any] | None:
    """Return what config.json says the run in a directory is, None if there is none.

    Raises:
        UserError: if the file cannot be understood.
    """
    content = _read_config(path)
    return None if content is None else content["description"]


def read_config(path: str | Path) -> dict[str, Any] | None:
    """Return the settings that the run in a directory was started with, None if there is none.

    Raises:
        UserError: if the file cannot be understood.
    """
    content = _read_config(path)
    return None if content is None else content["config"]


def read_fitted(path: str | Path) -> Any:
    """Return what the run in a directory fitted to its training rows, None if there is no run or nothing.

    Raises:
        UserError: if the file cannot be understood.
    """
    content = _read_config(path)
    return None if content is None else content["fitted"]


def _read_config(path: str | Path) -> dict[str, Any] | None:
    file = Path(path) / CONFIG
    try:
        content = json.loads(file.read_text())
        return {
            "description": dict(content["description"]),
            "config": dict(content["config"]),
            "fitted": dict(content.get("fitted") or {}),
        }
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as a run's configuration ({error}): give another --workdir") from error


def _changed(name: str, old: Any, new: Any) -> str:
    if name in ("model", "optimizer", "objective", "frozen", "data"):
        return f"{name} is another"
    return f"{name} was {old!r} and is {new!r}"


def _lock(path: Path) -> int:
    """Hold the directory for this process; the system lets go when the process ends, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"the work directory {path} cannot be written: {error.strerror or error}. Choose another --workdir"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another process is training in {path}: wait for it, or give another --workdir") from None
    except OSError:
        pass  # a file system without locks
    return descriptor
