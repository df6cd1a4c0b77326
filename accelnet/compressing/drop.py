"""How much worse one model is than another on the same examples, and how sure that is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from accelnet.errors import UserError
from accelnet.evaluating.bootstrap import resampled
from accelnet.evaluating.shares import LEVEL
from accelnet.json_file import plain_value
from accelnet.objectives.metric import Mean
from accelnet.objectives.objective import Objective

_POWER = 0.8
_RESAMPLES = 2000
_DEVIATIONS = 1.959964  # in half of a 95 % interval
_MOST_EXAMPLES = 10**10
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Drop:
    """How much worse a model is than the original, on N examples that both have seen.

    Attributes:
        value: Difference of the metric, positive where the model is worse: of shares such as the accuracy in points
            (0.005 is half a point of a hundred), of other metrics as a share of the original's value. NaN: undefined.
        low: Lower end of its 95 % interval, NaN where there are too few examples.
        high: Upper end.
        bound: Upper bound that holds for all compared models at once, with 95 %.
        deviation: Deviation of the examples' differences.
        rates: Shares of the examples that only the original and only the other model has right; None for other metrics.
        examples: Number N.
        tail: Chance that this one bound is too low.
        is_share: Whether the metric is a share.
    """

    value: float
    low: float
    high: float
    bound: float
    deviation: float
    examples: int
    tail: float
    rates: tuple[float, float] | None = None

    def is_within(self, max_drop: float) -> bool:
        """Say whether the drop is shown to be at most `max_drop`."""
        return self.bound <= max_drop

    def examples_needed(self, max_drop: float) -> int | None:
        """Return how many examples would show, in 8 of 10 cases, that a drop of this size is within `max_drop`.

        The smallest n for which `bound(n) + z_power s / sqrt(n) <= max_drop`. None where the drop itself is larger.

        Example:
            >>> Drop(0.001, -0.01, 0.012, 0.012, 0.1, 400, 0.025).examples_needed(0.005)
            4906
        """
        from scipy.stats import norm

        if not (self.value < max_drop and math.isfinite(self.deviation)):
            return None
        reach, chance = float(norm.isf(self.tail)), float(norm.ppf(_POWER))

        def reached(examples: int) -> float:
            spread = self.deviation / math.sqrt(examples)
            if self.rates is None:
                return self.value + (reach + chance) * spread
            lost, gained = (rate * examples for rate in self.rates)
            return tango(lost, gained, examples, self.tail)[1] + chance * spread

        few, many = 1, _MOST_EXAMPLES
        while few < many:
            middle = (few + many) // 2
            few, many = (few, middle) if reached(middle) <= max_drop else (middle + 1, many)
        return few

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, None for NaN."""
        return plain_value({name: getattr(self, name) for name in ("value", "low", "high", "bound", "examples")})


def undefined(examples: int, tail: float) -> Drop:
    """Return the drop of which nothing is known."""
    return Drop(math.nan, math.nan, math.nan, math.nan, math.nan, examples, tail)


def tail_of(num_compared: int) -> float:
    """Return the chance that one bound may be too low, so that all of several hold with 95 %.

    Example:
        >>> tail_of(1), tail_of(10)
        (0.025, 0.005)
    """
    return round(1 - LEVEL, 6) / max(2, num_compared)


def mean_metric(objective: Objective, name: str) -> Mean:
    """Return a metric of which each example has a part, and whose direction is known.

    Raises:
        UserError: if it is none; with those that are.
    """
    usable = [
        one
        for one, metric in objective.metrics.items()
        if isinstance(metric, Mean) and metric.lower_is_better is not None
    ]
    if name not in usable:
        raise UserError(
            f"metric {name!r} cannot be compared example by example, expected a mean over examples with a direction: "
            f"{', '.join(usable)}"
        )
    metric = objective.metrics[name]
    assert isinstance(metric, Mean)
    return metric


def usual_metric(objective: Objective, best_metric: str) -> str:
    """Return the metric by which a drop is measured if none is given: a share such as accuracy, else `best_metric`.

    Example:
        >>> from accelnet import objectives
        >>> usual_metric(objectives.softmax_cross_entropy(), "loss")
        'accuracy'
    """
    shares = [one for one, metric in objective.metrics.items() if isinstance(metric, Mean) and metric.is_share]
    return shares[0] if best_metric == "loss" and shares else best_metric


def paired_drop(metric: Mean, original: Pair, other: Pair, *, num_compared: int = 1) -> Drop:
    """Compare a model with the original on the same examples.

    What makes an example hard is hard for both, and cancels in the difference. Of examples that are right or wrong, the
    interval is Tango's, which is no point where both models agree everywhere; of all others it is a bootstrap's.

    Args:
        metric: Metric, as of `mean_metric`.
        original: What each example adds to the metric's total and weight with the original, both float [N].
        other: The same examples with the other model.
        num_compared: Number of models that are compared, which share the chance of a bound that is too low.

    Example:
        >>> from accelnet.objectives.metrics import Accuracy
        >>> right, weights = np.arange(1000) < 900, np.ones(1000)
        >>> found = paired_drop(Accuracy(), (right, weights), (right & (np.arange(1000) > 5), weights))
        >>> found.value, round(found.low, 4), round(found.high, 4)
        (0.006, 0.0022, 0.013)

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", 1998, section 3.
    """
    tail = tail_of(num_compared)
    (first, weights), (second, others) = [
        tuple(np.asarray(part, np.float64) for part in pair) for pair in (original, other)
    ]
    sign = 1.0 if metric.lower_is_better else -1.0
    if metric.is_share and np.isin(weights, (0, 1)).all() and np.isin([first, second], (0, 1)).all():
        live = weights > 0
        lost, gained = int(np.sum((first > second)[live])), int(np.sum((first < second)[live]))
        lost, gained = (lost, gained) if sign < 0 else (gained, lost)
        return _of_counts(lost, gained, int(live.sum()), tail)

    def computed(counts: np.ndarray, total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        state = {"total": jnp.asarray(counts @ total), "weight": jnp.asarray(counts @ weight)}
        return np.where(counts @ weight > 0, np.asarray(metric.compute(state), np.float64), np.nan)

    def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
        before, after = computed(counts, first, weights), computed(counts, second, others)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"drop": sign * (after - before) / (1.0 if metric.is_share else np.abs(before))}

    return _of_statistic(statistic, len(first), tail)


def _of_counts(lost: int, gained: int, examples: int, tail: float) -> Drop:
    if not examples:
        return undefined(0, tail)
    low, high = tango(lost, gained, examples, (1 - LEVEL) / 2)
    value, disagreeing = (lost - gained) / examples, (lost + gained) / examples
    deviation = math.sqrt(max(disagreeing - value**2, 0.0))
    bound, rates = tango(lost, gained, examples, tail)[1], (lost / examples, gained / examples)
    return Drop(value, low, high, bound, deviation, examples, tail, rates)


def _of_statistic(statistic: Any, examples: int, tail: float) -> Drop:
    from scipy.stats import norm

    found = resampled(statistic, np.ones(examples), num_resamples=_RESAMPLES)["drop"]
    value, low, high = (math.nan if end is None else end for end in found.values())
    # Further out there are few draws: the interval, as much wider as a normal one would be.
    bound = high + (high - value) * max(0.0, float(norm.isf(tail)) / _DEVIATIONS - 1)
    # The deviation of one example is that of the mean of N, times the root of N.
    deviation = (high - low) / 2 / _DEVIATIONS * math.sqrt(examples)
    return Drop(value, low, high, bound, deviation, examples, tail)


def tango(lost: float, gained: float, examples: int, tail: float) -> tuple[float, float]:
    """Return the score interval of the difference of two shares of the same examples.

    Args:
        lost: Examples that only the first has right; a share of them need not be whole.
        gained: Examples that only the second has right.
        examples: All examples, at least 1.
        tail: Chance on either side, above 0 and below 0.5.

    Returns:
        (low, high) of the first share less the second.

    Example:
        >>> low, high = tango(0, 0, 96, 0.025)  # z^2 / (n + z^2)
        >>> round(low, 4), round(high, 4)
        (-0.0385, 0.0385)
        >>> low, high = tango(9, 1, 44, 0.025)
        >>> round(low, 3), round(high, 3)
        (0.05, 0.328)
    """
    from scipy.stats import norm

    z = float(norm.isf(tail))

    def score(difference: float) -> float:
        b = -lost - gained + (2 * examples - lost + gained) * difference
        root = math.sqrt(max(b * b + 8 * examples * gained * difference * (1 - difference), 0.0))
        variance = examples * (2 * (root - b) / (4 * examples) + difference * (1 - difference))
        distance = lost - gained - examples * difference
        return (
            distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0
        )

    middle, edge = (lost - gained) / examples, 1 - 1e-12
    return _crossing(score, z, -edge, middle), _crossing(score, -z, middle, edge)


def _crossing(score: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Return where a falling function reaches a level between two ends, or the end that is nearest to that."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > level else (low, middle)
    return (low + high) / 2


def resolution(metric: Mean, examples: int, num_compared: int = 1) -> float:
    """Return the smallest drop that so many examples can exclude, where both models give the same answers to all.

    Example:
        >>> from accelnet.objectives.metrics import Accuracy
        >>> round(resolution(Accuracy(), 1000), 4)
        0.0038
    """
    return tango(0, 0, examples, tail_of(num_compared))[1] if metric.is_share and examples else 0.0
