"""An experiment laid out on a target, and what shapes and the target's compiler say of it."""

from collections.abc import Mapping
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
        step: what shapes say.
        programs: to compile.
        compiled: by program; empty before, or without a compiler.
        missing: why it was not compiled.
        lowering_seconds: that tracing and lowering the programs took here.
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
        """Where its arrays lie."""
        return self.programs.layout

    @property
    def compile_seconds(self) -> float | None:
        """Seconds that lowering and compiling the programs took here; None if a program was not compiled."""
        if not self.compiled or any(program.status == "failed" for program in self.compiled.values()):
            return None
        return self.lowering_seconds + sum(program.seconds for program in self.compiled.values())

    @property
    def limit_bytes(self) -> int:
        """Of a device, what a program can use."""
        return self.target.accelerator.usable_bytes

    def memory(self) -> Memory:
        """Return what a device holds. Whether that fits is what the target's compiler says, where it says it."""
        step = self.step
        total, source, counted = device_total(
            self.compiled, step.total_bytes, self.limit_bytes, rules=self.target.accelerator.platform == "tpu"
        )
        train = self.compiled.get("train")
        of_training = train.memory if train is not None and source == "compiled" else None
        activations = step.activations_bytes
        if of_training is not None:
            activations = max(0, of_training["temp"] - step.gradients_bytes)
        return Memory(
            weights=step.weights_bytes,
            optimizer=step.optimizer_bytes,
            model_state=step.model_state_bytes,
            data=step.data_bytes,
            gradients=step.gradients_bytes,
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
        """Whether it fits: its bytes against the limit."""
        return self.memory().fits

    def time(self, model: DeviceModel | None) -> StepTime:
        """Estimate a training step."""
        train = self.compiled.get("train")
        if train is not None and train.status == "ok":
            kernels, collectives, source = train.kernels, train.collectives, "compiled"
        else:
            kernels, collectives, source = tuple(self.step.kernels()), tuple(self.step.collectives()), "modelled"
        return step_time(kernels, collectives, self.target, model=model, source=source)


def device_total(
    programs: Mapping[str, Compiled], modelled: int, limit: int, *, rules: bool
) -> tuple[int, str, dict[str, int] | None]:
    """Return the bytes of a device such that they are within the limit exactly where the programs fit.

    Args:
        programs: by name, what a compiler said of them; empty without one.
        modelled: bytes by shapes, for what no compiler has counted.
        limit: bytes that a program can use.
        rules: whether the compiler refuses what does not fit, as TPUs' does: then its verdict stands.

    Returns:
        The bytes of the program that takes most; their source: "compiled", "accepted" where a compiler that rules took
        a program and gave no count within the limit, which is then all that is known, or "modelled"; and the parts that
        were counted of that program.
    """
    train = programs.get("train")
    refused = any(program.status == "too large" for program in programs.values())
    counted = [
        (c.total_bytes, c.memory) for c in programs.values() if c.status != "failed" and c.total_bytes is not None
    ]
    if train is None or train.status == "failed" or not counted:
        return max(modelled, limit + 1) if refused else modelled, "modelled", None
    total, parts = max(counted, key=lambda count: count[0])
    if refused:
        # What is required is told in rounded figures.
        return max(total, limit + 1), "compiled", parts
    if rules and total > limit and all(program.status == "ok" for program in programs.values()):
        return limit, "accepted", None
    return total, "compiled", parts


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
