"""What comes out of a population, and what is kept of one that is not finished."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from accelnet.choosing.members import Member
from accelnet.choosing.waves import Wave
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.terminal import say
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.record import plain_value, write_atomically


@dataclass(frozen=True)
class PopulationRun:
    """What came out of a population; P members, E evaluations.

    Attributes:
        members: those that were trained.
        split: that was evaluated on the way.
        steps: [E] at which it was, 0 the first and the last step the last.
        curves: metrics of that split by name, float [E, P].
        train: metrics of the training batches since the evaluation before, by name, float [E, P]; NaN at step 0.
        metrics: of the final weights, by split and name, float [P].
        failed: int [P], the step at which a member's loss was not finite, -1 for none.
        seconds: that training took, all runs of it together, without compilation.
        compile_seconds: of this run.
        compiles: how often the program was compiled, by name.
        wave_size: members that trained together.
        num_parameters: of one member.
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

    def field(self, name: str) -> np.ndarray:
        """Return a field of all members, float [P]."""
        return np.array([member.fields[name] for member in self.members], np.float64)


def to_arrays(tree: Any) -> Any:
    """Turn lists of JSON values, NaN as null, back into arrays."""
    if isinstance(tree, dict):
        return {name: to_arrays(value) for name, value in tree.items()}
    return np.array(tree, np.float64)


class _Saved(flax.struct.PyTreeNode):
    step: Any
    wave: Wave


class Keep:
    """What is kept of a population: population.json with the results of finished waves, and checkpoints of one.

    Args:
        population: a `Population`.
        example: of its experiments.
        workdir: where. None: nothing is kept.
    """

    def __init__(self, population: Any, example: Experiment, workdir: str | Path | None) -> None:
        self.path = None if workdir is None else Path(workdir) / "population.json"
        members = [{"seed": member.seed, **member.fields} for member in population.members]
        named = {name: getattr(population, name) for name in ("batches", "evaluations", "split", "splits")}
        self.description = json.loads(
            json.dumps(plain_value({"experiment": example.description(), "members": members, **named}))
        )
        self.waves: list[Any] = []
        self._checkpoints: Checkpoints | None = None

    def finished(self) -> PopulationRun | None:
        """Return the result, if the work directory holds this very population, finished."""
        if self.path is None or not self.path.exists():
            return None
        try:
            content = json.loads(self.path.read_text())
            description, result, self.waves = content["description"], content["result"], content["waves"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} cannot be read as a population ({error}): give another directory") from error
        if description != self.description:
            differing = [name for name in self.description if description.get(name) != self.description[name]]
            raise UserError(
                f"{self.path} is of another population, which differs in {', '.join(differing)}: give another directory"
            )
        if result is None:
            return None
        members = tuple(
            Member(row["seed"], {name: value for name, value in row.items() if name != "seed"})
            for row in description["members"]
        )
        arrays = {name: to_arrays(result[name]) for name in ("steps", "curves", "train", "metrics", "failed")}
        arrays |= {name: arrays[name].astype(int) for name in ("steps", "failed")}
        return PopulationRun(**(result | arrays | {"members": members}))

    def restore(self, abstract: Wave, num_finished: int) -> tuple[Wave | None, list[Any], float]:
        """Begin, or return the wave to go on with, what was evaluated of it, and the seconds so far."""
        if self.path is None:
            return None, [], 0.0
        if not self.path.exists():
            self._write(None)
        # The order of checkpoints is that of steps; no metric says which is best.
        self._checkpoints = Checkpoints(self.path.parent, keep_last=1, keep_best=0, best_metric="loss", note=say)
        number = jax.ShapeDtypeStruct((), jnp.int32, sharding=abstract.step.sharding)
        found = self._checkpoints.restore(_Saved(number, abstract))
        if found is None:
            return None, [], 0.0
        saved, record = found
        if record["wave"] != num_finished:
            return None, [], record["seconds"]
        return saved.wave, record["rows"], record["seconds"]

    def save(self, wave: Wave, rows: list[Any], num_finished: int, total_steps: int, seconds: float) -> None:
        """Write a checkpoint of the wave after `num_finished` others."""
        if self._checkpoints is not None:
            record = plain_value({"rows": rows, "wave": num_finished, "seconds": seconds})
            self._checkpoints.save(_Saved(wave.step + num_finished * total_steps, wave), record)

    def keep_waves(self, waves: list[Any]) -> None:
        """Write the results of the waves that are finished."""
        self.waves = waves
        if self.path is not None:
            self._write(None)

    def wait(self) -> None:
        """Wait until what was saved is on the disk."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def finish(self, run: PopulationRun) -> None:
        """Write the result."""
        if self.path is not None:
            result = {name: getattr(run, name) for name in run.__dataclass_fields__ if name != "members"}
            self._write(result)

    def close(self) -> None:
        """Finish writing."""
        if self._checkpoints is not None:
            self._checkpoints.close()

    def _write(self, result: Any) -> None:
        assert self.path is not None
        content = plain_value({"description": self.description, "waves": self.waves, "result": result})
        write_atomically(self.path, json.dumps(content) + "\n")
