"""The answers of a plan: one row per target, and what a device's memory holds."""

from dataclasses import dataclass, field
from typing import Any, Literal

from accelnet.planning.kernels import Kernel
from accelnet.planning.roofline import StepTime
from accelnet.planning.run_time import RunTime
from accelnet.planning.targets import Target


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
        total: compiled, of training or evaluation, whichever takes more: arguments, results and temporaries; or the
            sum of the parts above.
        limit: that a program can use.
        source: of the total: "compiled", "modelled", or "accepted": the compiler took the program and did not say how
            much it takes, so that the total is the limit.
        arguments: of that program; compiled.
        results: of it, those left out that take an argument's place; compiled.
        temporaries: of it; compiled.
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
        name: of the target.
        status: "ok", "does not fit", or "failed" (then nothing else is known).
        reason: in words, where it is not "ok".
        target: the devices; None if the name was not understood.
        mesh: of the run there.
        memory: of one device.
        flops_per_step: of all devices.
        time: of a training step.
        eval_seconds: expected, of one evaluation batch.
        collectives: of one step.
        compile_seconds: of both programs, lowering them included; None if they were not compiled.
        run_seconds: expected, of the whole run: the sum of the parts of `run` that are known.
        run: where that time goes.
        usd_per_run: for it; None without a price.
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
