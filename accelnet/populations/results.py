"""What comes out of a population, and the files that keep it: population.json and the checkpoints of one wave."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import plain_value, read_json
from accelnet.populations.members import Member
from accelnet.populations.programs import Wave
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.hosts import Hosts
from accelnet.training.saving import Saver
from accelnet.training.workdir import Restored, Workdir

_NUMBERS = [(float, None)]
_COMPILES = {"init": int, "train": int, "eval": int}


@dataclass(frozen=True)
class PopulationRun:
    """What came out of a population; P members, E evaluations.

    Attributes:
        members: Members that were trained.
        split: Split that was evaluated on the way.
        steps: Steps of the evaluations, int [E]; the first is 0, the last the last step.
        curves: Metrics of that split by name, float [E, P].
        train: Metrics of the training batches since the evaluation before, by name, float [E, P]; NaN at step 0.
        metrics: Metrics of the final weights, by split and name, float [P].
        failed: Step at which a member's loss was not finite, int [P]; -1 for none.
        seconds: Time of the training, in all processes that took part in it, without compilation.
        compile_seconds: Time of compilation.
        compiles: Number of compilations of each program.
        wave_size: Number of members that trained together.
        num_parameters: Number of parameters of one member.
    """

    members: tuple[Member, ...]
    split: str
    steps: np.ndarray
    curves: dict[str, np.ndarray]
    train: dict[str, np.ndarray]
    metrics: dict[str, dict[str, np.ndarray]]
    failed: np.ndarray
    seconds: float
    compile_seconds: float
    compiles: dict[str, int]
    wave_size: int
    num_parameters: int


class PopulationFile:
    """population.json: which population it is, the results of finished waves, and the result.

    Args:
        workdir: Directory of the file. None: nothing is kept.
        description: JSON values that identify the population.
        metrics: Names of its metrics.
        num_points: Number of its evaluations, the one before the training included.
    """

    def __init__(
        self, workdir: str | Path | None, description: Mapping[str, Any], metrics: Iterable[str], num_points: int
    ) -> None:
        self.path = None if workdir is None else Path(workdir) / "population.json"
        self._metrics, self._num_points = tuple(metrics), num_points
        self.description = json.loads(json.dumps(plain_value(description)))
        self.waves: list[Any] = []

    def read(self) -> PopulationRun | None:
        """Read the waves that are finished, and return the result where all are.

        Raises:
            UserError: if the file cannot be read, or is of another population.
        """
        if self.path is None:
            return None
        curves = {name: [_NUMBERS] for name in self._metrics}
        values = {"curves": curves, "train": curves, "metrics": {str: {str: _NUMBERS}}, "failed": [int]}
        wave = {**values, "seconds": float}
        whole = {
            **wave, "split": str, "steps": [int], "compile_seconds": float, "compiles": _COMPILES, "wave_size": int,
            "num_parameters": int,
        }  # fmt: skip
        shape = {"description": dict, "waves": [wave], "result": (whole, None)}
        advice = "remove it, which trains the population anew, or give another directory"
        content = read_json(self.path, "a population", shape, advice)
        if content is None:
            return None
        description, result, self.waves = content["description"], content["result"], content["waves"]
        if description != self.description:
            names = dict.fromkeys([*self.description, *description])
            differing = [name for name in names if description.get(name) != self.description.get(name)]
            raise UserError(
                f"{self.path} is of another population, which differs in {', '.join(differing)}: give another directory"
            )
        finished = result is None or len(result["failed"]) == len(description["members"])
        if not finished or not all(map(self._is_complete, (*self.waves, *([] if result is None else [result])))):
            raise UserError(f"{self.path} lacks values of some members or evaluations: {advice}")
        if result is None:
            return None
        members = tuple(Member(row.pop("seed"), row) for row in map(dict, description["members"]))
        arrays = {name: to_arrays(result[name]) for name in ("steps", "curves", "train", "metrics", "failed")}
        arrays |= {name: arrays[name].astype(int) for name in ("steps", "failed")}
        named: dict[str, Any] = {name: result[name] for name in PopulationRun.__dataclass_fields__ if name != "members"}
        return PopulationRun(members=members, **(named | arrays))

    def _is_complete(self, part: Mapping[str, Any]) -> bool:
        """Say whether every list of a wave, or of the result, has as many values as there are members and points."""
        size = len(part["failed"])
        columns = [*part["curves"].values(), *part["train"].values()]
        rows = [row for column in columns for row in column]
        rows += [row for values in part["metrics"].values() for row in values.values()]
        lengths = {len(column) for column in (*columns, part.get("steps", columns[0]))}
        return lengths == {self._num_points} and {len(row) for row in rows} == {size}

    def write(self, run: PopulationRun | None = None) -> None:
        """Write the waves that are finished, and the result if there is one."""
        if self.path is not None:
            result = run and {name: getattr(run, name) for name in run.__dataclass_fields__ if name != "members"}
            content = plain_value({"description": self.description, "waves": self.waves, "result": result})
            write_atomically(self.path, json.dumps(content) + "\n")


class _Saved(flax.struct.PyTreeNode):
    step: Any
    wave: Wave


class WaveWorkdir(Workdir):
    """The checkpoints of a wave, in the directory of its population.

    Args:
        directory: Directory of the population.
        hosts: The processes of the run.
        index: Number of waves that are finished.
        num_steps: Steps of a training.
    """

    def __init__(self, directory: Path, hosts: Hosts, index: int, num_steps: int) -> None:
        super().__init__()
        self.index = index
        self.num_steps = num_steps
        self._saved: int | None = None
        # The order of checkpoints is that of steps; no metric says which is best.
        self.saver = Saver(Checkpoints(directory, hosts=hosts), keep_last=1, keep_best=0)

    def open(self, abstract_state: Wave) -> Restored | None:
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=abstract_state.step.sharding)
        found = self.saver.checkpoints.restore(_Saved(step, abstract_state))
        self.saver.begin(0 if found is None else int(found[0].step))
        if found is None or found[1]["wave"] != self.index:
            return None
        saved, record = found
        self.rows, self._saved = list(record["rows"]), int(saved.wave.step)
        return Restored(saved.wave, record["seconds"], ())

    def save(self, state: Wave, seconds: dict[str, float], validation: dict[str, float] | None) -> None:
        """Write a checkpoint, once for a step. An evaluation alone writes none: the clock says when a wave is saved."""
        step = int(state.step)
        if validation is None and self._saved != step:
            self._saved = step
            record = {"rows": list(self.rows), "wave": self.index, "seconds": seconds}
            self.saver.save(_Saved(state.step + self.index * self.num_steps, state), record)

    def last_good(self) -> str:
        return self.saved_as()

    def saved_as(self) -> str:
        return "the population is saved, the same command goes on"

    def wait(self) -> None:
        self.saver.wait()

    def settle(self) -> None:
        self.saver.finish()

    def close(self) -> None:
        self.saver.close()


def to_arrays(tree: Any) -> Any:
    """Turn lists of JSON values, NaN as null, back into arrays."""
    if isinstance(tree, dict):
        return {name: to_arrays(value) for name, value in tree.items()}
    return np.array(tree, np.float64)
