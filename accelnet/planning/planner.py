"""Lay an experiment out on targets, compile it for them, and turn what the compilers say into rows."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelnet.experiment import Experiment
from accelnet.ops.kernels import load
from accelnet.parallel.layout import AbsentDevices
from accelnet.planning.abstract import AbstractStep
from accelnet.planning.calibration import load_model
from accelnet.planning.calls import call_flops, find_calls
from accelnet.planning.case import Case, too_large
from accelnet.planning.compile import Compiled, CompileJob, compile_all
from accelnet.planning.device import DeviceModel
from accelnet.planning.export import ExportedProgram, export_program
from accelnet.planning.extras import missing_compiler
from accelnet.planning.kernels import Kernel
from accelnet.planning.roofline import step_time
from accelnet.planning.rows import Row
from accelnet.planning.run_time import RunTime, run_time
from accelnet.planning.targets import Accelerator, Target
from accelnet.terminal import StatusLine
from accelnet.training.flops import TracedStep, trace_step
from accelnet.training.program import prepare
from accelnet.training.state import TrainState, abstract_state

COMPILE_SECONDS = 300.0


class Planner:
    """Lay out, export and compile cases; equal programs are exported once.

    Args:
        experiment: what would be trained.
        mesh: as of `plan`.
        compile: whether compilers are used.
        compile_seconds: for each.
        measured: seconds of a step by name of an accelerator, of one device.
        say: progress.
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
        absent = AbsentDevices(target.num_devices, target.accelerator.usable_bytes)
        feed, programs = prepare(experiment, mesh or self.mesh, absent=absent, shapes=self._shapes(experiment))
        platform = target.accelerator.platform
        step = AbstractStep(experiment, programs.layout, feed, programs.abstract_state, platform, self.trace)
        return Case(experiment, target, step, programs)

    def alone(self, platform: str) -> AbstractStep:
        """Return the experiment's step on one device with memory enough."""
        absent = AbsentDevices(1, 1 << 60)
        feed, programs = prepare(self.experiment, None, absent=absent, shapes=self._shapes(self.experiment))
        return AbstractStep(self.experiment, programs.layout, feed, programs.abstract_state, platform, self.trace)

    def _shapes(self, experiment: Experiment) -> TrainState:
        if experiment not in self._states:
            self._states[experiment] = abstract_state(experiment)
        return self._states[experiment]

    def trace(self, experiment: Experiment, size: int | None = None) -> TracedStep:
        """Trace a step, once for every size of a microbatch."""
        key = experiment, size or experiment.order.microbatch_size
        if key not in self._traced:
            self._traced[key] = trace_step(*key, self._shapes(experiment))
        return self._traced[key]

    def compile(self, cases: Sequence[Case]) -> None:
        """Compile the cases' programs, side by side, and keep what comes out in them."""
        for case in cases:
            case.missing = self._missing(case.target.accelerator)
        waiting = {str(number): case for number, case in enumerate(cases) if not case.missing}
        done: list[str] = []

        def jobs() -> Iterator[tuple[str, CompileJob]]:
            for key, case in waiting.items():
                self.say(f"lowering for {case.target.name}")
                platform = case.target.accelerator.platform
                topology = None if platform == "cpu" else case.target.topology_request()
                yield key, CompileJob(platform, topology, self._export(case, platform))

        def finished(key: str, compiled: dict[str, Compiled]) -> None:
            done.append(key)
            seconds = sum(program.seconds for program in compiled.values())
            name = waiting[key].target.name
            self.say(f"{name}: {_outcome(compiled)} in {seconds:.1f} s ({len(done)} of {len(waiting)})")

        for key, programs in compile_all(jobs(), time_limit=self.compile_seconds, progress=finished).items():
            waiting[key].compiled = {name: self._declared(waiting[key], made) for name, made in programs.items()}
            failed = [program.reason for program in programs.values() if program.status == "failed"]
            waiting[key].missing = failed[0] if failed else ""

    def _declared(self, case: Case, compiled: Compiled) -> Compiled:
        """Give custom calls the operations that the jaxpr declares; the program's text has none."""
        if not any(kernel.call and not kernel.products for kernel in compiled.kernels):
            return compiled
        traced = self.trace(case.experiment, case.step.local_microbatch_size)
        known = find_calls(traced.gradient, traced.update)

        def declared(kernel: Kernel) -> Kernel:
            if kernel.call is None or kernel.call not in known or kernel.products:
                return kernel
            flops = call_flops(known[kernel.call])
            return replace(kernel, products=tuple(flops.products.elements()), elements=flops.elementwise)

        return replace(compiled, kernels=tuple(map(declared, compiled.kernels)))

    def _missing(self, accelerator: Accelerator) -> str:
        """Say why nothing can be compiled for an accelerator; "" if it can."""
        if not self.may_compile:
            return "nothing was to be compiled"
        if accelerator.compile_options is None:
            return "XLA has no description of this device"
        return missing_compiler(accelerator.platform) or ""

    def _export(self, case: Case, platform: str) -> tuple[ExportedProgram, ...]:
        axes, on_device = case.layout.axes, case.step.feed.max_steps
        if platform == "cpu":
            load()  # may compile the C++ kernels, once for all runs on this machine
        exported = []
        for program in (case.programs.train, case.programs.evaluate):
            key = (case.experiment, program.name, platform, tuple(axes.items()), on_device)
            if key not in self._exported:
                start = time.perf_counter()
                made = export_program(program, axes, [platform])
                self._exported[key] = made, time.perf_counter() - start
            exported.append(self._exported[key][0])
            case.lowering_seconds += self._exported[key][1]
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

    def eval_batch_seconds(self, case: Case) -> float:
        """Return the expected time of an evaluation batch, of kernels from shapes where nothing was compiled."""
        evaluation, feed = case.compiled.get("eval"), case.step.feed
        if evaluation is not None and evaluation.status == "ok":
            kernels, collectives = evaluation.kernels, evaluation.collectives
        else:
            kernels, collectives = tuple(case.step.evaluation_kernels(feed.eval_batch_size)), ()
        return step_time(kernels, collectives, case.target, model=self.device_model(case.target.accelerator)).expected

    def run_time(self, case: Case, step_seconds: float) -> RunTime:
        """Return how long a run takes on a case's target."""
        feed = case.step.feed
        return run_time(
            case.experiment,
            case.target.accelerator,
            step_seconds=step_seconds,
            eval_batch_seconds=self.eval_batch_seconds(case),
            eval_batch_size=feed.eval_batch_size,
            compile_seconds=case.compile_seconds,
            streamed=feed.max_steps is not None,
            num_parts=case.layout.num_parts,
        )

    def row(self, case: Case) -> Row:
        """Answer for a case."""
        target, memory = case.target, case.memory()
        seconds = case.time(self.device_model(target.accelerator))
        if target.num_devices == 1 and target.accelerator.name in self.measured:
            kernels = seconds.source.partition(", ")[0]
            timed = self.measured[target.accelerator.name]
            seconds = replace(seconds, expected=timed, source=f"{kernels}, timed")
        flops, model_flops = self.flops(case.experiment)
        peaks = target.accelerator.peak_flops
        peak = peaks.get(case.experiment.precision, peaks["float32"])
        train = case.compiled.get("train")
        run = self.run_time(case, seconds.expected)
        fits = memory.fits
        refusal = next((c.reason for c in case.compiled.values() if c.status == "too large"), "")
        usd = target.usd_per_hour
        return Row(
            name=target.name,
            status="ok" if fits else "does not fit",
            reason="" if fits else refusal or too_large(memory, target.accelerator),
            target=target,
            mesh=case.layout.described,
            memory=memory,
            flops_per_step=flops,
            time=seconds,
            eval_seconds=self.eval_batch_seconds(case),
            collectives=tuple(
                train.collectives if train is not None and train.status == "ok" else case.step.collectives()
            ),
            compile_seconds=run.compile,
            run_seconds=run.total,
            run=run,
            usd_per_run=None if usd is None else usd * run.total / 3600,
            mfu=model_flops / seconds.expected / (peak * target.num_devices) if seconds.expected else None,
            peaks={"flops": peak, "bytes_per_second": target.accelerator.memory_bandwidth},
            missing=case.missing,
        )


def _outcome(compiled: Mapping[str, Compiled]) -> str:
    statuses = {program.status for program in compiled.values()}
    if "failed" in statuses:
        return "failed"
    return "does not fit" if "too large" in statuses else "compiled"
