"""Plan: what an experiment would do on hardware that is not here."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.parallel.layout import AbsentDevices, Layout
from accelnet.planning.abstract import AbstractStep
from accelnet.planning.calibration import load_model
from accelnet.planning.compile import Compiled, CompileJob, compile_all, missing_compiler
from accelnet.planning.export import ExportedProgram, export_program
from accelnet.planning.hlo import Kernel
from accelnet.planning.roofline import DeviceModel, StepTime, step_time
from accelnet.planning.targets import (
    DEFAULT_TARGETS,
    Accelerator,
    Target,
    find_target,
    load_accelerators,
    this_machine,
)
from accelnet.training.flops import TracedStep, trace_step
from accelnet.training.program import Programs, prepare
from accelnet.training.state import TrainState, abstract_state

COMPILE_SECONDS = 300.0


@dataclass(frozen=True)
class Memory:
    """What one device holds, in bytes.

    Attributes:
        weights: parameters.
        optimizer: the optimizer's state.
        model_state: batch statistics and the like.
        data: the data set, or the batches of a chunk.
        gradients: before they are exchanged; modelled.
        activations: what the backward pass needs; modelled, or what remains of the compiled temporaries.
        arguments: of the program; compiled.
        temporaries: of the program; compiled.
        total: compiled (the larger of training and evaluation), or the sum of the parts.
        limit: that a program can use.
        source: "compiled" or "modelled", of the total.
    """

    weights: int
    optimizer: int
    model_state: int
    data: int
    gradients: int
    activations: int
    arguments: int | None
    temporaries: int | None
    total: int
    limit: int
    source: str

    @property
    def fits(self) -> bool:
        """Whether the total is within the limit."""
        return self.total <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; every name but "source" ends in _bytes."""
        values = {f"{name}_bytes": value for name, value in vars(self).items() if name != "source"}
        return values | {"margin_bytes": self.limit - self.total, "source": self.source}


@dataclass(frozen=True)
class Row:
    """The answer for one target.

    Attributes:
        name: of the target.
        status: "ok", "does not fit", or "failed" (then nothing else is known).
        reason: in words, where it is not "ok".
        target: the devices; None if the name was not understood.
        mesh: of the run there.
        memory: of one device.
        flops_per_step: of all devices.
        time: of a training step.
        eval_seconds: expected, of one evaluation batch; None without a compiler.
        collectives: of one step.
        compile_seconds: of both programs; None if they were not compiled.
        run_seconds: expected, of all steps.
        usd_per_run: for them; None without a price.
        mfu: matrix products of the plain program, at the expected time, as a share of the devices' peak.
        remedies: what would make it fit.
        missing: what was not compiled, and the command that adds it.
        peaks: of a device: "flops", FLOP/s in the run's dtype, and "bytes_per_second" of its memory.
    """

    name: str
    status: Literal["ok", "does not fit", "failed"]
    reason: str = ""
    target: Target | None = None
    mesh: str = ""
    memory: Memory | None = None
    flops_per_step: int = 0
    time: StepTime | None = None
    eval_seconds: float | None = None
    collectives: tuple[Kernel, ...] = ()
    compile_seconds: float | None = None
    run_seconds: float | None = None
    usd_per_run: float | None = None
    mfu: float | None = None
    remedies: tuple[dict[str, Any], ...] = ()
    missing: str = ""
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None if nothing is known."""
        return None if self.memory is None else self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, of the schema that the README documents."""
        target, seconds = self.target, self.time
        return {
            "name": self.name,
            "title": "" if target is None else target.accelerator.title,
            "devices": 0 if target is None else target.num_devices,
            "chips": 0 if target is None else target.num_chips,
            "mesh": self.mesh,
            "fits": self.fits,
            "memory": None if self.memory is None else self.memory.to_dict(),
            "flops_per_step": self.flops_per_step,
            "step_seconds": None if seconds is None else seconds.to_dict(),
            "eval_batch_seconds": self.eval_seconds,
            "bottleneck": "" if seconds is None else seconds.bottleneck,
            "kernels": [] if seconds is None else list(seconds.rows),
            "collectives": [
                {"kind": kernel.opcode, "bytes": kernel.bytes, "count": kernel.count, "devices": kernel.group}
                for kernel in self.collectives
            ],
            "mfu": self.mfu,
            "run_seconds": self.run_seconds,
            "usd_per_hour": None if target is None else target.usd_per_hour,
            "price": "" if target is None else target.accelerator.price_note,
            "usd_per_run": self.usd_per_run,
            "compile_seconds": self.compile_seconds,
            "remedies": list(self.remedies),
            "missing": self.missing,
            "peaks": self.peaks,
            "status": self.status,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Plan:
    """Answers for several targets.

    Attributes:
        experiment: name of the experiment.
        steps: of the run.
        batch_size: of an update.
        flops: of a step, as of `StepFlops.to_dict`.
        rows: one per target, in the order asked for.
        scaling: predictions over the sizes of the targets' families.
        choice: what to rent, where a budget or deadline was given.
    """

    experiment: str
    steps: int
    batch_size: int
    flops: dict[str, Any]
    rows: tuple[Row, ...]
    scaling: tuple[dict[str, Any], ...] = ()
    choice: dict[str, Any] | None = None
    workdir: Path | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, of the schema that the README documents."""
        return {
            "experiment": self.experiment,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "flops": self.flops,
            "targets": [row.to_dict() for row in self.rows],
            "scaling": list(self.scaling),
            "choice": self.choice,
        }

    def __str__(self) -> str:
        from accelnet.planning.report import plan_table

        return plan_table(self)


def plan(
    experiment: Experiment,
    targets: str | Sequence[str] | None = None,
    *,
    mesh: str | None = None,
    budget_usd: float | None = None,
    deadline_hours: float | None = None,
    workdir: str | Path | None = None,
    compile: bool = True,  # noqa: A002, the word for it
    remedies: bool = True,
    compile_seconds: float = COMPILE_SECONDS,
    targets_file: str | Path | None = None,
    progress: bool = True,
) -> Plan:
    """Say what an experiment would do on hardware that is not here: whether it fits, how fast it can be, what it costs.

    The programs that `fit` would run are compiled by XLA's own compilers for the targets, in processes of their own.
    Nothing is trained, and nothing is sent anywhere.

    Args:
        experiment: what would be trained.
        targets: names such as "v5e:2x2", "h100:8", "cpu", as a list or with commas between them. None: a spread of
            them, and this machine.
        mesh: as of `fit`, with -1 for as many devices as a target has. None: data parallel over all devices, or
            "fsdp" if the state would take more than a quarter of a device's memory.
        budget_usd: say what to rent for at most this much.
        deadline_hours: say what to rent to be done within this time.
        workdir: where plan.json and plan.html are written. None: nowhere.
        compile: False: shapes and facts alone, in seconds.
        remedies: where it does not fit, compile what would make it fit.
        compile_seconds: after which a compiler is given up.
        targets_file: facts and prices of your own, as of `load_accelerators`.
        progress: show what is done on standard error.

    Returns:
        The `Plan`; `print` shows it as a table.

    Raises:
        UserError: if no target could be answered.

    Example:
        >>> import numpy as np, accelnet as an
        >>> data = an.data.from_arrays(np.eye(20, 3, dtype=np.float32), np.arange(20) % 2, num_classes=2)
        >>> experiment = an.Experiment(
        ...     data=data,
        ...     model=lambda rngs: an.models.MLP(3, (4,), 2, rngs=rngs),
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.softmax_cross_entropy(),
        ...     batch_size=4,
        ...     epochs=2,
        ... )
        >>> made = plan(experiment, "h100", compile=False, progress=False)
        >>> made.rows[0].fits, made.rows[0].memory.source
        (True, 'modelled')

    Source: original.
    """
    say = Progress(progress)
    planner = Planner(experiment, mesh, compile=compile, compile_seconds=compile_seconds, say=say)
    accelerators = load_accelerators(targets_file)
    cases: list[Case | Row] = []
    for name in _names(targets):
        try:
            target = this_machine(accelerators=accelerators) if name == "here" else find_target(name, accelerators)
            cases.append(planner.case(target))
        except UserError as error:
            cases.append(Row(name, "failed", str(error)))
    if all(isinstance(case, Row) for case in cases):
        raise UserError("\n".join(case.reason for case in cases if isinstance(case, Row)))
    planner.compile([case for case in cases if isinstance(case, Case)])
    rows = [case if isinstance(case, Row) else planner.row(case) for case in cases]
    if remedies and compile:
        from accelnet.planning.remedies import find_remedies

        for number, case in enumerate(cases):
            if isinstance(case, Case) and not case.fits:
                rows[number] = replace(rows[number], remedies=find_remedies(planner, case))
    from accelnet.planning.choice import choose
    from accelnet.planning.scaling import scaling

    made = Plan(
        experiment.name,
        experiment.total_steps,
        experiment.order.batch_size,
        planner.trace(experiment).flops().to_dict(),
        tuple(rows),
        tuple(scaling(planner, [row for row in rows if row.time is not None])),
        None if budget_usd is None and deadline_hours is None else choose(rows, budget_usd, deadline_hours),
        None if workdir is None else Path(workdir),
    )
    say.close()
    if workdir is not None:
        from accelnet.planning.report import write_plan

        write_plan(made, Path(workdir))
    return made


def _names(targets: str | Sequence[str] | None) -> list[str]:
    if targets is None:
        return [*DEFAULT_TARGETS, "here"]
    names = targets.split(",") if isinstance(targets, str) else list(targets)
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise UserError("no target was given: name some, such as --targets v5e:2x2,h100:8; `targets` lists them")
    return names


@dataclass
class Case:
    """One target with an experiment laid out on it, and what its compiler says.

    Attributes:
        experiment: what would be trained there.
        target: the devices.
        layout: on them.
        step: what shapes say.
        programs: to compile.
        compiled: by program; empty before, or without a compiler.
        missing: why it was not compiled.
    """

    experiment: Experiment
    target: Target
    layout: Layout
    step: AbstractStep
    programs: Programs
    compiled: dict[str, Compiled] = field(default_factory=dict)
    missing: str = ""

    @property
    def limit_bytes(self) -> int:
        """Of a device."""
        return self.target.accelerator.memory_bytes

    def memory(self) -> Memory:
        """Return what a device holds."""
        step, limit = self.step, self.limit_bytes
        train = self.compiled.get("train")
        parts = {
            "weights": step.weights_bytes,
            "optimizer": step.optimizer_bytes,
            "model_state": step.model_state_bytes,
            "data": step.data_bytes,
            "gradients": step.gradients_bytes,
        }
        totals = [c.total_bytes for c in self.compiled.values() if c.status != "failed" and c.total_bytes is not None]
        if train is None or train.status == "failed" or not totals:
            total = step.total_bytes
            refused = train is not None and train.status == "too large"
            return Memory(
                **parts, activations=step.activations_bytes, arguments=None, temporaries=None,
                total=max(total, limit + 1) if refused else total, limit=limit, source="modelled",
            )  # fmt: skip
        memory = train.memory or {}
        temporaries = memory.get("temp")
        activations = step.activations_bytes if temporaries is None else max(0, temporaries - parts["gradients"])
        return Memory(
            **parts, activations=activations, arguments=memory.get("argument"), temporaries=temporaries,
            total=max(totals), limit=limit, source="compiled",
        )  # fmt: skip

    @property
    def fits(self) -> bool:
        """Whether it fits: on TPUs the compiler's word, elsewhere its count against the limit."""
        statuses = {compiled.status for compiled in self.compiled.values()}
        if self.target.accelerator.platform == "tpu" and statuses and "failed" not in statuses:
            return statuses == {"ok"}
        return self.memory().fits and "too large" not in statuses

    def time(self, model: DeviceModel | None) -> StepTime:
        """Estimate a training step."""
        train = self.compiled.get("train")
        if train is not None and train.status == "ok":
            kernels, collectives, source = train.kernels, train.collectives, "compiled"
        else:
            kernels, collectives, source = tuple(self.step.kernels()), tuple(self.step.collectives()), "modelled"
        return step_time(kernels, collectives, self.target, model=model, source=source)


class Planner:
    """Lay out, export and compile cases; equal programs are exported once.

    Args:
        experiment: what would be trained.
        mesh: as of `plan`.
        compile: whether compilers are used.
        compile_seconds: for each.
        say: progress.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: str | None,
        *,
        compile: bool = True,  # noqa: A002
        compile_seconds: float = COMPILE_SECONDS,
        say: "Progress | None" = None,
    ) -> None:
        self.experiment = experiment
        self.mesh = mesh
        self.may_compile = compile
        self.compile_seconds = compile_seconds
        self.say = say or Progress(False)
        self._exported: dict[Any, ExportedProgram] = {}
        self._traced: dict[tuple[Experiment, int], TracedStep] = {}
        self._states: dict[Experiment, TrainState] = {}
        self._plain: dict[Experiment, Experiment] = {}
        self._models: dict[str, DeviceModel | None] = {}

    def case(self, target: Target, experiment: Experiment | None = None, mesh: str | None = None) -> Case:
        """Lay an experiment out on a target.

        Raises:
            UserError: if mesh and batch do not fit its devices.
        """
        experiment = experiment or self.experiment
        absent = AbsentDevices(target.num_devices, target.accelerator.memory_bytes)
        feed, programs = prepare(experiment, mesh or self.mesh, absent=absent, shapes=self._shapes(experiment))
        layout = Layout(feed.mesh, "jit", experiment.sharding_rules)
        platform = target.accelerator.platform
        step = AbstractStep(experiment, layout, feed, programs.abstract_state, platform, self.trace)
        return Case(experiment, target, layout, step, programs)

    def alone(self, platform: str) -> AbstractStep:
        """Return the experiment's step on one device with memory enough."""
        absent = AbsentDevices(1, 1 << 60)
        feed, programs = prepare(self.experiment, None, absent=absent, shapes=self._shapes(self.experiment))
        return AbstractStep(self.experiment, Layout(), feed, programs.abstract_state, platform, self.trace)

    def _shapes(self, experiment: Experiment) -> TrainState:
        if experiment not in self._states:
            self._states[experiment] = abstract_state(experiment)
        return self._states[experiment]

    def trace(self, experiment: Experiment, size: int | None = None) -> TracedStep:
        """Trace a step, once for every size of a microbatch."""
        key = experiment, size or experiment.order.microbatch_size
        if key not in self._traced:
            self._traced[key] = trace_step(*key)
        return self._traced[key]

    def compile(self, cases: Sequence[Case]) -> None:
        """Compile the cases' programs, side by side, and keep what comes out in them."""
        jobs: dict[str, CompileJob] = {}
        for number, case in enumerate(cases):
            platform = case.target.accelerator.platform
            if not self.may_compile:
                case.missing = "not asked for (compile=False)"
            elif platform != "cpu" and case.target.accelerator.compile_options is None:
                case.missing = "XLA has no description of this device"
            else:
                case.missing = missing_compiler(platform) or ""
            if case.missing:
                continue
            self.say(f"lowering for {case.target.name}")
            topology = None if platform == "cpu" else case.target.topology_request()
            jobs[str(number)] = CompileJob(platform, topology, self._export(case, platform))
        done: list[str] = []

        def finished(key: str, compiled: dict[str, Compiled]) -> None:
            done.append(key)
            seconds = sum(program.seconds for program in compiled.values())
            name = cases[int(key)].target.name
            self.say(f"{name}: {_outcome(compiled)} in {seconds:.1f} s ({len(done)} of {len(jobs)})")

        if jobs:
            self.say(f"compiling for {len(jobs)} target{'s' if len(jobs) > 1 else ''}")
        compiled = compile_all(jobs, time_limit=self.compile_seconds, progress=finished)
        for key, programs in compiled.items():
            cases[int(key)].compiled = programs
            failed = [program.reason for program in programs.values() if program.status == "failed"]
            cases[int(key)].missing = failed[0] if failed else ""

    def _export(self, case: Case, platform: str) -> tuple[ExportedProgram, ...]:
        axes, on_device = case.layout.axes, case.step.feed.max_steps
        exported = []
        for program in (case.programs.train, case.programs.evaluate):
            key = (case.experiment, program.name, platform, tuple(axes.items()), on_device)
            if key not in self._exported:
                self._exported[key] = export_program(program, axes, [platform])
            exported.append(self._exported[key])
        return tuple(exported)

    def device_model(self, accelerator: Accelerator) -> DeviceModel | None:
        """Return what was measured of a device, None if nothing was."""
        if accelerator.name not in self._models:
            self._models[accelerator.name] = load_model(accelerator)
        return self._models[accelerator.name]

    def flops(self, experiment: Experiment) -> tuple[int, int]:
        """Return a step's operations, and those of its matrix products without recomputation."""
        plain = experiment
        if experiment.remat != "none":
            plain = self._plain.setdefault(experiment, experiment.replace(remat="none"))
        return self.trace(experiment).flops().total, self.trace(plain).flops().product_flops

    def row(self, case: Case) -> Row:
        """Answer for a case."""
        target, memory, total_steps = case.target, case.memory(), case.experiment.total_steps
        seconds = case.time(self.device_model(target.accelerator))
        flops, model_flops = self.flops(case.experiment)
        peaks = target.accelerator.peak_flops
        peak = peaks.get(case.experiment.precision, peaks["float32"])
        train, evaluation = case.compiled.get("train"), case.compiled.get("eval")
        run_seconds = seconds.expected * total_steps
        evaluated = None
        if evaluation is not None and evaluation.status == "ok":
            evaluated = step_time(
                evaluation.kernels, evaluation.collectives, target,
                model=self.device_model(target.accelerator),
            ).expected  # fmt: skip
        fits = case.fits
        refusal = next((c.reason for c in case.compiled.values() if c.status == "too large"), "")
        usd = target.usd_per_hour
        return Row(
            name=target.name,
            status="ok" if fits else "does not fit",
            reason="" if fits else refusal or f"{memory.total:,} bytes of {memory.limit:,} on each device",
            target=target,
            mesh=case.layout.described,
            memory=memory,
            flops_per_step=flops,
            time=seconds,
            eval_seconds=evaluated,
            collectives=tuple(
                train.collectives if train is not None and train.status == "ok" else case.step.collectives()
            ),
            compile_seconds=sum(c.seconds for c in case.compiled.values()) if case.compiled else None,
            run_seconds=run_seconds,
            usd_per_run=None if usd is None else usd * run_seconds / 3600,
            mfu=model_flops / seconds.expected / (peak * target.num_devices) if seconds.expected else None,
            peaks={"flops": peak, "bytes_per_second": target.accelerator.memory_bandwidth},
            missing=case.missing,
        )


def _outcome(compiled: Mapping[str, Compiled]) -> str:
    statuses = {program.status for program in compiled.values()}
    if "failed" in statuses:
        return "failed"
    return "does not fit" if "too large" in statuses else "compiled"


class Progress:
    """One line on standard error that is renewed; where that is no terminal, a line at most every 2 seconds."""

    def __init__(self, show: bool) -> None:
        self._show = show
        self._is_terminal = show and sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self._is_terminal:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 80
            print(f"\r\033[K{now - self._start:4.0f} s  {text}"[: columns + 4], end="", file=sys.stderr, flush=True)
        elif self._show and now - self._last >= 2:
            self._last = now
            print(f"{now - self._start:4.0f} s  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Wipe the line."""
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
