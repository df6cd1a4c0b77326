"""Which of several settings may be the best, given a few seeds of each."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accelnet.errors import UserError

LEVEL = 0.95
_DRAWS = 100_000


@dataclass(frozen=True)
class Contest:
    """Settings compared, G of them.

    Attributes:
        means: Means, float [G], infinite for a setting with a value that is not finite.
        low: Lower ends of the means' 95 % intervals, float [G].
        high: Upper ends, float [G].
        contenders: Whether a setting cannot be told from the best at 95 %, all of them at once, bool [G].
        best: Index of the lowest mean.
    """

    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    contenders: np.ndarray
    best: int


def compete(values: Sequence[np.ndarray]) -> Contest:
    """Find the settings that may have the lowest mean: Hsu's multiple comparisons with the best.

    Setting i is told from the best of the others, j, where `mean_i - mean_j > d s sqrt(1 / S_i + 1 / S_j)`. `d` is
    Dunnett's one-sided 95 % point for G - 1 comparisons. The best of all settings is among the contenders with a
    probability of at least 95 %, if their values scatter alike.

    With the same number of values, those in one place are of one seed. What a seed does to all settings alike is no
    noise then: `s` is the spread of `x_is - mean_i - mean_s + mean`, of the better half of the settings, since bad ones
    scatter more than good ones, and a mean's interval is from its own setting's values. With different numbers `s` is
    that of `x_is - mean_i` of all, and the intervals' too; where no setting has two values, nothing can be told.

    Args:
        values: Values of each setting, float [S_i], the lower the better; settings with one that is not finite lose.

    Raises:
        UserError: if all have one value, or no setting is finite.

    Example:
        >>> noise = np.array([0.01, -0.01, 0.0, 0.02])
        >>> contest = compete([noise + 1.0, noise[::-1] + 1.001, noise + 2.0])
        >>> contest.contenders.tolist(), contest.best
        ([True, True, False], 0)

    Source: Hsu, "Multiple Comparisons: Theory and Methods", 1996, chapter 4; Dunnett, "A multiple comparison procedure
    for comparing several treatments with a control", 1955, for d.
    """
    from scipy import stats  # imported where it is needed: 0.3 s

    counts = np.array([len(row) for row in values])
    if counts.max() < 2:
        raise UserError(f"{counts.max()} seed says nothing about chance, an interval needs at least 2: give more seeds")
    finite = np.array([bool(np.isfinite(row).all()) for row in values])
    if not finite.any():
        raise UserError("no setting has finite values with all seeds")
    means = np.array([row.mean() if known else np.inf for row, known in zip(values, finite, strict=True)])
    order = np.argsort(means)[: finite.sum()]
    if len(set(counts)) == 1:
        better = np.stack([values[index] for index in order[: max(2, -(-len(order) // 2))]])
        residuals = better - better.mean(1, keepdims=True) - better.mean(0) + better.mean()
        freedom = (len(better) - 1) * (counts[0] - 1)
        known = [np.where(np.isfinite(row), row, 0.0) for row in values]
        spreads, own = np.std(known, axis=1, ddof=1), counts[0] - 1
    else:
        residuals = np.concatenate([values[index] - means[index] for index in order])
        freedom = own = len(residuals) - len(order)
        spreads = None
    noise = np.sqrt(np.sum(residuals**2) / freedom) if freedom else np.inf
    half = stats.t.ppf((1 + LEVEL) / 2, max(1, own)) * (noise if spreads is None else spreads) / np.sqrt(counts)
    contenders = finite.copy()
    if len(order) > 1 and freedom:
        point = dunnett(len(order) - 1, freedom)
        for index in order:
            other = order[1] if index == order[0] else order[0]
            margin = point * noise * np.sqrt(1 / counts[index] + 1 / counts[other])
            contenders[index] = means[index] - means[other] <= margin
    with np.errstate(invalid="ignore"):  # infinite means
        return Contest(means, means - half, means + half, contenders, int(order[0]))


def corrected_interval(values: Sequence[float], ratio: float) -> tuple[float, float, float, float]:
    """Return mean, standard error and 95 % interval of values of the folds of a cross-validation.

    The models of two folds share most of their training rows, so that their values are not independent, and
    `s / sqrt(k)` is too small. With the share of rows that are validated, the corrected error of the mean is
    `sqrt(1 / k + n_validation / n_train) s`; the interval is that of Student's t with k - 1 degrees of freedom. No
    estimate from one cross-validation is free of bias; this one is seldom too small.

    Args:
        values: Values of the k folds, at least 2.
        ratio: Validation rows by training rows, n_validation / n_train, above 0.

    Returns:
        (mean, standard error, low, high); NaN where a value is.

    Example:
        >>> [round(number, 3) for number in corrected_interval([0.8, 0.9, 0.85, 0.95, 0.9], 0.25)]
        [0.88, 0.038, 0.774, 0.986]

    Source: Nadeau and Bengio, "Inference for the Generalization Error", 2003, section 4; Bouckaert and Frank,
    "Evaluating the Replicability of Significance Tests for Comparing Learning Algorithms", 2004, for folds.
    """
    from scipy import stats

    array = np.asarray(values, np.float64)
    mean, count = array.mean(), len(array)
    error = np.sqrt(1 / count + ratio) * array.std(ddof=1)
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * error
    return float(mean), float(error), float(mean - half), float(mean + half)


@functools.cache
def dunnett(num_comparisons: int, freedom: int) -> float:
    """Return the 95 % point of the largest of several t statistics against one common control, by simulation.

    Example:
        >>> abs(dunnett(1, 10) - 1.812) < 0.03  # Student's t
        True
    """
    rng = np.random.default_rng(0)
    control = rng.standard_normal(_DRAWS)
    largest = np.full(_DRAWS, -np.inf)
    for _ in range(num_comparisons):
        largest = np.maximum(largest, rng.standard_normal(_DRAWS) - control)
    scale = np.sqrt(rng.chisquare(freedom, _DRAWS) / freedom)
    return float(np.quantile(largest / np.sqrt(2) / scale, LEVEL))
