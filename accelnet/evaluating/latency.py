"""Latency of answers, from arrays on the host to outputs on the host, and the time of a training step."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from accelnet.evaluating.predictions import make_forward
from accelnet.experiment import Experiment
from accelnet.training.fit import fit
from accelnet.training.run import Run

PERCENTILES = (50, 90, 99)
_SECONDS = 1.0
_MOST_CALLS = 1000
_LEAST_CALLS = 10
_WARM_UP_CALLS = 3
_FIRST_STEPS = 64
_MOST_STEPS = 20_000


def measure_latency(run: Run, batch_sizes: Sequence[int], seconds: float = _SECONDS) -> list[dict[str, Any]]:
    """Time the compiled model on batches of raw examples, one call after the other, as a server would call it.

    The time is from NumPy arrays to NumPy outputs: preparation and transfers count, compilation does not.

    Args:
        run: Run that was trained, or restored by `evaluate`.
        batch_sizes: Batch sizes, each at least 1.
        seconds: Time to spend on each; at least 10 calls and at most 1,000.

    Returns:
        For each batch size "batch_size", "calls", "p50", "p90", "p99" (seconds per call) and "examples_per_second" at
        the median.
    """
    data, forward = run.experiment.data, make_forward(run.experiment)
    program = jax.jit(lambda params, model_state, batch: forward(params, model_state, batch)[0])
    weights = jax.device_put((run.params, run.model_state))

    def timed(size: int) -> dict[str, Any]:
        batch = {**data.take(np.arange(size) % data.num_rows), "mask": np.ones(size, bool)}
        for _ in range(_WARM_UP_CALLS):
            jax.device_get(program(*weights, batch))
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < _LEAST_CALLS or (len(times) < _MOST_CALLS and time.perf_counter() - started < seconds):
            start = time.perf_counter()
            jax.device_get(program(*weights, batch))
            times.append(time.perf_counter() - start)
        found = dict(zip((f"p{p}" for p in PERCENTILES), np.percentile(times, PERCENTILES).tolist(), strict=True))
        return {"batch_size": size, "calls": len(times), **found, "examples_per_second": size / found["p50"]}

    return [timed(size) for size in batch_sizes]


def measure_step(experiment: Experiment, seconds: float = _SECONDS) -> tuple[Run, float]:
    """Train for about `seconds` on this machine's devices, without the test split, and time a step.

    Args:
        experiment: Experiment to train.
        seconds: Time of training, without compilation.

    Returns:
        The `Run`, of few steps, and the seconds of one step.
    """
    splits = {name: rows for name, rows in experiment.data.splits.items() if name != "test"}
    data = dataclasses.replace(experiment.data, splits=splits)

    def train(steps: int) -> tuple[Run, float]:
        run = fit(experiment.replace(data=data, epochs=None, steps=steps, early_stopping=None), progress=False)
        return run, run.result["timing"]["train_seconds"] / run.step

    run, each = train(_FIRST_STEPS)
    steps = min(int(seconds / max(each, 1e-7)), _MOST_STEPS)
    return train(steps) if steps > 2 * run.step else (run, each)
