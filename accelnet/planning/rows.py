"""The answers of a plan: one row per target, and what a device's memory holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from accelnet.planning.compiled.compile import Compiled
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.modelled.roofline import StepTime
from accelnet.planning.modelled.run_time import RunTime
from accelnet.planning.targets.accelerators import Accelerator
from accelnet.planning.targets.target import Target
from accelnet.wording import size


@dataclass(frozen=True)
class Memory:
    """What one device holds, in bytes.

    Attributes:
        model_state: Batch statistics and the like.
        data: The data set, or the batches of a chunk.
        gradients: Gradients before they are exchanged; modelled.
        activations: What the backward pass needs; modelled, or what remains of the compiled temporaries.
        total: Compiled total of training or evaluation, whichever takes more: arguments, results and temporaries; or
            the sum of the parts above.
        limit: Bytes that a program can use.
        source: Source of the total: "compiled", "modelled", or "accepted": the compiler took the program and did not
            say how much it takes, so that the total is the limit.
        arguments: Arguments of that program; compiled.
        results: Results of it that do not take an argument's place; compiled.
        temporaries: Temporaries of it; compiled.
    """

    weights: int
    optimizer: int
    model_state: int
    data: int
    gradients: int
    activations: int
    total: int
    limit: int
    source: str
    arguments: int | None = None
    results: int | None = None
    temporaries: int | None = None

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
        status: "ok", "does not fit", or "failed" (then nothing else is known).
        reason: Explanation, where the status is not "ok".
        flops_per_step: FLOPs of all devices.
        eval_seconds: Expected time of one evaluation batch.
        compile_seconds: Time of lowering and compiling both programs; None if they were not compiled.
        run_seconds: Expected time of the whole run: the sum of the parts of `run` that are known.
        run: Parts of that time.
        usd_per_run: Price of it; None if none is known.
        mfu: FLOPs of the plain program's matrix products, at the expected time, as a share of the devices' peak.
        remedies: Changes that would make it fit.
        missing: Reason why it was not compiled, and the command that adds a compiler.
        peaks: Peaks of a device: "flops", FLOP/s in the run's dtype, and "bytes_per_second" of its memory.
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
    collectives: tuple[DeviceOp, ...] = ()
    compile_seconds: float | None = None
    run_seconds: float | None = None
    run: RunTime | None = None
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
        """Return JSON values, of the schema that the guide documents."""
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
                {"kind": op.opcode, "bytes": op.bytes, "count": op.count, "devices": op.group}
                for op in self.collectives
            ],
            "mfu": self.mfu,
            "run_seconds": self.run_seconds,
            "run_parts": None if self.run is None else self.run.to_dict(),
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


def device_total(
    programs: Mapping[str, Compiled], modelled: int, limit: int, *, rules: bool
) -> tuple[int, str, dict[str, int] | None]:
    """Return the bytes of a device such that they are within the limit exactly where the programs fit.

    Args:
        programs: Answers of a compiler by program; empty without one.
        modelled: Bytes by shapes, for what no compiler has counted.
        limit: Bytes that a program can use.
        rules: Whether the compiler refuses what does not fit, as TPUs' does: then its verdict stands.

    Returns:
        The bytes of the program that takes most; their source, which is "compiled", "modelled", or "accepted" where a
        compiler that rules took a program and counted more than the limit, so that nothing else is known; and the parts
        that were counted of that program.
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
        # The compiler rounds the figure that it requires.
        return max(total, limit + 1), "compiled", parts
    if rules and total > limit and all(program.status == "ok" for program in programs.values()):
        return limit, "accepted", None
    return total, "compiled", parts


def too_large(memory: Memory, accelerator: Accelerator) -> str:
    """Describe what a device would have to hold, part by part, and what it can hold."""
    parts = {"arguments": memory.arguments, "results": memory.results, "temporaries": memory.temporaries}
    told = " + ".join(f"{name} {size(part)}" for name, part in parts.items() if part is not None)
    limit = size(memory.limit)
    if accelerator.usable_bytes < accelerator.memory_bytes:
        limit += (
            f", {accelerator.usable_bytes / accelerator.memory_bytes:.0%} of {size(accelerator.memory_bytes)}, which "
            "is what JAX takes ($XLA_CLIENT_MEM_FRACTION changes it)"
        )
    return f"{size(memory.total)}{f' ({told})' if told else ''} on each device, where a program can use {limit}"
