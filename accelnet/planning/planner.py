"""Lay an experiment out on targets, compile it for them, and turn the answers of the compilers into rows."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelnet.experiment import Experiment
from accelnet.ops.kernels import load
from accelnet.parallel.layout import AbsentDevices, Layout
from accelnet.planning.compiled.calls import call_flops, find_calls
from accelnet.planning.compiled.compile import Compiled, Job, compile_all
from accelnet.planning.compiled.export import ExportedProgram, export_program
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.modelled.abstract import AbstractStep
from accelnet.planning.modelled.calibration import load_model
from accelnet.planning.modelled.device import DeviceModel
from accelnet.planning.modelled.roofline import StepTime, step_time
from accelnet.planning.modelled.run_time import run_time
from accelnet.planning.rows import Memory, Row, device_total, too_large
from accelnet.planning.targets.accelerators import Accelerator
from accelnet.planning.targets.compilers import missing_compiler
from accelnet.planning.targets.target import Target
from accelnet.terminal import StatusLine
from accelnet.training.flops import TracedStep, trace_step
from accelnet.training.program import Programs, prepare
from accelnet.training.state import abstract_state

COMPILE_SECONDS = 300.0


@dataclass
class Case:
    """An experiment laid out on a target, and what its compiler says.

    Attributes:
        step: What shapes say.
        compiled: Compiler's answers by program; empty before, or without a compiler.
        missing: Reason why it was not compiled.
        lowering_seconds: Time that tracing and lowering the programs took here.
    """

    experiment: Experiment
    target: Target
    step: AbstractStep
    programs: Programs
    compiled: dict[str, Compiled] = field(default_factory=dict)
    missing: str = ""
    lowering_seconds: float = 0.0

    @property
    def layout(self) -> Layout:
        """Layout of its arrays."""
        return self.programs.layout

    @property
    def compile_seconds(self) -> float | None:
        """Seconds that lowering and compiling the programs took here; None if a program was not compiled."""
        if not self.compiled or any(program.status == "failed" for program in self.compiled.values()):
            return None
        return self.lowering_seconds + sum(program.seconds for program in self.compiled.values())

    @property
    def limit_bytes(self) -> int:
        """Bytes of a device that a program can use."""
        return self.target.accelerator.usable_bytes

    def program(self, name: str) -> Compiled | None:
        """Return a program that was compiled, None if it was not."""
        found = self.compiled.get(name)
        return found if found is not None and found.status == "ok" else None

    def memory(self) -> Memory:
        """Return what a device holds. Whether that fits is the verdict of the target's compiler, where it gives one."""
        step, train = self.step, self.compiled.get("train")
        total, source, counted = device_total(
            self.compiled, step.total_bytes, self.limit_bytes, rules=self.target.accelerator.platform == "tpu"
        )
        activations = step.activations_bytes
        if train is not None and train.memory is not None and source == "compiled":
            activations = max(0, train.memory["temp"] - step.held_bytes["gradients"])
        return Memory(
            **step.held_bytes,
            activations=activations,
            arguments=None if counted is None else counted["argument"],
            results=None if counted is None else counted["output"] - counted["alias"],
            temporaries=None if counted is None else counted["temp"],
            total=total,
            limit=self.limit_bytes,
            source=source,
        )

    @property
    def fits(self) -> bool:
        """Whether its bytes are within the limit."""
        return self.memory().fits

    def collectives(self) -> tuple[DeviceOp, ...]:
        """Return the exchanges of a training step."""
        train = self.program("train")
        return tuple(self.step.collectives()) if train is None else train.collectives

    def time(self, model: DeviceModel | None) -> StepTime:
        """Estimate a training step."""
        train = self.program("train")
        ops, source = (self.step.ops(), "modelled") if train is None else (train.ops, "compiled")
        return step_time(ops, self.collectives(), self.target, model=model, source=source)

    def eval_batch_seconds(self, model: DeviceModel | None) -> float:
        """Return the expected time of an evaluation batch, of operations from shapes where nothing was compiled."""
        evaluation = self.program("eval")
        if evaluation is None:
            ops, collectives = self.step.evaluation_ops(self.step.feed.eval_batch_size), ()
        else:
            ops, collectives = evaluation.ops, evaluation.collectives
        return step_time(ops, collectives, self.target, model=model).expected


class Planner:
    """Lay out, export and compile cases; equal programs are exported once.

    Args:
        experiment: Experiment that would be trained.
        mesh: Mesh, as of `plan`.
        compile: Whether compilers are used.
        compile_seconds: Seconds after which a compiler is given up.
        measured: Seconds of a step on one device, by name of the accelerator.
        say: Progress.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: str | None,
        *,
        compile: bool = True,  # noqa: A002
        compile_seconds: float = COMPILE_SECONDS,
        measured: Mapping[str, float] | None = None,
        say: StatusLine | None = None,
    ) -> None:
        self.experiment = experiment
        self.mesh = mesh
        self.may_compile = compile
        self.compile_seconds = compile_seconds
        self.measured = measured or {}
        self.say = say or StatusLine(False)
        self._exported: dict[Any, tuple[ExportedProgram, float]] = {}
        self._shapes = functools.cache(abstract_state)
        self._plain = functools.cache(lambda experiment: experiment.replace(remat="none"))
        self._traced = functools.cache(lambda experiment, size: trace_step(experiment, size, self._shapes(experiment)))
        self._model = functools.cache(load_model)

    def case(self, target: Target, experiment: Experiment | None = None, mesh: str | None = None) -> Case:
        """Lay an experiment out on a target.

        Raises:
            UserError: if mesh and batch do not fit its devices.
        """
        experiment, platform = experiment or self.experiment, target.accelerator.platform
        absent = AbsentDevices(target.num_devices, target.accelerator.usable_bytes)
        return Case(experiment, target, *self._laid_out(experiment, mesh or self.mesh, absent, platform))

    def alone(self, platform: str) -> AbstractStep:
        """Return the experiment's step on one device with memory enough."""
        return self._laid_out(self.experiment, None, AbsentDevices(1, 1 << 60), platform)[0]

    def _laid_out(
        self, experiment: Experiment, mesh: str | None, absent: AbsentDevices, platform: str
    ) -> tuple[AbstractStep, Programs]:
        feed, programs = prepare(experiment, mesh, absent=absent, shapes=self._shapes(experiment))
        step = AbstractStep(experiment, programs.layout, feed, programs.abstract_state, platform, self.trace)
        return step, programs

    def trace(self, experiment: Experiment, size: int | None = None) -> TracedStep:
        """Trace a step, once for every size of a microbatch."""
        return self._traced(experiment, size or experiment.order.microbatch_size)

    def compile(self, cases: Sequence[Case]) -> None:
        """Compile the cases' programs, side by side, and keep what comes out in them."""
        for case in cases:
            case.missing = self._missing(case.target.accelerator)
        waiting = {str(number): case for number, case in enumerate(cases) if not case.missing}
        done: list[str] = []

        def jobs() -> Iterator[Job]:
            for key, case in waiting.items():
                self.say(f"lowering for {case.target.name}")
                yield key, case.target, self._export(case)

        def finished(key: str, compiled: dict[str, Compiled]) -> None:
            done.append(key)
            statuses = {program.status for program in compiled.values()}
            outcome = "failed" if "failed" in statuses else "does not fit" if "too large" in statuses else "compiled"
            seconds = sum(program.seconds for program in compiled.values())
            name = waiting[key].target.name
            self.say(f"{name}: {outcome} in {seconds:.1f} s ({len(done)} of {len(waiting)})")

        for key, programs in compile_all(jobs(), time_limit=self.compile_seconds, progress=finished).items():
            waiting[key].compiled = {name: self._declared(waiting[key], made) for name, made in programs.items()}
            failed = [program.reason for program in programs.values() if program.status == "failed"]
            waiting[key].missing = failed[0] if failed else ""

    def _declared(self, case: Case, compiled: Compiled) -> Compiled:
        """Give custom calls the FLOPs that the jaxpr declares; the program's text has none."""
        if not any(op.call and not op.products for op in compiled.ops):
            return compiled
        traced = self.trace(case.experiment, case.step.local_microbatch_size)
        known = find_calls(traced.gradient, traced.update)

        def declared(op: DeviceOp) -> DeviceOp:
            if op.call is None or op.call not in known or op.products:
                return op
            flops = call_flops(known[op.call])
            return replace(op, products=tuple(flops.products.elements()), elements=flops.elementwise)

        return replace(compiled, ops=tuple(map(declared, compiled.ops)))

    def _missing(self, accelerator: Accelerator) -> str:
        """Say why nothing can be compiled for an accelerator; "" if something can."""
        if not self.may_compile:
            return "nothing was to be compiled"
        if accelerator.compile_options is None:
            return "XLA has no description of this device"
        return missing_compiler(accelerator.platform) or ""

    def _export(self, case: Case) -> list[ExportedProgram]:
        axes, platform = case.layout.axes, case.target.accelerator.platform
        if platform == "cpu":
            load()  # may compile the C++ kernels, once for all runs on this machine
        exported = []
        for program in (case.programs.train, case.programs.evaluate):
            key = (case.experiment, program.name, platform, tuple(axes.items()), case.step.feed.max_steps)
            if key not in self._exported:
                start = time.perf_counter()
                made = export_program(program, axes, [platform])
                self._exported[key] = made, time.perf_counter() - start
            exported.append(self._exported[key][0])
            case.lowering_seconds += self._exported[key][1]
        return exported

    def device_model(self, accelerator: Accelerator) -> DeviceModel | None:
        """Return what was measured of a device, None if nothing was."""
        return self._model(accelerator)

    def row(self, case: Case) -> Row:
        """Answer for a case."""
        target, memory, feed = case.target, case.memory(), case.step.feed
        accelerator, model = target.accelerator, self.device_model(target.accelerator)
        seconds, eval_batch_seconds = case.time(model), case.eval_batch_seconds(model)
        if target.num_devices == 1 and accelerator.name in self.measured:
            source = f"{seconds.source.partition(', ')[0]}, timed"
            seconds = replace(seconds, expected=self.measured[accelerator.name], source=source)
        plain = case.experiment if case.experiment.remat == "none" else self._plain(case.experiment)
        useful = self.trace(plain).flops().product_flops
        peak = accelerator.peak_flops.get(case.experiment.precision, accelerator.peak_flops["float32"])
        run = run_time(
            case.experiment,
            accelerator,
            step_seconds=seconds.expected,
            eval_batch_seconds=eval_batch_seconds,
            eval_batch_size=feed.eval_batch_size,
            compile_seconds=case.compile_seconds,
            streamed=feed.max_steps is not None,
            num_parts=case.layout.num_parts,
        )
        refusal = next((c.reason for c in case.compiled.values() if c.status == "too large"), "")
        usd = target.usd_per_hour
        return Row(
            name=target.name,
            status="ok" if memory.fits else "does not fit",
            reason="" if memory.fits else refusal or too_large(memory, accelerator),
            target=target,
            mesh=case.layout.described,
            memory=memory,
            flops_per_step=self.trace(case.experiment).flops().total,
            time=seconds,
            eval_seconds=eval_batch_seconds,
            collectives=case.collectives(),
            compile_seconds=run.compile,
            run_seconds=run.total,
            run=run,
            usd_per_run=None if usd is None else usd * run.total / 3600,
            mfu=useful / seconds.expected / (peak * target.num_devices) if seconds.expected else None,
            peaks={"flops": peak, "bytes_per_second": accelerator.memory_bandwidth},
            missing=case.missing,
        )
