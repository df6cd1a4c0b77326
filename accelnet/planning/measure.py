"""Measure the device at hand: products of a model's shapes, memory, arithmetic, starting a kernel, a whole step.

Every small program runs in a loop on the device, as it does inside a chunk of steps: a call costs more than most of
them. What is measured is kept in the user's cache and used by `plan` for this device from then on.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.experiment import Experiment
from accelnet.ops.flops import Product
from accelnet.planning.calibration import load_calibration, measured_model, save_calibration
from accelnet.planning.kernels import Kernel
from accelnet.planning.planner import Planner
from accelnet.planning.roofline import model_of, step_time
from accelnet.planning.targets import Target
from accelnet.training.program import prepare

# A measurement takes at least so long, several times over.
_SECONDS = 0.03
_REPEATS = 5
# Of a model's products the dearest, by FLOPs.
_MOST_PRODUCTS = 48
# Sets of operands that take turns.
_MOST_SETS = 16
# Bytes that a kernel touches: from a first-level cache to main memory.
_LARGEST_FOOTPRINT = 1 << 28
_SIZES = tuple(1 << power for power in range(13, 28, 3))


@dataclass(frozen=True)
class Measurement:
    """What was measured, beside what was predicted before.

    Attributes:
        device: name of the accelerator.
        step_seconds: of a training step, the least of several, as of the parts: what else the machine does only adds.
        predicted_seconds: by the model of the measured parts.
        facts_seconds: by the model of the device's facts alone.
        parts: per part: "part", "measured", "facts" (seconds).
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
        from accelnet.report.numbers import duration

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
        experiment: whose products and step are measured; one device of the default platform computes.
        target: what this machine is, as of `this_machine`.
        say: progress.
        keep: whether the measurements are stored, for `plan` to use.

    Returns:
        The measurement.

    Raises:
        UserError: if the device's compiler fails.

    Source: original.
    """
    accelerator = target.accelerator
    say("compiling the step")
    kernels, footprint = _compiled(experiment, target)
    launch = _launch_seconds()
    rows = {}
    products = _dearest(kernels)
    for number, product in enumerate(products):
        say(f"measuring products: {number + 1} of {len(products)}")
        rows[product] = max(_product_seconds(product, footprint) - launch, 1e-9)
    cores = len(os.sched_getaffinity(0)) if accelerator.platform == "cpu" else 1
    memory: dict[str, dict[int, list[list[float]]]] = {}
    for kind, make in (("elementwise", _scale), ("reduction", _reduce), ("move", _transpose), ("gather", _gather)):
        for threads in dict.fromkeys((1, cores)):
            say(f"measuring memory: {kind}, {threads} thread{'s' if threads > 1 else ''}")
            # What starting it costs is counted apart.
            memory.setdefault(kind, {})[threads] = [
                [size, max(make(size, footprint, threads) - launch, 1e-9)] for size in _SIZES
            ]
    values = {
        "products": [[*product, seconds] for product, seconds in rows.items()],
        "memory": memory,
        "element_seconds": _element_seconds(),
        "transcendental_seconds": _transcendental_seconds(),
        "launch_seconds": launch,
        "threads": cores,
    }
    stored = load_calibration(accelerator.name)
    if stored is not None:
        # Products of other models stay.
        values["products"] += [row for row in stored["products"] if Product(*row[:5]) not in rows]
    if keep:
        save_calibration(accelerator.name, values)
    say("measuring the step")
    seconds = _step_seconds(experiment)
    model, facts = measured_model(values), model_of(accelerator)
    parts = [
        {
            "part": f"{p.m} x {p.k} times {p.k} x {p.n}, {p.batch} of {p.dtype}",
            "measured": rows[p],
            "facts": facts.product(p),
        }
        for p in products[:8]
    ]
    parts += [
        {"part": f"{kind}, {int(size):,} bytes", "measured": seconds, "facts": facts.memory(int(size), kind, 1)}
        for kind, curves in memory.items()
        for size, seconds in curves[cores][2::2]
    ]
    parts.append({"part": "starting a kernel", "measured": launch, "facts": facts.launch})
    return Measurement(
        device=accelerator.name,
        step_seconds=seconds,
        predicted_seconds=step_time(kernels, (), target, model=model).expected,
        facts_seconds=step_time(kernels, (), target).expected,
        parts=tuple(parts),
    )


def _compiled(experiment: Experiment, target: Target) -> tuple[Sequence[Kernel], int]:
    """Return the kernels of an experiment's step, and the bytes that its program holds."""
    planner = Planner(experiment, None)
    case = planner.case(target)
    planner.compile([case])
    compiled = case.compiled.get("train")
    kernels = compiled.kernels if compiled is not None and compiled.status == "ok" else case.step.kernels()
    return kernels, min(case.memory().total, _LARGEST_FOOTPRINT)


def _dearest(kernels: Sequence[Kernel]) -> list[Product]:
    products = {product for kernel in kernels for product in kernel.products}
    return sorted(products, key=lambda product: (-product.flops, product))[:_MOST_PRODUCTS]


def _loop_seconds(body: Callable[[Any], Any], start: Any, threads: int | None = None) -> float:
    """Return the seconds of one trip through a loop on the device; `threads` of 1 keeps a CPU's kernels whole."""

    def run(number: jax.Array, carry: Any) -> Any:
        # Without the barrier XLA would see that every trip does the same.
        return jax.lax.fori_loop(0, number, lambda _, carry: jax.lax.optimization_barrier(body(carry)), carry)

    options: dict[str, str | bool] | None = None
    if threads == 1 and jax.default_backend() == "cpu":
        options = {"xla_cpu_multi_thread_eigen": False}
    compiled = jax.jit(run).lower(np.int32(0), start).compile(compiler_options=options)

    def seconds(number: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(np.int32(number), start))
        return time.perf_counter() - begin

    number, base = 1, min(seconds(0) for _ in range(3))
    while (taken := seconds(number) - base) < _SECONDS:
        number = int(number * max(2.0, min(20.0, 1.2 * _SECONDS / max(taken, 1e-6))))
    # From the difference of two lengths, so that what a call costs, such as copying its arguments, does not count.
    slopes = [(seconds(3 * number) - seconds(number)) / (2 * number) for _ in range(_REPEATS)]
    # The least: what else the machine does only adds.
    return max(min(slopes), 1e-10)


def _rotated(
    make: Callable[[], Any], body: Callable[[Any], Any], size: int, footprint: int, threads: int | None = None
) -> float:
    """Return the seconds of a kernel that finds its operands where a program of this footprint leaves them.

    A loop over one set of operands would find them in the nearest cache: here as many sets take turns as the
    program's memory holds.
    """
    number = max(1, min(_MOST_SETS, footprint // max(size, 1)))
    start = [make() for _ in range(number)]
    return _loop_seconds(lambda carry: [body(part) for part in carry], start, threads) / number


def _polynomial(x: jax.Array, degree: int) -> jax.Array:
    y = x
    for _ in range(degree):
        y = y * x + 0.5
    return y


def _product_seconds(product: Product, footprint: int) -> float:
    dtype = jnp.dtype(product.dtype)
    lead = () if product.batch == 1 else (product.batch,)

    def make() -> Any:
        a, b = jnp.ones((*lead, product.m, product.k), dtype), jnp.ones((*lead, product.k, product.n), dtype)
        return a, b, jnp.zeros((*lead, product.m, product.n), dtype)

    size = (product.m * product.k + product.k * product.n + product.m * product.n) * product.batch * dtype.itemsize
    return _rotated(make, lambda part: (part[0], part[1], part[0] @ part[1]), size, footprint)


def _scale(size: int, footprint: int, threads: int) -> float:
    def make() -> Any:
        return jnp.ones((size // 8,), jnp.float32), jnp.ones((size // 8,), jnp.float32)

    # Not in place: one array is read, another written.
    return _rotated(make, lambda part: (part[0], part[0] * 0.999 + 0.001), size, footprint, threads)


def _reduce(size: int, footprint: int, threads: int) -> float:
    rows = max(1, size // (4 * 64))
    return _rotated(
        lambda: (jnp.ones((rows, 64), jnp.float32), jnp.zeros((64,), jnp.float32)),
        lambda part: (part[0], part[0].sum(0)),
        size,
        footprint,
        threads,
    )


def _transpose(size: int, footprint: int, threads: int) -> float:
    side = max(1, size // (8 * 64))
    return _rotated(
        lambda: (jnp.ones((side, 64), jnp.float32), jnp.ones((64, side), jnp.float32)),
        lambda part: (part[0], part[0].T),
        size,
        footprint,
        threads,
    )


def _gather(size: int, footprint: int, threads: int) -> float:
    rows = max(1, size // (8 * 64))
    table = jnp.ones((max(rows, 1 << 12), 64), jnp.float32)
    indices = jnp.asarray(np.random.default_rng(0).permutation(len(table))[:rows], jnp.int32)
    return _rotated(
        lambda: (table, indices, jnp.ones((rows, 64), jnp.float32)),
        lambda part: (part[0], part[1], jnp.take(part[0], part[1], axis=0, mode="clip")),
        size,
        footprint,
        threads,
    )


def _element_seconds() -> float:
    x = jnp.full((1 << 16,), 0.5, jnp.float32)
    return _loop_seconds(lambda x: _polynomial(x, 32), x, 1) / (64 * x.size)


def _transcendental_seconds() -> float:
    x = jnp.full((1 << 16,), 0.5, jnp.float32)
    return _loop_seconds(lambda x: jnp.exp(-x), x, 1) / x.size


def _launch_seconds() -> float:
    """Return what a kernel costs that does nothing worth speaking of, from a chain that cannot be fused."""
    x, w = jnp.ones((8, 8), jnp.float32), jnp.eye(8, dtype=jnp.float32)
    # XLA makes one function of a loop over some kilobytes, without kernels to start: such a loop is not meant.
    large = jnp.zeros((1 << 20,), jnp.float32)

    def chain(carry: Any) -> Any:
        x, w, large = carry
        for _ in range(16):
            x = jax.lax.optimization_barrier(x @ w)
        return x, w, large

    return _loop_seconds(chain, (x, w, large)) / 16


def _step_seconds(experiment: Experiment) -> float:
    feed, programs = prepare(experiment)
    try:
        state = programs.init(np.uint32(experiment.seed))
        length, taken = 1, 0.0
        most = feed.max_steps or 1 << 30
        times = []
        while len(times) < _REPEATS:
            operand = feed.train_operand(int(state.step), length)
            begin = time.perf_counter()
            state, report = programs.train(state, operand, np.int32(length), np.bool_(True))
            jax.block_until_ready(report)
            taken = time.perf_counter() - begin
            if taken < 10 * _SECONDS and length < most:
                length = min(most, length * 2)
            else:
                times.append(taken / length)
        return min(times)
    finally:
        feed.close()
