"""Latency of answers, from arrays on the host to outputs on the host, and the time of a training step."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from accelnet.evaluating.predictions import make_forward
from accelnet.experiment import Experiment
from accelnet.ops import kernels
from accelnet.ops.prepared import Prepared
from accelnet.parallel.memory import fetched
from accelnet.training.fit import fit
from accelnet.training.run import Run

PERCENTILES = (50, 90, 99)
_SECONDS = 1.0
_MOST_CALLS = 1000
_LEAST_CALLS = 10
_WARM_UP_CALLS = 3
_CALLS_OF_A_TURN = 5
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

    def timed(size: int) -> dict[str, Any]:
        answer = make_answer(run, size)
        for _ in range(_WARM_UP_CALLS):
            answer()
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < _LEAST_CALLS or (len(times) < _MOST_CALLS and time.perf_counter() - started < seconds):
            times.append(_seconds_of(answer))
        found = dict(zip((f"p{p}" for p in PERCENTILES), np.percentile(times, PERCENTILES).tolist(), strict=True))
        return {"batch_size": size, "calls": len(times), **found, "examples_per_second": size / found["p50"]}

    return [timed(size) for size in batch_sizes]


def measure_in_turns(answers: Mapping[str, Callable[[], Any]], seconds: float = _SECONDS) -> dict[str, dict[str, Any]]:
    """Time several models in turns, so that what slows the machine for a while slows all of them.

    Args:
        answers: Functions that answer one batch, as of `make_answer`, by name. The others are compared with the first.
        seconds: Time to spend on each.

    Returns:
        By name "p50" (seconds per call, the median), "calls" and "ratio": the median over the turns of the time as a
        multiple of the first one's in the same turn.

    Example:
        >>> found = measure_in_turns({"short": lambda: sum(range(100)), "long": lambda: sum(range(10_000))}, 0.01)
        >>> found["short"]["ratio"], found["long"]["ratio"] > 3
        (1.0, True)
    """
    names = list(answers)
    for answer in answers.values():
        for _ in range(_WARM_UP_CALLS):
            answer()
    longest = max(_seconds_of(answer) for answer in answers.values())
    turns = int(min(max(seconds / max(_CALLS_OF_A_TURN * longest, 1e-9), _LEAST_CALLS), _MOST_CALLS))
    times = np.empty((turns, len(names), _CALLS_OF_A_TURN))
    for turn in range(turns):
        # Each is first, and behind each other one, equally often.
        for place in np.roll(np.arange(len(names)), turn).tolist():
            times[turn, place] = [_seconds_of(answers[names[place]]) for _ in range(_CALLS_OF_A_TURN)]
    own = np.median(times, axis=2)
    ratios = np.median(own / own[:, :1], axis=0)
    return {
        name: {"p50": float(np.median(times[:, place])), "calls": times[:, place].size, "ratio": float(ratios[place])}
        for place, name in enumerate(names)
    }


def inference(function: Callable[[Any, Any], Any], weights: Any) -> Callable[[Any], Any]:
    """Return a function of inputs on the host as a loaded artifact runs it: on a CPU with kernels, weights prepared.

    Args:
        function: Function of weights and inputs, trees of arrays.
        weights: The weights.

    Example:
        >>> double = inference(lambda weights, x: weights * x, np.float32(2))
        >>> float(double(np.float32(3)))
        6.0
    """
    if jax.default_backend() == "cpu" and kernels.load():
        return Prepared(function, fetched(weights))
    return partial(jax.jit(function), jax.device_put(weights))


@dataclasses.dataclass(frozen=True)
class Answer:
    """A model with its weights and a batch of raw examples: a call answers it, from NumPy to NumPy.

    Attributes:
        function: Function of inputs, as of `inference`.
        inputs: Inputs of the batch.
    """

    function: Callable[[Any], Any]
    inputs: Any

    def __call__(self) -> Any:
        outputs = self.function(self.inputs)
        return outputs if isinstance(outputs, np.ndarray) else jax.device_get(outputs)

    @property
    def num_bytes(self) -> int:
        """Memory of an answer by the program's own count: weights, inputs, outputs and temporaries.

        What C++ kernels allocate themselves does not count.
        """
        if isinstance(self.function, Prepared):
            return self.function.num_bytes(self.inputs)
        assert isinstance(self.function, partial)
        program: Any = self.function.func
        memory = program.lower(*self.function.args, self.inputs).compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def make_answer(run: Run, batch_size: int) -> Answer:
    """Compile the model of a run for a batch size.

    Args:
        run: Run that was trained, or restored by `evaluate`.
        batch_size: Number of examples, at least 1.
    """
    data, forward = run.experiment.data, make_forward(run.experiment)
    batch = {**data.take(np.arange(batch_size) % data.num_rows), "mask": np.ones(batch_size, bool)}
    inputs = batch.pop("inputs")

    def outputs(weights: Any, inputs: Any) -> Any:
        params, model_state = weights
        return forward(params, model_state, {**batch, "inputs": inputs})[0]

    answer = Answer(inference(outputs, (run.params, run.model_state)), inputs)
    answer()  # compiles
    return answer


def _seconds_of(answer: Callable[[], Any]) -> float:
    start = time.perf_counter()
    answer()
    return time.perf_counter() - start


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
