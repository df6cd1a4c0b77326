"""A population: many trainings of one experiment as one compiled program, in as many waves as memory asks for."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from accelnet import runtime
from accelnet.choosing.members import ExperimentFunction, Family, Member
from accelnet.choosing.results import Keep, PopulationRun, to_arrays
from accelnet.choosing.waves import MEMBERS, Batches, Compiled, Tree, Wave, compile_waves
from accelnet.errors import PreemptedError, UserError
from accelnet.training.hosts import Hosts, together
from accelnet.training.progress import Progress, make_progress

_CHUNK_SECONDS = 2.0
_SAVE_SECONDS = 60.0
_HANG_SECONDS = 600.0


@dataclass(frozen=True)
class Population:
    """Say which trainings, and how they are measured.

    Args:
        function: an experiment script's function from its Config to an `Experiment`.
        config: what members have in common. What the function takes from `config.seed` itself, such as a split of the
            data, is the same for all.
        members: as of `grid`.
        batches: "own": each member sees the batches of its seed, as if it were trained alone; "shared": all members
            see those of the first.
        evaluations: how often the split is evaluated on the way, at least 1, the last time at the end.
        split: None: "validation", or "train" where there is none.
        splits: evaluated at the end.

    Raises:
        UserError: if a field cannot vary, or an argument is out of range.
    """

    function: ExperimentFunction
    config: Any
    members: Sequence[Member]
    batches: Batches = "own"
    evaluations: int = 1
    split: str | None = None
    splits: Sequence[str] = ("train", "validation")

    def train(
        self,
        *,
        workdir: str | Path | None = None,
        devices: Sequence[Any] | None = None,
        memory_bytes: int | None = None,
        progress: bool = True,
    ) -> PopulationRun:
        """Train all members to their end.

        A member's metrics are those that its training alone would have, to float32 rounding. A member whose loss is
        not finite is marked as failed, and the others go on.

        Args:
            workdir: where results and checkpoints are kept; a population that is in it is gone on with. None: nowhere.
            devices: that share the members. None: all of this process.
            memory_bytes: that a device may use. None: what it has free, half of the free memory on CPUs.
            progress: show a progress display on standard error.

        Returns:
            The `PopulationRun`.

        Raises:
            UserError: if a field decides shapes or what Python does, one member does not fit into memory, or `workdir`
                holds another population.
            PreemptedError: after SIGTERM, when the state is saved.

        Example:
            >>> from dataclasses import dataclass
            >>> import accelnet as an
            >>> from accelnet.choosing.members import grid
            >>> @dataclass(frozen=True)
            ... class Config:
            ...     learning_rate: float = 0.1
            >>> def experiment(config: Config) -> an.Experiment:
            ...     return an.Experiment(
            ...         data=an.data.xor(),
            ...         model=lambda rngs: an.models.MLP(2, (4,), 1, rngs=rngs),
            ...         optimizer=an.optim.adam(config.learning_rate),
            ...         objective=an.objectives.squared_error(),
            ...         batch_size="full",
            ...         steps=20,
            ...     )
            >>> population = Population(experiment, Config(), grid(range(3), learning_rate=(0.01, 0.1)))
            >>> run = population.train(progress=False)
            >>> run.metrics["train"]["loss"].shape, run.compiles
            ((6,), {'init': 1, 'advance': 1})
        """
        runtime.prepare()
        if self.evaluations < 1:
            raise UserError(f"evaluations is {self.evaluations}, expected at least 1")
        family = Family(self.function, self.config, tuple(self.members))
        keep = Keep(self, family.example, workdir)
        finished = keep.finished()
        if finished is not None:
            return finished
        with together(workdir, _HANG_SECONDS, keep.wait) as hosts, ExitStack() as stack:
            if jax.process_count() > 1:
                raise UserError("a population trains in one process, on its devices: start one")
            display = make_progress(
                family.example.name, family.example.total_steps * len(family.members), show=progress
            )
            stack.callback(keep.close)
            stack.callback(display.close)
            compiled = compile_waves(self.batches, family, devices, memory_bytes, display)
            return _Training(self, family, compiled, keep, hosts, display).run()


class _Training:
    """All waves of a population, one after the other."""

    def __init__(
        self,
        population: Population,
        family: Family,
        compiled: Compiled,
        keep: Keep,
        hosts: Hosts,
        display: Progress,
    ) -> None:
        self.population = population
        self.family = family
        self.compiled = compiled
        self.keep = keep
        self.hosts = hosts
        self.display = display
        self.example = example = family.example
        self.split = population.split or ("validation" if example.data.num_examples("validation") else "train")
        self.splits = [name for name in population.splits if example.data.num_examples(name)]
        points = np.ceil(np.linspace(0, example.total_steps, population.evaluations + 1)).astype(int)
        self.points = np.unique(points)
        self.arrays = compiled.feed.train_operand(0, 1)
        self.seconds_per_step: float | None = None
        self.last_save = self.began = time.monotonic()

    def run(self) -> PopulationRun:
        """Train the waves that are not finished, and put their results together."""
        size, num_members = self.compiled.size, len(self.family.members)
        waves = [to_arrays(wave) for wave in self.keep.waves]
        restored, rows, seconds = self.keep.restore(self._abstract(), len(waves))
        self.began = time.perf_counter() - seconds
        for first in range(sum(len(wave["failed"]) for wave in waves), num_members, size):
            # The last wave is filled up with its last member: one program serves all.
            numbers = np.minimum(np.arange(first, first + size), num_members - 1)
            waves.append(self._wave(numbers, restored, rows, len(waves)))
            restored, rows = None, []
            self.keep.keep_waves(waves)
        seconds = time.perf_counter() - self.began
        joined = jax.tree.map(lambda *parts: np.concatenate(parts, -1)[..., :num_members], *waves)
        shapes = jax.eval_shape(lambda state: state.params, self._abstract().states)
        run = PopulationRun(
            members=tuple(self.family.members),
            split=self.split,
            steps=self.points,
            curves=joined["curves"],
            train=joined["train"],
            metrics=joined["metrics"],
            failed=joined["failed"].astype(int),
            seconds=seconds,
            compile_seconds=self.compiled.init.compile_seconds + self.compiled.advance.compile_seconds,
            compiles={"init": self.compiled.init.compiles, "advance": self.compiled.advance.compiles},
            wave_size=size,
            num_parameters=sum(leaf.size for leaf in jax.tree.leaves(shapes)) // size,
        )
        self.keep.finish(run)
        return run

    def _abstract(self) -> Wave:
        return self.compiled.advance.operands[0]

    def _put(self, column: np.ndarray) -> jax.Array:
        return jax.device_put(column, NamedSharding(self.compiled.mesh, MEMBERS))

    def _wave(self, numbers: np.ndarray, restored: Wave | None, rows: list[Any], num_finished: int) -> dict[str, Any]:
        values = {name: self._put(column[numbers]) for name, column in self.family.values().items()}
        if restored is None:
            wave = self.compiled.init(self._put(self.family.seeds()[numbers]), values)
            wave, report = self._advance(wave, values, 0, self.split)
            nothing = {name: np.full(len(numbers), np.nan) for name in report["train"]}
            rows = [{"train": nothing, "curves": report["evaluated"]}]
        else:
            wave, rows = restored, [to_arrays(row) for row in rows]
        for point in self.points[len(rows) :]:
            wave, report = self._until(wave, values, int(point), num_finished)
            rows.append({"train": report["train"], "curves": report["evaluated"]})
            told = self.hosts.agree()[1]
            if told or time.monotonic() - self.last_save > _SAVE_SECONDS:
                self.last_save = time.monotonic()
                self.keep.save(wave, rows, num_finished, self.example.total_steps, time.perf_counter() - self.began)
            if told:
                self.keep.wait()
                raise PreemptedError(f"the population is saved at step {point}, the same command goes on")
        metrics = {}
        for split in self.splits:
            wave, report = self._advance(wave, values, int(wave.step), split)
            metrics[split] = report["evaluated"]
        joined = jax.tree.map(lambda *parts: np.stack(parts), *rows)
        return joined | {"metrics": metrics, "failed": np.asarray(wave.failed)}

    def _until(self, wave: Wave, values: Tree, point: int, num_finished: int) -> tuple[Wave, Any]:
        """Train to a point in chunks of about two seconds, and evaluate there."""
        step, report, reset = int(wave.step), {}, True
        total = self.example.total_steps
        while step < point:
            self.hosts.mark(step, "train")
            length = max(1, int(_CHUNK_SECONDS / self.seconds_per_step)) if self.seconds_per_step else 1
            stop = min(point, step + length)
            began = time.perf_counter()
            wave, report = self._advance(wave, values, stop, self.split if stop == point else None, reset=reset)
            self.seconds_per_step = (time.perf_counter() - began) / (stop - step)
            step, reset = stop, False
            losses = report["train"]["loss"][np.asarray(wave.failed) < 0]
            rate = self.compiled.size * self.example.order.batch_size / self.seconds_per_step
            loss = float(np.median(losses)) if len(losses) else float("nan")
            position = (num_finished * total + step) * self.compiled.size
            self.display.update(min(position, total * len(self.family.members)), loss, rate)
        return wave, report

    def _advance(
        self, wave: Wave, values: Tree, stop: int, split: str | None, *, reset: bool = False
    ) -> tuple[Wave, Any]:
        rows = self.example.data.splits[split] if split else range(0)
        num_batches = -(-len(rows) // self.compiled.feed.eval_batch_size)
        numbers = tuple(np.int32(number) for number in (num_batches, rows.start, rows.stop))
        wave, report = self.compiled.advance(wave, values, self.arrays, np.int32(stop), np.bool_(reset), numbers)
        return wave, jax.device_get(report)
