"""An experiment laid out on a target, and what shapes and the target's compiler say of it."""

from dataclasses import dataclass, field

from accelnet.experiment import Experiment
from accelnet.parallel.layout import Layout
from accelnet.planning.abstract import AbstractStep
from accelnet.planning.compile import Compiled
from accelnet.planning.device import DeviceModel
from accelnet.planning.roofline import StepTime, step_time
from accelnet.planning.rows import Memory
from accelnet.planning.targets import Accelerator, Target
from accelnet.report.numbers import size
from accelnet.training.program import Programs


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
        """Of a device, what a program can use."""
        return self.target.accelerator.usable_bytes

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
        counted = [c for c in self.compiled.values() if c.status != "failed" and c.total_bytes is not None]
        if train is None or train.status == "failed" or not counted:
            total = step.total_bytes
            refused = train is not None and train.status == "too large"
            return Memory(
                **parts, activations=step.activations_bytes, total=max(total, limit + 1) if refused else total,
                limit=limit, source="modelled",
            )  # fmt: skip
        largest = max(counted, key=lambda c: c.total_bytes or 0)
        count = largest.memory
        of_training = train.memory
        return Memory(
            **parts,
            activations=(
                step.activations_bytes if of_training is None else max(0, of_training["temp"] - parts["gradients"])
            ),
            arguments=None if count is None else count["argument"],
            results=None if count is None else count["output"] - count["alias"],
            temporaries=None if count is None else count["temp"],
            total=largest.total_bytes or 0,
            limit=limit,
            source="compiled",
        )

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


def too_large(memory: Memory, accelerator: Accelerator) -> str:
    """Say in words, part by part, what a device would have to hold, and what it can."""
    parts = {"arguments": memory.arguments, "results": memory.results, "temporaries": memory.temporaries}
    told = " + ".join(f"{name} {size(part)}" for name, part in parts.items() if part is not None)
    limit = size(memory.limit)
    if accelerator.usable_bytes < accelerator.memory_bytes:
        limit += (
            f", {accelerator.usable_bytes / accelerator.memory_bytes:.0%} of {size(accelerator.memory_bytes)}, which "
            "is what JAX takes ($XLA_CLIENT_MEM_FRACTION changes it)"
        )
    return f"{size(memory.total)}{f' ({told})' if told else ''} on each device, where a program can use {limit}"
