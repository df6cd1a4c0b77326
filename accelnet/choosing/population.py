"""A population: many trainings of one experiment as one compiled program, in as many waves as memory asks for."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from accelnet.choosing.members import ExperimentFunction, Family, Member
from accelnet.data.feed import AbstractFeed, DeviceFeed
from accelnet.errors import PreemptedError, UserError
from accelnet.experiment import Experiment
from accelnet.parallel.layout import SAME
from accelnet.training.cache import enable_compilation_cache
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.hosts import Hosts, together
from accelnet.training.program import Program, make_eval_chunk
from accelnet.training.progress import Progress, make_progress
from accelnet.training.record import plain_value, write_atomically
from accelnet.training.state import TrainState, init_state
from accelnet.training.step import make_train_step

Batches = Literal["own", "shared"]
Tree = Any

MEMBERS = PartitionSpec("members")
_CHUNK_SECONDS = 2.0
_SAVE_SECONDS = 60.0
_HANG_SECONDS = 600.0


class Wave(flax.struct.PyTreeNode):
    """Members that train together.

    Attributes:
        step: int32 scalar, updates so far.
        failed: int32 [M], the step at which a member's loss was not finite, -1 as long as it is.
        states: `TrainState` with a leading axis of members.
    """

    step: Any
    failed: Any
    states: Any


def make_advance(
    make: Callable[[Tree], Experiment], example: Experiment, feed: AbstractFeed, batches: Batches
) -> Callable[..., Any]:
    """Return the function that trains members for a number of steps and evaluates them.

    `advance(wave, values, operand, stop, reset, rows) -> (wave, report)`: until step `stop`, or until all members have
    failed; then the batches of `rows`, int32 (number of batches, start, stop), are evaluated. `reset` (bool) empties
    the training metrics first. `report` has "train" and "evaluated", metrics by name, float32 [M].

    Args:
        make: from a member's values, scalars, to its experiment.
        example: for what all members have in common.
        feed: how batches reach the program.
        batches: "own": each member has the order of its seed; "shared": all have that of the example.
    """
    objective = example.objective

    def advance(
        wave: Wave, values: Tree, operand: Tree, stop: jax.Array, reset: jax.Array, rows: tuple[jax.Array, ...]
    ) -> Any:
        def train(values: Tree, state: TrainState, step: jax.Array) -> Any:
            def microbatch(arrays: Tree, number: Any, part: Any) -> Tree:
                own = (state.step, number, state.seed) if batches == "own" else (step, number, shared_seed)
                return feed.train_batch(arrays, jnp.int32(0), *own, part)

            state, loss, _ = make_train_step(make(values))(state, microbatch, operand)
            return state, loss

        def body(wave: Wave) -> Wave:
            states, losses = jax.vmap(train, (0, 0, None))(values, wave.states, wave.step)
            failed = jnp.where((wave.failed < 0) & ~jnp.isfinite(losses), wave.step, wave.failed)
            return Wave(wave.step + 1, failed, states)

        def evaluate(values: Tree, state: TrainState) -> Any:
            chunk = make_eval_chunk(make(values), feed)
            weights = state.params, state.opt_state, state.model_state
            _, computed = chunk(*weights, objective.empty(), operand, jnp.int32(0), *rows)
            return computed

        shared_seed = jnp.uint32(example.seed)
        metrics = jax.tree.map(
            lambda new, old: jnp.where(reset, jnp.broadcast_to(new, old.shape), old),
            jax.tree.map(lambda leaf: leaf[None], objective.empty()),
            wave.states.metrics,
        )
        wave = wave.replace(states=wave.states.replace(metrics=metrics))
        wave = jax.lax.while_loop(lambda wave: (wave.step < stop) & jnp.any(wave.failed < 0), body, wave)
        report = {
            "train": jax.vmap(objective.compute)(wave.states.metrics),
            "evaluated": jax.vmap(evaluate)(values, wave.states),
        }
        return wave.replace(step=jnp.maximum(wave.step, stop)), report

    return advance


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

    Source: original.
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
        enable_compilation_cache()
        if self.evaluations < 1:
            raise UserError(f"evaluations is {self.evaluations}, expected at least 1")
        family = Family(self.function, self.config, tuple(self.members))
        keep = _Keep(self, family.example, workdir)
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
            compiled = _compile(self, family, devices, memory_bytes, display)
            return _Training(self, family, compiled, keep, hosts, display).run()


@dataclass(frozen=True)
class _Compiled:
    """Programs for waves of one size, on devices."""

    init: Program
    advance: Program
    feed: DeviceFeed
    size: int
    mesh: Mesh


def _compile(
    population: Population, family: Family, devices: Sequence[Any] | None, memory_bytes: int | None, display: Progress
) -> _Compiled:
    devices = list(devices or jax.local_devices())[: len(family.members)]
    size = -(-len(family.members) // len(devices))
    limit = memory_bytes or free_bytes(devices)
    display.note(f"compiling {len(family.members)} members …")
    while True:
        made = _make(population, family, devices, size * len(devices))
        memory = made.advance.compiled.memory_analysis()
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
        if needed <= limit:
            return made
        if size == 1:
            raise UserError(
                f"one member takes {needed:,} bytes of a device, and {limit:,} are free: make the batch smaller"
            )
        # Not proportional: the data and the batches of evaluation are there once.
        size = max(1, min(size - 1, int(0.95 * size * limit / needed)))
        display.note(f"{needed:,} bytes where {limit:,} are free: waves of {size * len(devices)} members …")


def free_bytes(devices: Sequence[Any]) -> int:
    """Return the bytes that a program may use on each of some devices; CPU devices share half of the free memory."""
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return available // 2 // len(devices)


def _make(population: Population, family: Family, devices: list[Any], num_members: int) -> _Compiled:
    mesh = Mesh(np.array(devices), ("members",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(mesh, MEMBERS), NamedSharding(mesh, SAME)
    example = family.example
    feed = DeviceFeed(
        example.data, example.order, seed=example.seed, eval_batch_size=example.resolved_eval_batch_size, mesh=mesh
    )

    def abstract(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding = whole, **more: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding, **more)

    # Weakly typed, as the Python numbers in their place would be: in bfloat16 they make nothing float32.
    values = {
        name: abstract((num_members,), column.dtype, cut, weak_type=True) for name, column in family.values().items()
    }
    seeds, number = abstract((num_members,), jnp.uint32, cut), abstract((), jnp.int32)

    def programs(plain: bool) -> tuple[Program, Program]:
        def make(values: Tree) -> Experiment:
            return family.traced(values, plain=plain)

        def init(seeds: jax.Array, values: Tree) -> Wave:
            states = jax.vmap(lambda seed, values: init_state(make(values), seed))(seeds, values)
            return Wave(jnp.int32(0), jnp.full(seeds.shape, -1, jnp.int32), states)

        advance = make_advance(make, example, feed, population.batches)
        wave = jax.eval_shape(init, seeds, values)
        specs = Wave(SAME, MEMBERS, MEMBERS)
        shardings = jax.tree.map(lambda leaf: cut if leaf.ndim else whole, wave)
        placed = jax.tree.map(lambda leaf, where: abstract(leaf.shape, leaf.dtype, where), wave, shardings)
        operands = (placed, values, feed.abstract()[0], number, abstract((), jnp.bool_), (number,) * 3)
        jax.eval_shape(advance, *operands)  # what cannot be traced shows here, before anything is compiled
        cuts = (specs, MEMBERS, SAME, SAME, SAME, SAME)
        advance = jax.shard_map(advance, mesh=mesh, in_specs=cuts, out_specs=(specs, MEMBERS), check_vma=False)
        out = (shardings, cut)
        return (
            Program("population's init", init, (seeds, values), out_shardings=shardings),
            Program("population", advance, operands, donate=(0,), out_shardings=out),
        )

    init, advance = _traceable(programs, family)
    return _Compiled(init, advance, feed, num_members, mesh)


def _traceable(programs: Callable[[bool], tuple[Program, Program]], family: Family) -> tuple[Program, Program]:
    """Build the programs with operands, else with plain tracers: jax's functions take only these, Python only those."""
    try:
        return programs(False)
    except (UserError, TypeError, ValueError, AttributeError) as error:
        if not family.names:
            raise
        family.check_models()
        refused = error
    try:
        return programs(True)
    except (UserError, TypeError, ValueError, AttributeError) as error:
        if isinstance(refused, UserError):
            raise refused from None
        raise UserError(
            f"{' and '.join(family.names)} cannot vary within one program ({type(refused).__name__}: "
            f"{str(refused).splitlines()[0]}): vary fields that enter the computation as numbers"
        ) from error


class _Training:
    """All waves of a population, one after the other."""

    def __init__(
        self,
        population: Population,
        family: Family,
        compiled: _Compiled,
        keep: "_Keep",
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
        waves = [_arrays(wave) for wave in self.keep.waves]
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
            wave, rows = restored, [_arrays(row) for row in rows]
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


def _arrays(tree: Any) -> Any:
    """Turn lists of JSON values, NaN as null, back into arrays."""
    if isinstance(tree, dict):
        return {name: _arrays(value) for name, value in tree.items()}
    return np.array(tree, np.float64)


class _Saved(flax.struct.PyTreeNode):
    step: Any
    wave: Wave


class _Keep:
    """What is kept of a population: population.json with the results of finished waves, and checkpoints of one."""

    def __init__(self, population: Population, example: Experiment, workdir: str | Path | None) -> None:
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
        arrays = {name: _arrays(result[name]) for name in ("steps", "curves", "train", "metrics", "failed")}
        arrays |= {name: arrays[name].astype(int) for name in ("steps", "failed")}
        return PopulationRun(**(result | arrays | {"members": members}))

    def restore(self, abstract: Wave, num_finished: int) -> tuple[Wave | None, list[Any], float]:
        """Begin, or return the wave to go on with, what was evaluated of it, and the seconds so far."""
        if self.path is None:
            return None, [], 0.0
        if not self.path.exists():
            self._write(None)
        # The order of checkpoints is that of steps; no metric says which is best.
        self._checkpoints = Checkpoints(self.path.parent, keep_last=1, keep_best=0, best_metric="loss", note=_say)
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


def _say(text: str) -> None:
    print(text, file=sys.stderr)
