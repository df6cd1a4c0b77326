"""How far a measured number can be from the true one: the examples that were drawn might have been others."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]

RESAMPLES = 1000
# Of fewer examples than this, what other examples would have given is guesswork.
LEAST_EXAMPLES = 20
_CELLS = 1 << 22  # of resampled weights in memory at a time


def resampled(
    statistic: Statistic, weights: Any, *, num_resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Compute statistics of weighted examples, each with its interval by the percentile bootstrap.

    Each resample draws N of the N examples with replacement: an example's weight times the number of its draws takes
    the weight's place. All statistics come from the same resamples; one that is undefined for some of them, NaN, has
    its interval from the others.

    Args:
        statistic: from weights [R, N] to arrays [R] or [R, K] by name, NaN where they are undefined.
        weights: float [N], at least 0.
        num_resamples: R in all.
        level: of the intervals, above 0 and below 1.
        seed: of the draws.

    Returns:
        By name "value", "low" and "high", numbers or lists of K numbers, None where they are undefined. The ends are
        None below `LEAST_EXAMPLES` examples.

    Example:
        >>> values = np.arange(100.0)
        >>> found = resampled(lambda w: {"mean": w @ values / w.sum(axis=1)}, np.ones(100))["mean"]
        >>> found["value"], 40 < found["low"] < 46, 53 < found["high"] < 59
        (49.5, True, True)

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    weights = np.asarray(weights, np.float64)
    num_examples, rng = len(weights), np.random.default_rng(seed)
    point = {name: np.asarray(value)[0] for name, value in statistic(weights[None]).items()}
    if num_examples < LEAST_EXAMPLES:
        return {name: {"value": _plain(value), "low": None, "high": None} for name, value in point.items()}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in point}
    most = max(1, _CELLS // num_examples)
    for first in range(0, num_resamples, most):
        rows = min(most, num_resamples - first)
        drawn = rng.integers(0, num_examples, (rows, num_examples)) + np.arange(rows)[:, None] * num_examples
        counts = np.bincount(drawn.ravel(), minlength=rows * num_examples).reshape(rows, num_examples)
        for name, value in statistic(counts * weights).items():
            parts[name].append(np.asarray(value))
    tail = (1 - level) / 2
    found = {}
    for name, value in point.items():
        drawn = np.concatenate(parts[name])
        known = ~np.isnan(value) & ~np.isnan(drawn).all(axis=0)
        ends = np.full((2, *np.shape(value)), np.nan)
        ends[:, known] = np.nanquantile(drawn[:, known], [tail, 1 - tail], axis=0)
        found[name] = {"value": _plain(value), "low": _plain(ends[0]), "high": _plain(ends[1])}
    return found


def _plain(value: np.ndarray) -> Any:
    listed = value.tolist()
    if isinstance(listed, list):
        return [None if number != number else number for number in listed]
    return None if listed != listed else listed


def ratio(total: np.ndarray, weight: np.ndarray, undefined: float = 0.0) -> np.ndarray:
    """Divide, giving what is said where the divisor is 0."""
    return np.divide(total, weight, out=np.full(np.broadcast(total, weight).shape, undefined), where=weight != 0)


def mean_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Average what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis), np.nan)
