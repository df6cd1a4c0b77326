"""What is measured of candidates: bytes, memory, latency in turns, and the paired difference of the metric."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from accelnet.artifact.recipe import flattened
from accelnet.artifact.tensors import pack
from accelnet.compressing.candidate import Candidate
from accelnet.compressing.drop import Drop, Pair, mean_metric, paired_drop, undefined
from accelnet.errors import UserError
from accelnet.evaluating.latency import Answer, make_answer, measure_in_turns
from accelnet.evaluating.predictions import predict
from accelnet.objectives.metric import Mean
from accelnet.planning.plan import plan
from accelnet.training.run import Run

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """A candidate with all that was measured of it.

    Attributes:
        candidate: The candidate.
        bytes: Bytes of its weights as a safetensors file.
        memory_bytes: Memory that answering one evaluation batch takes, by the compiled program's count.
        latency: For each batch size "batch_size", "p50" (seconds), "calls", and "ratio" to the original's in turns.
        value: Metric on the compared examples, NaN where outputs are not finite.
        drop: How much worse it is than the original, None for the original itself.
        share: Cost as a share of the original's: the geometric mean of its bytes and its latencies as shares of these.
        targets: Predictions for other hardware: "name", "eval_batch_seconds", "step_seconds", "fits" and "reason".
    """

    candidate: Candidate
    bytes: int
    memory_bytes: int
    latency: tuple[Mapping[str, Any], ...]
    value: float
    drop: Drop | None
    share: float
    targets: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.candidate.name

    @property
    def run(self) -> Run:
        """The candidate as a run like any other."""
        return self.candidate.run

    @property
    def lost(self) -> float:
        """The drop: 0 of the original, infinite where outputs are not finite."""
        value = 0.0 if self.drop is None else self.drop.value
        return value if math.isfinite(value) else math.inf

    def seconds(self, batch_size: int) -> float:
        """Return the latency at a batch size that was measured."""
        return next(float(one["p50"]) for one in self.latency if one["batch_size"] == batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        one = self.candidate
        return {
            "name": one.name, "how": list(one.how), "compression": one.compression, "training": one.training,
            "parameters": one.cost.parameters, "flops": one.cost.flops, "bytes": self.bytes,
            "memory_bytes": self.memory_bytes, "latency": [dict(row) for row in self.latency], "value": self.value,
            "drop": None if self.drop is None else self.drop.to_dict(), "share": self.share,
            "targets": [dict(row) for row in self.targets],
        }  # fmt: skip


class PairedExamples:
    """The examples of a split, on which every candidate is compared with the original.

    Args:
        original: The original.
        metric: Name of the metric.
        split: Name of the split.
        say: Function that is told what is being done.

    Raises:
        UserError: if the metric has no part for each example, or the original cannot be evaluated.
    """

    def __init__(self, original: Run, metric: str, split: str, say: Say) -> None:
        self.name, self.split, self._say = metric, split, say
        self.metric: Mean = mean_metric(original.experiment.objective, metric)
        self.original = original
        self._known: dict[int, tuple[Run, Pair | None]] = {}
        self._drops: dict[tuple[int, int], Drop] = {}

    @cached_property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.original.experiment.data.splits[self.split])

    def pair(self, run: Run) -> Pair | None:
        """Return what each example adds to the metric's total and weight, float64 [N]; None if that is not finite."""
        if id(run) not in self._known:
            try:
                pair = predict(run, self.split, self._say).sums[self.name]
            except UserError:
                if run is self.original:
                    raise
                pair = None
            self._known[id(run)] = run, pair
        return self._known[id(run)][1]

    def value(self, run: Run) -> float:
        """Return the metric of a run on these examples; NaN where its outputs are not finite."""
        pair = self.pair(run)
        if pair is None:
            return math.nan
        total, weight = (np.float32(np.sum(part)) for part in pair)
        return float(self.metric.compute({"total": jax.numpy.asarray(total), "weight": jax.numpy.asarray(weight)}))

    def cost(self, run: Run) -> float:
        """Return the metric so that lower is better, infinite where it is undefined."""
        value = self.value(run)
        return math.inf if math.isnan(value) else value if self.metric.lower_is_better else -value

    def drop(self, run: Run, num_compared: int) -> Drop:
        """Return how much worse a run is than the original, with a bound that holds for so many at once."""
        key = id(run), num_compared
        if key not in self._drops:
            original, other = self.pair(self.original), self.pair(run)
            assert original is not None
            found = undefined(self.examples, 1.0)
            if other is not None:
                found = paired_drop(self.metric, original, other, num_compared=num_compared)
            self._drops[key] = found
        return self._drops[key]


def weight_bytes(run: Run) -> int:
    """Return the bytes of a run's weights as a safetensors file.

    Args:
        run: The run.
    """
    named = flattened(jax.device_get((run.params, run.model_state)))
    return len(pack({name: np.asarray(one) for name, one in named.items()}))


def measure(
    candidates: Sequence[Candidate],
    comparison: PairedExamples,
    batch_sizes: Sequence[int],
    *,
    seconds: float = 0.5,
    targets: str | None = None,
    say: Say = lambda _: None,
) -> list[Measured]:
    """Measure candidates beside the original, which is the first of them.

    Args:
        candidates: Candidates, the original first.
        comparison: Examples on which they are compared.
        batch_sizes: Batch sizes of the latencies, the last one that of evaluation.
        seconds: Time to spend on each latency.
        targets: Hardware for which predictions are added, as of `accelnet.plan`. None: none.
        say: Function that is told what is being done.
    """
    # Equal networks with other weights run the same program: one of them is timed.
    timed = {one.structure: one.run for one in reversed(candidates)}
    times: dict[str, list[dict[str, Any]]] = {structure: [] for structure in timed}
    answers: dict[str, Answer] = {}
    for batch_size in batch_sizes:
        say(f"latency at batch {batch_size} of {len(timed)} networks in turns")
        answers = {structure: make_answer(run, batch_size) for structure, run in reversed(timed.items())}
        for structure, found in measure_in_turns(answers, seconds).items():
            times[structure].append({"batch_size": batch_size, **found})
    memory = {structure: answer.num_bytes for structure, answer in answers.items()}
    sizes = {one.name: weight_bytes(one.run) for one in candidates}
    first = candidates[0]
    measured: list[Measured] = []
    for one in candidates:
        say(f"{one.name}: {comparison.name} of {comparison.split}")
        ratios = [sizes[one.name] / sizes[first.name], *(row["ratio"] for row in times[one.structure])]
        # Bytes count as much as all latencies together.
        weights = [1.0, *([1 / (len(ratios) - 1)] * (len(ratios) - 1))]
        share = math.exp(float(np.average(np.log(ratios), weights=weights)))
        drop = None if one is first else comparison.drop(one.run, len(candidates) - 1)
        latency, held = tuple(times[one.structure]), memory[one.structure]
        measured.append(Measured(one, sizes[one.name], held, latency, comparison.value(one.run), drop, share))
    if targets is None:
        return measured
    return [replace(one, targets=tuple(_planned(one, targets, say))) for one in measured]


def _planned(one: Measured, targets: str, say: Say) -> list[dict[str, Any]]:
    say(f"{one.name}: predictions for {targets}")
    rows = plan(one.run.experiment, targets, compile=False, remedies=False, progress=False).rows
    return [
        {
            "name": row.name,
            "fits": row.fits,
            "eval_batch_seconds": row.eval_seconds,
            "step_seconds": None if row.time is None else row.time.expected,
            "reason": row.reason,
        }
        for row in rows
    ]
