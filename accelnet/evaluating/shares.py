"""Intervals of shares: how many of the examples are right, when other examples might have been drawn."""

import math
from typing import Any

import numpy as np

LEVEL = 0.95
Found = dict[str, Any]  # "value", "low" and "high"


def wilson(share: np.ndarray, size: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of the probability whose share was seen in `size` draws: all q with |p - q| <= z s(q).

    `s(q) = sqrt(q (1 - q) / size)`. Unlike a bootstrap's it is no point where all draws are equal.

    Args:
        share: p, float [...], 0 to 1, or NaN.
        size: n, float [...], above 0; an effective size need not be whole.
        level: above 0 and below 1.

    Returns:
        (low, high), float [...].

    Example:
        >>> low, high = wilson(np.array(1.0), np.array(60.0))
        >>> round(float(low), 3), float(high)
        (0.94, 1.0)

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    from scipy.stats import norm  # imported where it is needed: 0.3 s

    # Without draws nothing is known, and p is NaN.
    part = np.divide(norm.ppf((1 + level) / 2) ** 2, size, out=np.zeros(np.shape(size)), where=np.asarray(size) > 0)
    middle = (share + part / 2) / (1 + part)
    half = np.sqrt(part) / (1 + part) * np.sqrt(np.maximum(share * (1 - share) + part / 4, 0.0))
    # At 0 and 1 an end is exact, but for rounding.
    return np.where(share == 0, 0.0, middle - half), np.where(share == 1, 1.0, middle + half)


def share_interval(hits: np.ndarray, total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return shares of weighted examples, `hits / total`, with their intervals.

    Weights make n examples worth `total^2 / squares`, Kish's effective size; it is n where all weigh the same.

    Args:
        hits: float [...], sums of the weights of those that are right.
        total: of all weights.
        squares: of all squared weights.

    Returns:
        (share, low, high), float [...]; NaN where there is no example.

    Example:
        >>> share, low, high = share_interval(np.array([35.0]), np.array([36.0]), np.array([36.0]))
        >>> np.round([share[0], low[0], high[0]], 3).tolist()
        [0.972, 0.858, 0.995]

    Source: Kish, "Survey sampling", 1965, section 11.7, for the size.
    """
    known = total > 0
    share = np.divide(hits, total, out=np.full(np.shape(total), np.nan), where=known)
    size = np.divide(total**2, squares, out=np.zeros(np.shape(total)), where=known)
    return share, *wilson(share, size)


def f1_interval(
    hits: np.ndarray, targets: np.ndarray, claimed: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return F1 of classes with its intervals: `F1 = 2 J / (1 + J)`.

    J, `hits / (targets + claimed - hits)`, is a share: of the examples that are of a class or called so, those of which
    both are true.

    Args:
        hits: float [C], sums of the weights of a class's examples that are called so.
        targets: of the examples that are of the class.
        claimed: of those that are called so.
        squares: of all these, squared weights.

    Returns:
        (F1, low, high), float [C]; NaN for a class that neither occurs nor is predicted.

    Example:
        >>> f1, low, high = f1_interval(*(np.array([number]) for number in (30.0, 30.0, 30.0, 30.0)))
        >>> float(f1[0]), round(float(low[0]), 3), float(high[0])
        (1.0, 0.94, 1.0)
    """
    share, low, high = share_interval(hits, targets + claimed - hits, squares)
    return 2 * share / (1 + share), 2 * low / (1 + low), 2 * high / (1 + high)


def macro_interval(value: np.ndarray, low: np.ndarray, high: np.ndarray, shared: float) -> Found:
    """Return the mean over the classes whose value is known, with its interval from theirs.

    `mean - sqrt(shared sum_c (value_c - low_c)^2) / C`, and above alike.

    Args:
        value: float [C], or NaN.
        low: lower ends of the intervals.
        high: the upper ends.
        shared: 1 where no example counts in two classes, 2 where it counts in at most two.

    Example:
        >>> found = macro_interval(np.array([0.5, 1.0]), np.array([0.4, 0.9]), np.array([0.6, 1.0]), 1.0)
        >>> found["value"], round(found["low"], 3), round(found["high"], 3)
        (0.75, 0.679, 0.8)

    Source: Zou and Donner, "Construction of confidence limits about effect measures", 2008, equation 2.
    """
    known = ~np.isnan(value)
    if not known.any():
        return {"value": None, "low": None, "high": None}
    value, low, high = value[known], low[known], high[known]
    below, above = (np.sqrt(shared * np.sum((value - end) ** 2)) / len(value) for end in (low, high))
    mean = value.mean()
    return {"value": float(mean), "low": float(max(0.0, mean - below)), "high": float(min(1.0, mean + above))}


def mean_share(values: np.ndarray, weights: np.ndarray) -> Found:
    """Return the weighted mean of values from 0 to 1, with the interval of a share.

    Values between 0 and 1, each a share of an example's own parts, spread less than 0 and 1 do with the same mean p:
    they count as `p (1 - p) / variance` times as many.

    Args:
        values: float [N].
        weights: float [N], at least 0.

    Example:
        >>> found = mean_share(np.ones(60), np.ones(60))
        >>> found["value"], round(found["low"], 3), found["high"]
        (1.0, 0.94, 1.0)
    """
    total = weights.sum()
    if not total > 0:
        return {"value": None, "low": None, "high": None}
    mean = float(np.clip(weights @ values / total, 0.0, 1.0))
    variance = float(weights @ (values - mean) ** 2 / total)
    size = total**2 / np.sum(weights**2) * (mean * (1 - mean) / variance if variance > 0 else 1.0)
    low, high = wilson(np.array(mean), np.array(size))
    return {"value": mean, "low": float(low), "high": float(high)}


def entries(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Found]:
    """Return values and intervals one by one, None where there is none.

    Example:
        >>> entries(np.array([0.5, np.nan]), np.array([0.4, np.nan]), np.array([0.6, np.nan]))[1]
        {'value': None, 'low': None, 'high': None}
    """
    rows = zip(value.tolist(), low.tolist(), high.tolist(), strict=True)
    return [
        {end: None if math.isnan(number) else number for end, number in zip(("value", "low", "high"), row, strict=True)}
        for row in rows
    ]
