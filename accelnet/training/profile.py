"""Where the time of a training step goes: a trace of a few steps, and a table of the layers that take most."""

import json
import shutil
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from accelnet.disk import raise_unwritable, write_atomically
from accelnet.errors import UserError
from accelnet.hlo import SMALL_CALL, HloModule
from accelnet.json_file import read_json
from accelnet.scopes import LOOP, layer_of
from accelnet.terminal import rendered
from accelnet.training.program import Programs
from accelnet.training.rhythm import At, Rhythm

FOLDER, FOUND = "profile", "profile.json"
_STEPS, _WARM_UP = 10, 3
_MOST_LAYERS = 10
_NAMES_COUNT = "jax_compilation_cache_include_metadata_in_key"
_AROUND_OTHERS = ("while", "call", "conditional", "async-start", "async-done", "async-update")
_SHAPE = {
    "steps": int, "step_ms": float, "op_ms": float, "layers": [{"layer": str, "ms": float, "backward_ms": float}],
    "unnamed_ms": float,
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Profile:
    """Where the time of a training step went.

    Attributes:
        steps: Steps that were traced.
        step_ms: Milliseconds of a step.
        op_ms: Milliseconds of a step's operations, those side by side added up.
        layers: Layers and parts of the step, with "ms" of a step and the "backward_ms" among them, the longest first.
        unnamed_ms: Milliseconds of a step's operations that belong to no layer, or to several in one function.
    """

    steps: int
    step_ms: float
    op_ms: float
    layers: list[dict[str, Any]]
    unnamed_ms: float

    def __repr__(self) -> str:
        from rich.table import Table

        if not self.op_ms:
            return f"{self.steps} steps of {self.step_ms:.3g} ms; the trace tells no operations of the step apart"
        table = Table("layer", box=None, pad_edge=False)
        for name in ("ms a step", "share", "backward"):
            table.add_column(name, justify="right")
        for row in self.layers[:_MOST_LAYERS]:
            table.add_row(
                row["layer"], f"{row['ms']:.3g}", _share(row["ms"], self.op_ms), _share(row["backward_ms"], row["ms"])
            )
        left = self.layers[_MOST_LAYERS:]
        if left:
            table.add_row(f"{len(left)} more", f"{(rest := sum(r['ms'] for r in left)):.3g}", _share(rest, self.op_ms))
        told = f"{self.steps} steps of {self.step_ms:.3g} ms; operations take {self.op_ms:.3g} ms of each"
        told += " (side by side, they count twice)" if self.op_ms > self.step_ms else ""
        unnamed = f"{_share(self.unnamed_ms, self.op_ms)} of that belongs to no one layer"
        return "\n".join([rendered(table).rstrip(), f"{told}, {unnamed}"])


def _share(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1e-12):.0f} %"


def read_profile(workdir: Path) -> Profile:
    """Read the profile of a run.

    Raises:
        UserError: if there is none.
    """
    found = read_json(workdir / FOLDER / FOUND, "a run's profile", _SHAPE, "profile again")
    if found is None:
        raise UserError(f"{workdir} holds no profile: train with --profile (profile=True)")
    return Profile(**found)


class Recorder:
    """Trace a few steps of a run, after its first ones. It changes no number of the training.

    The trace opens in TensorBoard (`--logdir` of the work directory) and in Perfetto (the .trace.json.gz in it).

    Args:
        workdir: Work directory, whose folder "profile" gets the trace and what was found. What was there is replaced.
    """

    def __init__(self, workdir: Path) -> None:
        self.directory = workdir / FOLDER
        self.found: Profile | None = None
        self._window = range(0)
        self._steps, self._seconds = 0, 0.0
        self._is_tracing = False
        # A program from the cache may have the names of another that computes the same.
        self._names_counted = getattr(jax.config, _NAMES_COUNT)
        jax.config.update(_NAMES_COUNT, True)

    def attached(
        self, programs: Programs, rhythms: Mapping[str, Rhythm], step: int, total_steps: int
    ) -> tuple[Programs, dict[str, Rhythm]]:
        """Return programs of which some steps are traced, and rhythms that cut chunks there.

        Args:
            programs: Programs of the run.
            rhythms: Rhythms of the run.
            step: Step at which this process begins.
            total_steps: Steps of the whole run.
        """
        first = max(step, min(step + _WARM_UP, total_steps - _STEPS))
        self._window = range(first, min(first + _STEPS, total_steps))
        marks = At(tuple(mark for mark in (first, self._window.stop) if mark > step))
        return replace(programs, train=_Recorded(programs.train, self)), {**rhythms, "profile": marks}

    def call(self, program: Any, operands: tuple[Any, ...]) -> Any:
        """Call the program of the training, under the trace if it is one of those steps."""
        step, length = int(operands[0].step), int(operands[2])
        if step not in self._window:
            return program(*operands)
        if not self._is_tracing:
            self._begin()
        start = time.perf_counter()
        result = jax.block_until_ready(program(*operands))
        self._seconds += time.perf_counter() - start
        self._steps += length
        if step + length >= self._window.stop:
            self._stop()
            self._finish(program.compiled.as_text())
        return result

    def _begin(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # thousands of events that say nothing of the step
        try:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(parents=True)
        except OSError as error:
            raise_unwritable(self.directory, error)
        jax.profiler.start_trace(str(self.directory), profiler_options=options)
        self._is_tracing = True

    def close(self) -> None:
        """End the trace if it is still being taken. May be called twice."""
        self._stop()
        jax.config.update(_NAMES_COUNT, self._names_counted)

    def _stop(self) -> None:
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()

    def _finish(self, text: str) -> None:
        write_atomically(self.directory / "train.hlo.txt", text)
        times, _ = op_times(self.directory, text)
        self.found = profile_of(times, text, self._steps, self._seconds)
        write_atomically(self.directory / FOUND, json.dumps(asdict(self.found), indent=1) + "\n")


class _Recorded:
    """A program that is called through a recorder, and is itself in all else."""

    def __init__(self, program: Any, recorder: Recorder) -> None:
        self._program, self._recorder = program, recorder

    def __call__(self, *operands: Any) -> Any:
        return self._recorder.call(self._program, operands)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)


def op_times(directory: Path, text: str, others: Collection[str] = ()) -> tuple[Counter[str], Counter[str]]:
    """Return nanoseconds and calls of a compiled program's instructions in a trace, by name.

    Args:
        directory: Directory of the trace.
        text: Text of the program.
        others: Names of further events that are counted.
    """
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    module = text.split(None, 2)[1].rstrip(",")
    with warnings.catch_warnings():
        # Made an error, jaxlib's own warning about its types ends the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        for path in directory.rglob("*.xplane.pb"):
            planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
            # The host's events of a program on an accelerator are its launches.
            devices = [plane for plane in planes if plane.name.startswith("/device:")]
            for plane in devices or planes:
                for line in plane.lines:
                    for event in line.events:
                        told = dict(event.stats)
                        name = str(told.get("hlo_op", "")) if told.get("hlo_module") == module else ""
                        name = event.name if event.name in others else name
                        if name:
                            times[name] += event.duration_ns
                            calls[name] += 1
    return times, calls


def profile_of(times: Mapping[str, float], text: str, steps: int, seconds: float) -> Profile:
    """Share out the times of a program's instructions among the layers that they were traced in.

    Args:
        times: Nanoseconds by instruction.
        text: Text of the program.
        steps: Steps that were traced.
        seconds: Time that they took.
    """
    module = HloModule(text)
    known = {i.name: i for computation in module.computations.values() for i in computation.instructions.values()}
    total: defaultdict[str, float] = defaultdict(float)
    backward: defaultdict[str, float] = defaultdict(float)
    scale = max(steps, 1) * 1e6
    for name, nanoseconds in times.items():
        instruction = known.get(name)
        is_one_function = instruction is not None and SMALL_CALL in instruction.attributes
        if instruction is None or (instruction.opcode in _AROUND_OTHERS and not is_one_function):
            continue
        op_name = "" if is_one_function else module.op_name(instruction)
        total[layer_of(op_name)] += nanoseconds / scale
        backward[layer_of(op_name)] += nanoseconds / scale if "transpose(" in op_name else 0.0
    unnamed = sum(total.pop(name, 0.0) for name in ("", LOOP))
    longest = sorted(total.items(), key=lambda item: -item[1])
    layers = [{"layer": name, "ms": ms, "backward_ms": backward[name]} for name, ms in longest]
    return Profile(steps, 1e3 * seconds / max(steps, 1), sum(total.values()) + unnamed, layers, unnamed)
