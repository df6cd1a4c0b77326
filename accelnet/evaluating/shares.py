"""Wilson intervals of shares, such as the share of the examples whose class is right."""

import math
from typing import Any

import numpy as np

LEVEL = 0.95
Estimate = dict[str, Any]  # "value", "low" and "high": a number and its interval, None where undefined


def estimates(value: Any, low: Any, high: Any) -> Any:
    """Return a number with its interval as JSON values, or a list of them; NaN becomes None.

    Args:
        value: Number, or float [K].
        low: Lower end of the interval, of the same shape.
        high: Upper end, of the same shape.

    Returns:
        An `Estimate`, or a list of K.

    Example:
        >>> estimates(np.array([0.5, np.nan]), np.array([0.4, np.nan]), np.array([0.6, np.nan]))[1]
        {'value': None, 'low': None, 'high': None}
    """
    if np.ndim(value):
        return [estimates(*one) for one in zip(value, low, high, strict=True)]
    ends = {"value": value, "low": low, "high": high}
    return {name: None if math.isnan(number) else float(number) for name, number in ends.items()}


def ratio(total: np.ndarray, weight: np.ndarray, undefined: float = 0.0) -> np.ndarray:
    """Divide; the quotient is `undefined` where the divisor is 0."""
    return np.divide(total, weight, out=np.full(np.broadcast(total, weight).shape, undefined), where=weight != 0)


def mean_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Average the numbers that are not NaN; the mean of none is NaN."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis), np.nan)


def wilson(share: np.ndarray, size: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of a probability of which a share was seen: all q with |p - q| <= z s(q).

    `s(q) = sqrt(q (1 - q) / size)`. Unlike a bootstrap's interval, it is not a point where all draws are equal.

    Args:
        share: Share p of the draws, float [...], 0 to 1, or NaN.
        size: Number n of draws, float [...], above 0; an effective size need not be whole.
        level: Level of the interval, above 0 and below 1.

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
    part = ratio(norm.ppf((1 + level) / 2) ** 2, size)
    middle = (share + part / 2) / (1 + part)
    half = np.sqrt(part) / (1 + part) * np.sqrt(np.maximum(share * (1 - share) + part / 4, 0.0))
    # At 0 and 1 an end is exact, but for rounding.
    return np.where(share == 0, 0.0, middle - half), np.where(share == 1, 1.0, middle + half)


def share_interval(hits: np.ndarray, total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return shares of weighted examples, `hits / total`, with their intervals.

    Weighted examples are worth `total^2 / squares` (Kish's effective size), which is n where all n weigh the same.

    Args:
        hits: Sums of the weights of the examples that are right, float [...].
        total: Sums of all weights.
        squares: Sums of all squared weights.

    Returns:
        (share, low, high), float [...]; NaN where there is no example.

    Example:
        >>> share, low, high = share_interval(np.array([35.0]), np.array([36.0]), np.array([36.0]))
        >>> np.round([share[0], low[0], high[0]], 3).tolist()
        [0.972, 0.858, 0.995]

    Source: Kish, "Survey sampling", 1965, section 11.7, for the size.
    """
    share = ratio(hits, total, np.nan)
    return share, *wilson(share, ratio(total**2, squares))


def macro_interval(value: np.ndarray, low: np.ndarray, high: np.ndarray, shared: float) -> Estimate:
    """Return the mean over the classes whose value is known, with its interval from theirs.

    `mean - sqrt(shared sum_c (value_c - low_c)^2) / C`; the upper end likewise.

    Args:
        value: Values of the classes, float [C], or NaN.
        low: Lower ends of their intervals.
        high: Upper ends.
        shared: 1 where no example counts in two classes, 2 where it counts in at most two.

    Example:
        >>> found = macro_interval(np.array([0.5, 1.0]), np.array([0.4, 0.9]), np.array([0.6, 1.0]), 1.0)
        >>> found["value"], round(found["low"], 3), round(found["high"], 3)
        (0.75, 0.679, 0.8)

    Source: Zou and Donner, "Construction of confidence limits about effect measures", 2008, equation 2.
    """
    known = ~np.isnan(value)
    if not known.any():
        return estimates(np.nan, np.nan, np.nan)
    value, low, high = value[known], low[known], high[known]
    below, above = (np.sqrt(shared * np.sum((value - end) ** 2)) / len(value) for end in (low, high))
    mean = value.mean()
    return estimates(mean, max(0.0, mean - below), min(1.0, mean + above))


def mean_share(values: np.ndarray, weights: np.ndarray) -> Estimate:
    """Return the weighted mean of values from 0 to 1, with the interval of a share.

    Values between 0 and 1, each a share of an example's own parts, spread less than 0 and 1 do with the same mean p:
    they count as `p (1 - p) / variance` times as many.

    Args:
        values: Values of the examples, float [N].
        weights: Weights of the examples, float [N], at least 0.

    Example:
        >>> found = mean_share(np.ones(60), np.ones(60))
        >>> found["value"], round(found["low"], 3), found["high"]
        (1.0, 0.94, 1.0)
    """
    total = weights.sum()
    if not total > 0:
        return estimates(np.nan, np.nan, np.nan)
    mean = float(np.clip(weights @ values / total, 0.0, 1.0))
    variance = float(weights @ (values - mean) ** 2 / total)
    size = total**2 / np.sum(weights**2) * (mean * (1 - mean) / variance if variance > 0 else 1.0)
    return estimates(mean, *wilson(np.array(mean), np.array(size)))
