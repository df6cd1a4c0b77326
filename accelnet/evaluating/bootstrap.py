"""Bootstrap intervals: how much a measured number varies when other examples are drawn."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accelnet.evaluating.shares import estimates

Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]

RESAMPLES = 1000
LEAST_EXAMPLES = 20  # fewer tell too little about other examples
_CELLS = 1 << 22  # of resampled weights in memory at a time


def resampled(
    statistic: Statistic, weights: Any, *, num_resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Compute statistics of weighted examples, each with its interval by the percentile bootstrap.

    Each resample draws N of the N examples with replacement: an example's weight is multiplied by the number of its
    draws. All statistics come from the same resamples. A statistic that is undefined (NaN) for some resamples has its
    interval from the others.

    Args:
        statistic: Function of weights [R, N] that returns arrays [R] or [R, K] by name, NaN where undefined.
        weights: Weights of the examples, float [N], at least 0.
        num_resamples: Number R of resamples, in all.
        level: Level of the intervals, above 0 and below 1.
        seed: Seed of the draws.

    Returns:
        `estimates` by name. The ends are None below `LEAST_EXAMPLES` examples.

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
    ends = {name: np.full((2, *value.shape), np.nan) for name, value in point.items()}
    if num_examples >= LEAST_EXAMPLES:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in point}
        most = max(1, _CELLS // num_examples)
        for first in range(0, num_resamples, most):
            rows = min(most, num_resamples - first)
            drawn = rng.integers(0, num_examples, (rows, num_examples)) + np.arange(rows)[:, None] * num_examples
            counts = np.bincount(drawn.ravel(), minlength=rows * num_examples).reshape(rows, num_examples)
            for name, value in statistic(counts * weights).items():
                parts[name].append(np.asarray(value))
        tail = (1 - level) / 2
        for name, value in point.items():
            drawn = np.concatenate(parts[name])
            known = ~np.isnan(value) & ~np.isnan(drawn).all(axis=0)
            ends[name][:, known] = np.nanquantile(drawn[:, known], [tail, 1 - tail], axis=0)
    return {name: estimates(value, *ends[name]) for name, value in point.items()}
