"""A population: many trainings of one experiment as one compiled program, in as many waves as memory asks for."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import jax
import numpy as np
from jax.sharding import NamedSharding

from accelnet import runtime
from accelnet.arguments import flags, instance, integer, names, path, sequence, word
from accelnet.data.feed import DeviceFeed
from accelnet.errors import UserError
from accelnet.json_file import plain_value
from accelnet.populations.members import ExperimentFunction, Member, Sweep
from accelnet.populations.programs import MEMBERS, Batches, Wave, make_programs
from accelnet.populations.results import PopulationFile, PopulationRun, WaveWorkdir, to_arrays
from accelnet.training.events import Event, check_events
from accelnet.training.hosts import HANG_SECONDS, Hosts, supervised
from accelnet.training.loop import Loop
from accelnet.training.program import Programs
from accelnet.training.progress import PartOfProgress, Progress, make_progress
from accelnet.training.rhythm import At, Every
from accelnet.training.rhythms import SAVE_SECONDS
from accelnet.training.state import num_parameters
from accelnet.training.timing import Timing
from accelnet.training.workdir import Workdir


@dataclass(frozen=True)
class Population:
    """Say which trainings, and how they are measured.

    Args:
        function: An experiment script's function from its Config to an `Experiment`.
        config: What members have in common. What the function takes from `config.seed` itself, such as a split of the
            data, is the same for all.
        members: As of `grid`.
        batches: "own": each member sees the batches of its seed, as if it were trained alone; "shared": all members
            see those of the first.
        evaluations: How often the split is evaluated on the way, at least 1, the last time at the end.
        split: Split that is evaluated on the way. None: "validation", or "train" where there is none.
        splits: Splits that are evaluated at the end.

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
        events: Sequence[Event] = (),
        progress: bool | Progress = True,
    ) -> PopulationRun:
        """Train all members to their end.

        A member's metrics are those that its training alone would have, to float32 rounding. A member whose loss is
        not finite is marked as failed, and the others go on. Events and early stopping of the experiment are left out.

        Args:
            workdir: Directory of results and checkpoints; a population that is in it is gone on with. None: nowhere.
            devices: Devices that share the members. None: all of this process.
            memory_bytes: Memory that a device may use. None: what it has free, half of the free memory on CPUs.
            events: Events of each wave; the state of a `Moment` is a `Wave`, and rows hold lists.
            progress: Show a progress display on standard error; or the display of which this is a part.

        Returns:
            The `PopulationRun`.

        Raises:
            UserError: if a field decides shapes or what Python does, one member does not fit into memory, or `workdir`
                holds another population.
            PreemptedError: after SIGTERM, when the state is saved.

        Example:
            >>> from dataclasses import dataclass
            >>> import accelnet as an
            >>> from accelnet.populations.members import grid
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
            ((6,), {'init': 1, 'train': 1, 'eval': 1})
        """
        runtime.prepare()
        integer("evaluations", self.evaluations, 1)
        word("batches", self.batches, get_args(Batches))
        if not isinstance(progress, Progress):
            flags(progress=progress)
        events = check_events(events)
        if devices is not None:
            for device in sequence("devices", devices) or [None]:
                instance("a device", device, jax.Device, "a device of JAX, such as one of jax.devices()")
        if workdir is not None:
            workdir = path("workdir", workdir)
        if memory_bytes is not None:
            integer("memory_bytes", memory_bytes, 1)
        sweep = Sweep(self.function, self.config, sequence("members", self.members))
        splits = tuple(sweep.example.data.splits)
        if self.split is not None:
            word("split of the population", self.split, splits)
        for name in names("splits of the population", self.splits):  # validation and test rows need not be there
            word("one of the splits of the population", name, tuple(dict.fromkeys((*splits, "validation", "test"))))
        members = [{"seed": member.seed, **member.fields} for member in self.members]
        named = {name: getattr(self, name) for name in ("batches", "evaluations", "split", "splits")}
        description = {"experiment": sweep.example.description(), "members": members, **named}
        num_points = len(_points(sweep.example.total_steps, self.evaluations))
        file = PopulationFile(workdir, description, sweep.example.objective.metrics, num_points)
        finished = file.read()
        if finished is not None:
            return finished
        with supervised(workdir, HANG_SECONDS) as hosts, ExitStack() as stack:
            if jax.process_count() > 1:
                raise UserError("a population trains in one process, on its devices: start one")
            example = sweep.example
            if isinstance(progress, Progress):
                display = progress
            else:
                display = make_progress(example.name, example.total_steps * len(sweep.members), show=progress)
                stack.callback(display.close)
            if example.events or example.early_stopping:
                display.note("events and early stopping are left out: members train as one program, to their end")
            feed, programs = make_programs(sweep, self.batches, devices, memory_bytes, display)
            return _Waves(self, sweep, feed, programs, hosts, display, events).run(file)


@dataclass(frozen=True)
class _Waves:
    """All waves of a population, one after the other."""

    population: Population
    sweep: Sweep
    feed: DeviceFeed
    programs: Programs
    hosts: Hosts
    display: Progress
    events: Sequence[Event]

    def run(self, file: PopulationFile) -> PopulationRun:
        """Train the waves that are not finished, and put their results together."""
        members, size = self.sweep.members, self.abstract.failed.shape[0]
        if file.path is not None and not file.path.exists():
            file.write()
        for first in range(sum(len(wave["failed"]) for wave in file.waves), len(members), size):
            # The last wave is filled up with its last member: one program serves all.
            numbers = np.minimum(np.arange(first, first + size), len(members) - 1)
            work = Workdir()
            if file.path is not None:
                work = WaveWorkdir(file.path.parent, self.hosts, len(file.waves), self.sweep.example.total_steps)
            self.hosts.finishes.append(work.settle)
            try:
                file.waves.append(self._wave(numbers, work))
            finally:
                work.close()
            file.write()
        waves = [to_arrays({name: values for name, values in wave.items() if name != "seconds"}) for wave in file.waves]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts, -1)[..., : len(members)], *waves)
        run = PopulationRun(
            members=tuple(members),
            split=self.split,
            steps=np.array(self.points),
            curves=joined["curves"],
            train=joined["train"],
            metrics=joined["metrics"],
            failed=joined["failed"].astype(int),
            seconds=sum(wave["seconds"] for wave in file.waves),
            compile_seconds=self.programs.compile_seconds,
            compiles={"init": self.programs.init.compiles, **self.programs.compiles},
            wave_size=size,
            num_parameters=num_parameters(self.abstract.states.params) // size,
        )
        file.write(run)
        return run

    @property
    def abstract(self) -> Wave:
        """Shapes of a wave."""
        return cast(Wave, self.programs.abstract_state)

    @property
    def split(self) -> str:
        """Split that is evaluated on the way."""
        has_validation = self.sweep.example.data.num_examples("validation")
        return self.population.split or ("validation" if has_validation else "train")

    @property
    def points(self) -> tuple[int, ...]:
        """Steps at which it is evaluated."""
        return _points(self.sweep.example.total_steps, self.population.evaluations)

    def _put(self, column: np.ndarray) -> jax.Array:
        assert self.programs.layout.mesh is not None
        return jax.device_put(column, NamedSharding(self.programs.layout.mesh, MEMBERS))

    def _wave(self, numbers: np.ndarray, work: Workdir) -> dict[str, Any]:
        """Train the members of some numbers, and return their results."""
        restored = work.open(self.abstract)
        timing = Timing()
        timing.go_on({} if restored is None else restored.seconds, work.lost_seconds)
        start, done = (self.programs.init, 0) if restored is None else (None, int(restored.state.step))
        timing.measure("compile", self.programs.begin_compiling, self.sweep.example, start, done)
        if restored is None:
            values = {name: self._put(column[numbers]) for name, column in self.sweep.values().items()}
            wave = timing.measure("compile", self.programs.init, self._put(self.sweep.seeds()[numbers]), values)
        else:
            wave = restored.state
        points = self.points
        example = self.sweep.example.replace(events=(), early_stopping=None)
        size = len(numbers)
        display = PartOfProgress(self.display, int(numbers[0]) * example.total_steps, size, num_trainings=size)
        loop = Loop(
            example, self.feed, self.programs, work, self.hosts, display, timing,
            rhythms={"log": At(points[1:]), "eval": At(points), "save": Every(seconds=SAVE_SECONDS)},
            events=self.events, watched=self.split,
        )  # fmt: skip
        wave = loop.train(wave)
        splits = [name for name in self.population.splits if example.data.num_examples(name)]
        metrics = {split: loop.evaluator.evaluate(wave, split) for split in splits}
        curves = {role: self._curves(work.rows, role, len(numbers)) for role in ("train", "validation")}
        seconds = timing.total - timing.seconds["compile"]
        evaluated = {"curves": curves["validation"], "train": curves["train"], "metrics": metrics}
        return plain_value({**evaluated, "failed": wave.failed, "seconds": seconds})

    def _curves(self, rows: Sequence[Mapping[str, Any]], split: str, size: int) -> dict[str, np.ndarray]:
        """Return the recorded metrics by name, float [E, M]; NaN where there are none."""
        by_step = {row["step"]: row for row in rows if row["split"] == split}
        nothing = [None] * size
        names = self.sweep.example.objective.metrics
        return {name: to_arrays([by_step.get(point, {}).get(name, nothing) for point in self.points]) for name in names}


def _points(total_steps: int, evaluations: int) -> tuple[int, ...]:
    points = np.linspace(0, total_steps, evaluations + 1)
    return tuple(np.unique(np.ceil(points).astype(int)).tolist())
