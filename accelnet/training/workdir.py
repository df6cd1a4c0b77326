"""The work directory of a run: what is in it, who may use it, and what is read when a run resumes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.fingerprint import fingerprint
from accelnet.json_file import plain_value
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.claim import Claim
from accelnet.training.curves import curves, to_png
from accelnet.training.evaluation import keeps_average
from accelnet.training.events import rank
from accelnet.training.hosts import Hosts
from accelnet.training.record import RowLog, TensorBoardLog, remove_temporary
from accelnet.training.result import write_result
from accelnet.training.rows import RowFile, best_of, is_among_best, ranks, recorded_seconds, row_files, with_rows
from accelnet.training.saving import Saver
from accelnet.training.settings import settings_of
from accelnet.training.stored import CONFIG, changed_fields

Row = dict[str, Any]
Tree = Any

# TensorStore takes them for a pattern, a separator, and parts of an address.
_UNREADABLE = "[]\\%#?"


@dataclass(frozen=True)
class Restored:
    """What a run goes on from.

    Attributes:
        state: `TrainState`, or that of a population.
        seconds: Time by what it was spent on, and in total.
        changed: Names of the configuration's fields that are not what they were.
    """

    state: Any
    seconds: dict[str, float]
    changed: Sequence[str]


class Workdir:
    """Keep a run's rows and its best state in memory, and nothing on the disk.

    Args:
        experiment: Experiment whose best state is kept, where it asks for that and one process has it all.

    Attributes:
        lost_seconds: Time of the run that an earlier process recorded after what `open` goes on from.
    """

    path: Path | None = None

    def __init__(self, experiment: Experiment | None = None) -> None:
        self.rows: list[Row] = []
        self._watched = experiment if experiment and experiment.keep_best and jax.process_count() == 1 else None
        self._best: tuple[float, Tree] | None = None
        self.lost_seconds = 0.0

    def open(self, abstract_state: Tree) -> Restored | None:
        """Begin, or go on: return what was restored, None at the start.

        Raises:
            UserError: if what is there does not fit, or cannot be read or written.
        """
        return None

    def log(self, row: Mapping[str, Any]) -> None:
        """Record a row of metrics."""
        self.rows.append(plain_value(row))

    def is_logged(self, step: int) -> bool:
        """Say whether training metrics were recorded at a step, so that the next begin anew."""
        return any(row["step"] == step for row in reversed(self.rows[-2:]) if row["split"] == "train")

    def save(self, state: Tree, seconds: dict[str, float], validation: dict[str, float] | None) -> None:
        """Keep a state; one with the metrics of its evaluation only where these are among the best."""
        if self._watched is None or validation is None:
            return
        value = rank(validation[self._watched.best_metric], self._watched.best_is_lower)
        if self._best is None or value < self._best[0]:
            # A copy: on a CPU the host's view of an array is the array itself, which the next step writes into.
            self._best = value, jax.tree.map(np.array, jax.device_get(state))

    def best(self, abstract_state: Tree) -> Any:
        """Return the state with the best validation metric, None if there is none."""
        if self._best is None:
            return None
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), self._best[1], abstract_state)

    @property
    def keeps_best(self) -> bool:
        """Whether `best` gives a state."""
        return self._best is not None

    def last_good(self) -> str:
        """Return a sentence about the newest checkpoint."""
        return "Nothing was saved, because no work directory was given"

    def saved_as(self) -> str:
        """Return a sentence about the newest checkpoint, which is complete."""
        return "nothing was saved, because no work directory was given"

    def wait(self) -> None:
        """Wait until what was saved is on the disk, for all processes, which call this in the same order."""

    def settle(self) -> None:
        """Wait until what this process writes is on the disk."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the curves, and the result as the last of all files."""

    def close(self) -> None:
        """Finish writing and let go. May be called twice."""


class DiskWorkdir(Workdir):
    """A run's directory: config.json, checkpoints, metrics.jsonl, tensorboard, curves.png, result.json.

    Args:
        path: Directory, made if needed.
        experiment: Experiment that runs in it.
        hosts: Processes of the run; the first one writes, all take part in checkpoints.
        resume: Go on where the run in it stopped.
        allow_change: Go on although the configuration changed.
        note: Function that gets sentences worth knowing.

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
        self._saved: set[int] = set()
        self._averaged = False
        self._ranks: dict[int, float] = {}
        self._row_files: list[RowFile] = []
        self._logs: list[RowLog] = []
        self._board: TensorBoardLog | None = None
        self._claim: Claim | None = None
        self.hosts = hosts

        def claim() -> list[str]:
            changed = changed_fields(self.directory, experiment, resume=resume, allow_change=allow_change)
            self._claim = Claim(self.directory)
            return changed

        self.changed = hosts.on_first(claim)
        self.checkpoints = Checkpoints(
            self.directory,
            hosts=hosts,
            note=note,
            complete=partial(with_rows, self.directory, note),
        )
        self.saver = Saver(self.checkpoints, keep_last=experiment.keep_last, keep_best=experiment.keep_best)

    def open(self, abstract_state: Tree) -> Restored | None:
        found = self.checkpoints.restore(abstract_state)
        state, record = found or (None, {"rows": [], "seconds": {}})
        step = 0 if state is None else int(state.step)
        if step > self.experiment.total_steps:
            raise UserError(
                f"the run in {self.directory} is at step {step} already, and {self.experiment.total_steps} steps were "
                f"asked for: give at least {step} steps, or another --workdir"
            )
        self._saved = {saved for saved in self.hosts.on_first(self.checkpoints.steps) if saved <= step}
        recorded = self.hosts.on_first(lambda: recorded_seconds(self.directory))
        self.lost_seconds = max(0.0, recorded - record["seconds"].get("total", 0.0))
        self.rows = record["rows"]
        self._ranks = self._ranked(self.rows)
        self._averaged = keeps_average(abstract_state)
        self.saver.begin(step)
        if self.hosts.is_first:
            for directory in (self.directory, self.checkpoints.directory):
                remove_temporary(directory)
            write_atomically(self.directory / CONFIG, json.dumps(self._content(), indent=2) + "\n")
            self._row_files = [RowFile(path, self.rows) for path in row_files(self.directory)]
            self._board = TensorBoardLog(self.directory / "tensorboard", self.rows, *_hyperparameters(self.experiment))
            self._logs = [*self._row_files, self._board]
        return None if state is None else Restored(state, record["seconds"], self.changed)

    def _content(self) -> dict[str, Any]:
        experiment = self.experiment
        content = {"description": experiment.description(), "config": experiment.config, "script": experiment.script}
        content |= {"fitted": experiment.data.fitted, "objective": fingerprint(experiment.objective)}
        return plain_value(content | {"directions": experiment.objective.directions})

    def log(self, row: Mapping[str, Any]) -> None:
        plain = plain_value(row)
        self._check_claim()
        for log in self._logs:
            log.append(plain)
        super().log(plain)
        self._ranks |= self._ranked([plain])

    def _check_claim(self) -> None:
        if self._claim is not None:  # that of the first process
            self._claim.check()

    def _ranked(self, rows: Sequence[Row]) -> dict[int, float]:
        return ranks(rows, self.experiment.best_metric, lower_is_better=self.experiment.best_is_lower)

    def save(self, state: Tree, seconds: dict[str, float], validation: dict[str, float] | None) -> None:
        step = int(state.step)
        self.hosts.on_first(self._check_claim)
        if validation is not None and not is_among_best(self._ranks, step, self._saved, self.experiment.keep_best):
            return  # to write it takes longer than the epochs of small networks
        if step not in self._saved:  # an event and the clock may both want one
            record = {"seconds": seconds, "averaged": self._averaged} | self._content()
            record |= {"best_metric": self.experiment.best_metric, "lower_is_better": self.experiment.best_is_lower}
            if self._row_files:
                record["rows"] = self._row_files[0].position()
            # What a user asks for, by a rhythm or in an event, is written at once.
            self.saver.save(state, record, self._ranks, before=self._sync_rows, may_wait=validation is not None)
            self._saved.add(step)
        elif validation is None:
            self.saver.hasten()

    def _sync_rows(self) -> None:
        for file in self._row_files:
            file.sync()

    def best(self, abstract_state: Tree) -> Any:
        self.saver.wait()
        step = self.hosts.on_first(lambda: best_of(self._ranks, self.checkpoints.steps()))
        found = None if step is None else self.checkpoints.restore(abstract_state, step)
        return None if found is None else found[0]

    @property
    def keeps_best(self) -> bool:
        return jax.process_count() == 1

    def last_good(self) -> str:
        self.saver.wait()
        if not (steps := self.checkpoints.steps()):
            return "None was saved"
        return f"The last good checkpoint is {self.checkpoints.directory / str(steps[-1])}"

    def saved_as(self) -> str:
        return f"the state is saved in {self.directory}, go on with --resume"

    def wait(self) -> None:
        self.saver.wait()

    def settle(self) -> None:
        self.saver.finish()

    def finish(self, result: Mapping[str, Any]) -> None:
        if not self.hosts.is_first:
            return
        self._check_claim()
        if self._board is not None:
            self._board.finish()
        drawn = curves(self.rows, self.experiment.name, self.experiment.objective.directions)
        write_atomically(self.directory / "curves.png", to_png(drawn))
        write_result(self.directory, result)

    def close(self) -> None:
        self.saver.close()
        for log in self._logs:
            log.close()
        if self._claim is not None:
            self._claim.release()


def _hyperparameters(experiment: Experiment) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a run, and the tags of the metrics that it is judged by."""
    splits = [split for split in experiment.data.splits if split != "train" and experiment.data.num_examples(split)]
    tags = [f"{name}/{split}" for name in experiment.objective.metrics for split in splits or ("train",)]
    return {**settings_of(experiment), **experiment.config}, tags
