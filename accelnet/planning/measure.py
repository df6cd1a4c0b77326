"""Measure the device at hand: the parts of an experiment's step, and the step itself.

What is measured is kept in the user's cache and used by `plan` for this device from then on.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from accelnet.experiment import Experiment
from accelnet.ops.flops import Product
from accelnet.planning.compiled.calls import call_flops, find_calls
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.modelled import probes
from accelnet.planning.modelled.calibration import measured_model, save_calibration
from accelnet.planning.modelled.device import DeviceModel, model_of
from accelnet.planning.modelled.roofline import step_time
from accelnet.planning.planner import Planner
from accelnet.planning.targets.target import Target
from accelnet.report.numbers import duration
from accelnet.training.flops import trace_step
from accelnet.training.program import prepare

# At most so many products of a model are measured, the largest by FLOPs.
_MOST_PRODUCTS = 48
_LARGEST_FOOTPRINT = 1 << 28
# Bytes that an operation touches: from a first-level cache to main memory.
_SIZES = tuple(1 << power for power in range(13, 28, 3))
_LEAST = 1e-9


@dataclass(frozen=True)
class Measurement:
    """What was measured, beside what was predicted.

    Attributes:
        step_seconds: Time of a training step, the least of several, as of the parts: what else the machine does only
            adds.
        predicted_seconds: Time by the model of the measured parts.
        facts_seconds: Time by the model of the device's facts alone.
        parts: Parts of the step: "part", "measured", "facts" (seconds).
    """

    device: str
    step_seconds: float
    predicted_seconds: float
    facts_seconds: float
    parts: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return vars(self) | {"parts": list(self.parts)}

    def __str__(self) -> str:
        def error(predicted: float) -> str:
            return f"{duration(predicted)} ({predicted / self.step_seconds - 1:+.0%})"

        lines = [
            f"{self.device}: a step takes {duration(self.step_seconds)}",
            f"  predicted from the measured parts {error(self.predicted_seconds)}, from facts alone "
            + error(self.facts_seconds),
        ]
        lines += [
            f"  {part['part']:<44} measured {duration(part['measured']):>8}   from facts {duration(part['facts']):>8}"
            for part in self.parts
        ]
        return "\n".join(lines)


def measure(
    experiment: Experiment, target: Target, *, say: Callable[[str], None] = lambda _text: None, keep: bool = True
) -> Measurement:
    """Measure the parts of an experiment's step on this device, and the step itself.

    Args:
        experiment: Experiment whose products and step are measured; one device of the default platform computes.
        target: This machine, as of `this_machine`.
        say: Function that is told of the progress.
        keep: Whether the measurements are stored, for `plan` to use.

    Raises:
        UserError: if the device's compiler fails.
    """
    accelerator = target.accelerator
    say("compiling the step")
    ops, footprint = _compiled(experiment, target)
    values = _measure_parts(experiment, ops, footprint, accelerator.platform == "cpu", say)
    if keep:
        save_calibration(accelerator.name, values)
    say("measuring the step")
    seconds = _step_seconds(experiment)
    model = measured_model(values)
    return Measurement(
        device=accelerator.name,
        step_seconds=seconds,
        predicted_seconds=step_time(ops, (), target, model=model).expected,
        facts_seconds=step_time(ops, (), target).expected,
        parts=tuple(_compared(ops, model, model_of(accelerator))),
    )


def _measure_parts(
    experiment: Experiment, ops: Sequence[DeviceOp], footprint: int, threads: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure what `measured_model` is made of; `threads` where operations are divided among a CPU's cores."""
    say("measuring what starting an operation costs")
    launch = probes.launch_seconds()
    cores = len(os.sched_getaffinity(0)) if threads else 1
    dispatch = probes.dispatch_seconds() if cores > 1 else 0.0
    traced = trace_step(experiment)
    products, called = _largest(ops), {op.call for op in ops}
    calls = {call: eq for call, eq in find_calls(traced.gradient, traced.update).items() if call in called}
    of_products, of_calls, memory = [], [], {}
    for number, product in enumerate(products):
        say(f"measuring products: {number + 1} of {len(products)}")
        of_products.append([*product, max(probes.product_seconds(product, footprint) - launch, _LEAST)])
    for number, (call, equation) in enumerate(calls.items()):
        say(f"measuring custom calls: {number + 1} of {len(calls)}")
        seconds = probes.call_seconds(equation, footprint)
        of_calls.append([call, call_flops(equation).total, max(seconds - launch, _LEAST)])
    for kind in probes.MEMORY:
        for number in dict.fromkeys((1, cores)):
            say(f"measuring memory: {kind}, {number} thread{'s' if number > 1 else ''}")
            # What starting it costs is counted apart.
            memory.setdefault(kind, {})[number] = [
                [size, max(probes.memory_seconds(kind, size, footprint, number) - launch, _LEAST)] for size in _SIZES
            ]
    say("measuring arithmetic")
    return {
        "products": of_products,
        "calls": of_calls,
        "memory": memory,
        "element_seconds": probes.element_seconds(),
        "transcendental_seconds": probes.transcendental_seconds(),
        "launch_seconds": launch,
        "dispatch_seconds": dispatch,
        "trip_seconds": probes.trip_seconds(launch),
        "threads": cores,
    }


def _compared(ops: Sequence[DeviceOp], model: DeviceModel, facts: DeviceModel) -> Iterator[dict[str, Any]]:
    """Yield parts with the seconds that were measured and those by the facts."""

    def part(name: str, measured: float, stated: float) -> dict[str, Any]:
        return {"part": name, "measured": measured, "facts": stated}

    for p in _largest(ops)[:8]:
        name = f"{p.m} x {p.k} times {p.k} x {p.n}, {p.batch} of {p.dtype}"
        yield part(name, model.product(p), facts.product(p))
    for op in ops:
        if op.call is not None:
            yield part(f"{op.call.target}, {op.bytes:,} bytes", *(max(of.parts(op).values()) for of in (model, facts)))
    threads = len(os.sched_getaffinity(0))
    for kind in probes.MEMORY:
        for size in _SIZES[2::2]:
            yield part(f"{kind}, {size:,} bytes", *(of.memory(size, kind, threads) for of in (model, facts)))
    yield part("starting an operation", model.launch, facts.launch)
    yield part("a trip through a loop", model.trip, facts.trip)
    yield part("dividing an operation among threads", model.dispatch, facts.dispatch)


def _compiled(experiment: Experiment, target: Target) -> tuple[Sequence[DeviceOp], int]:
    """Return the operations of an experiment's step, and the bytes that its program holds."""
    planner = Planner(experiment, None)
    case = planner.case(target)
    planner.compile([case])
    compiled = case.program("train")
    ops = case.step.ops() if compiled is None else compiled.ops
    return ops, min(case.memory().total, _LARGEST_FOOTPRINT)


def _largest(ops: Sequence[DeviceOp]) -> list[Product]:
    products = {product for op in ops for product in op.products}
    return sorted(products, key=lambda product: (-product.flops, product))[:_MOST_PRODUCTS]


def _step_seconds(experiment: Experiment) -> float:
    feed, programs = prepare(experiment)
    try:
        state = programs.init(np.uint32(experiment.seed))
        length, most, times = 1, feed.max_steps or 1 << 30, []
        while len(times) < probes.REPEATS:
            operand = feed.train_operand(int(state.step), length)
            begin = time.perf_counter()
            state, report = programs.train(state, operand, np.int32(length), np.bool_(True))
            jax.block_until_ready(report)
            taken = time.perf_counter() - begin
            if taken < 10 * probes.SECONDS and length < most:
                length = min(most, length * 2)
            else:
                times.append(taken / length)
        return min(times)
    finally:
        feed.close()
