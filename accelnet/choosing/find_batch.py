"""Which batch size: the critical one, from the noise of gradients, and the largest that fits on this device."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet import runtime
from accelnet.arguments import flags, integer
from accelnet.choosing.find_batch_page import page
from accelnet.data.abstract_feed import AbstractFeed
from accelnet.errors import UserError
from accelnet.experiment import Experiment, check_experiment
from accelnet.json_file import plain_value
from accelnet.parallel.memory import free_bytes
from accelnet.training.compiled import Program
from accelnet.training.initial import initial_arrays
from accelnet.training.program import prepare
from accelnet.training.progress import make_progress
from accelnet.training.record import write_report
from accelnet.training.step import make_gradient
from accelnet.training.writable import check_workdir

NUM_BATCHES = 32
_CHUNK_STEPS = 100
_FAR_EPOCH = 10_000  # whose order no training of this length has met


@dataclass(frozen=True)
class NoiseScale:
    """The ratio of gradient noise to gradient at one step: the batch size at which they are equal.

    Attributes:
        step: Step of the training.
        value: Number of examples; NaN where the gradient is too small to be seen in the noise.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    step: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BatchSizes:
    """What was found.

    Attributes:
        experiment: Name of the experiment.
        batch_size: Batch size of the experiment.
        critical: Geometric mean of the noise scales over the training, examples; NaN where none could be measured.
        scales: Noise scales along the training.
        largest: Largest batch that fits on this device, at most the training split.
        largest_bytes: Memory that its training takes.
        limit_bytes: Memory that the device has.
        reason: Explanation, one paragraph.
    """

    experiment: str
    batch_size: int
    critical: float
    scales: tuple[NoiseScale, ...]
    largest: int
    largest_bytes: int
    limit_bytes: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return plain_value(asdict(self))


def find_batch(
    experiment: Experiment, *, points: int = 6, workdir: str | Path | None = None, progress: bool = True
) -> BatchSizes:
    """Measure the gradient noise scale along a training, and find the largest batch that fits.

    A batch far below the noise scale wastes no examples, one far above it saves no steps: at it, both are twice their
    least.

    Args:
        experiment: What is trained, once, with its own batch size.
        points: Number of steps at which the noise is measured, at least 1.
        workdir: Directory of batch.json and report.html. None writes nothing.
        progress: Show a progress display on standard error.

    Raises:
        UserError: if a batch is the whole training split, or `points` is below 1.

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, equation 2.9 and appendix A.1.
    """
    check_experiment(experiment)
    integer("points", points, 1)
    flags(progress=progress)
    workdir = check_workdir(workdir)
    if experiment.order.batch_size * 2 > experiment.order.num_examples:
        raise UserError(
            f"a batch has {experiment.order.batch_size} of {experiment.order.num_examples} examples, and the noise "
            "shows between batches: give a batch size of at most half the training split"
        )
    runtime.prepare()
    scales = noise_scales(experiment, points, progress=progress)
    known = [scale.value for scale in scales if math.isfinite(scale.value)]
    critical = float(np.exp(np.mean(np.log(known)))) if known else math.nan
    limit = free_bytes(jax.local_devices()[:1])
    largest, needed = largest_batch(experiment, limit)
    size = experiment.order.batch_size
    reason = _explain(scales, critical, size, largest)
    found = BatchSizes(experiment.name, size, critical, scales, largest, needed, limit, reason)
    if workdir is not None:
        write_report(workdir, "batch", found.to_dict(), page(found.to_dict()))
    return found


def noise_scales(experiment: Experiment, points: int, *, progress: bool = True) -> tuple[NoiseScale, ...]:
    """Train an experiment once and measure the noise scale at equally distant steps, the first one included."""
    feed, programs = prepare(experiment)
    if feed.max_steps is not None:
        raise UserError("the noise of gradients is measured with the data on the device, and they do not fit there")
    total = experiment.total_steps
    steps = np.unique(np.linspace(0, total, points + 1).astype(int)[:-1])
    display = make_progress(experiment.name, total, show=progress)
    try:
        start = programs.starting_from(initial_arrays(experiment, programs.abstract_state))
        state, operand = start(np.uint32(experiment.seed)), feed.train_operand(0, 1)
        products = Program("noise", make_products(experiment, feed), (programs.abstract_state, feed.abstract()[0]))
        scales, done = [], 0
        for step in steps:
            while done < step:
                length = min(int(step) - done, _CHUNK_STEPS)
                state, report = programs.train(state, operand, np.int32(length), np.bool_(done == 0))
                done += length
                display.update(done, float(report["loss"]))
                if report["failure"].happened:
                    raise UserError(f"the training diverged before step {done}: tune the learning rate first")
            gram = np.asarray(products(state, operand), np.float64)
            order = experiment.order
            scales.append(noise_scale(gram, order.batch_size, int(step), num_examples=order.num_examples))
    finally:
        display.close()
        feed.close()
    return tuple(scales)


def make_products(experiment: Experiment, feed: AbstractFeed) -> Any:
    """Return `products(state, operand)`: inner products of the gradients of independent batches, float32 [n, n]."""
    gradient, order = make_gradient(experiment), experiment.order
    whole = order.num_examples // order.batch_size  # the last batch of an epoch may be smaller

    def products(state: Any, operand: Any) -> jax.Array:
        def of_batch(number: jax.Array) -> jax.Array:
            # A batch of its own epoch each: those of one epoch have no example in common.
            step = (_FAR_EPOCH + number) * order.steps_per_epoch + number % whole

            def microbatch(arrays: Any, part_number: Any, part: Any) -> Any:
                return feed.train_batch(arrays, jnp.int32(0), step, part_number, state.seed, part)

            grads, *_ = gradient(state.replace(step=step), microbatch, operand)
            return jnp.concatenate([leaf.ravel().astype(jnp.float32) for leaf in jax.tree.leaves(grads)])

        rows = jax.lax.map(of_batch, jnp.arange(NUM_BATCHES, dtype=jnp.int32))
        return jnp.matmul(rows, rows.T, precision="highest")

    return products


def noise_scale(gram: np.ndarray, batch_size: int, step: int = 0, *, num_examples: int | None = None) -> NoiseScale:
    """Return the noise scale from the inner products of n batches' gradients.

    |G|^2 is the mean product of two different gradients, without bias. What the squares are above that is
    `tr(S) / b (N - b) / (N - 1)`, since no batch holds an example twice: one of all N has no noise. The interval is the
    jackknife's, of the logarithm.

    Args:
        gram: Inner products, float [n, n].
        batch_size: Examples of each batch, b.
        step: Step of the training.
        num_examples: Examples of which each batch is drawn, N. None: so many that no example is drawn twice anyway.

    Example:
        >>> scale = noise_scale(np.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]), 8)
        >>> scale.value
        8.0

    Source: Cochran, "Sampling techniques", 1977, theorem 2.2, for batches without repetition.
    """
    size = batch_size if num_examples is None else batch_size * (num_examples - 1) / (num_examples - batch_size)

    def ratio(gram: np.ndarray) -> float:
        number = len(gram)
        signal = (gram.sum() - np.trace(gram)) / (number * (number - 1))
        noise = np.trace(gram) / number - signal
        return size * noise / signal if signal > 0 and noise > 0 else math.nan

    number, value = len(gram), ratio(gram)
    left = np.log([ratio(np.delete(np.delete(gram, i, 0), i, 1)) for i in range(number)])
    error = math.sqrt((number - 1) / number * np.sum((left - left.mean()) ** 2))
    if not (math.isfinite(value) and math.isfinite(error)):
        return NoiseScale(step, math.nan, math.nan, math.nan)
    return NoiseScale(step, float(value), float(value * math.exp(-1.96 * error)), float(value * math.exp(1.96 * error)))


def largest_batch(experiment: Experiment, limit_bytes: int) -> tuple[int, int]:
    """Return the largest batch, in one part, whose training fits, and its bytes by the compiled program's own count.

    Raises:
        UserError: if not even a batch of one example fits.
    """

    def bytes_of(size: int) -> int:
        _, programs = prepare(experiment.replace(batch_size=size, microbatch_size=None))
        return programs.train.num_bytes

    most = experiment.order.num_examples
    small = max(1, min(experiment.order.batch_size, most // 2))
    # Activations grow with the batch, the rest does not: two sizes tell where the limit is.
    sizes = {size: bytes_of(size) for size in (small, min(most, 2 * small))}
    (a, at_a), (b, at_b) = sizes.items()
    slope = max((at_b - at_a) / (b - a), 1.0)
    size = int(min(most, max(1, a + (limit_bytes - at_a) / slope)))
    while True:
        needed = sizes[size] if size in sizes else bytes_of(size)
        if needed <= limit_bytes:
            return size, needed
        if size == 1:
            raise UserError(f"one example takes {needed:,} bytes of the device, and {limit_bytes:,} are free")
        size = max(1, int(0.9 * size))


def _explain(scales: tuple[NoiseScale, ...], critical: float, size: int, largest: int) -> str:
    known = [scale for scale in scales if math.isfinite(scale.value)]
    if not known:
        return (
            f"The gradient cannot be seen in the noise of {NUM_BATCHES} batches of {size}: the critical batch size is "
            f"well above {size}. {largest} examples fit."
        )
    first, last = known[0], known[-1]
    said = (
        f"The critical batch size is about {_count(critical)}: there the noise of the gradient equals the gradient. "
        "Smaller batches learn as much per example, larger ones hardly more per step. It was "
        f"{_count(first.value)} ({_count(first.low)} to {_count(first.high)}) at step {first.step} and "
        f"{_count(last.value)} ({_count(last.low)} to {_count(last.high)}) at step {last.step}. "
    )
    if critical > 2 * size:
        advice = f"The batch of {size} could be larger"
    elif critical < size / 2:
        advice = f"The batch of {size} is larger than need be"
    else:
        advice = f"The batch of {size} is about right"
    return f"{said}{advice}; {largest} examples fit on this device."


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
