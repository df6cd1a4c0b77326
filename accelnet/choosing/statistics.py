"""Which of several settings may be the best, given a few seeds of each."""

from dataclasses import dataclass

import numpy as np

from accelnet.errors import UserError

LEVEL = 0.95
_DRAWS = 100_000


@dataclass(frozen=True)
class Contest:
    """Settings compared over the same seeds; G settings, S seeds.

    Attributes:
        means: float [G].
        low: float [G], lower ends of the means' 95 % intervals, each from its own setting's spread.
        high: float [G], the upper ends.
        contenders: bool [G], those that cannot be told from the best at 95 %, all of them at once.
        best: which has the lowest mean.
        margin: how far a mean must lie above the best of the others to be told from it.
    """

    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    contenders: np.ndarray
    best: int
    margin: float


def compete(values: np.ndarray) -> Contest:
    """Find the settings that may have the lowest mean: Hsu's multiple comparisons with the best.

    Setting i is told from the best where `mean_i - min_{j != i} mean_j > d s sqrt(2 / S)`. `s` is the spread that is
    neither the setting's nor the seed's, `x_is - mean_i - mean_s + mean`, of the better half of the settings: all have
    the same seeds, so what a seed does to all of them alike is no noise, and bad settings scatter more than good ones.
    `d` is Dunnett's one-sided 95 % point for G - 1 comparisons. The best of all settings is among the contenders with
    a probability of at least 95 %.

    Args:
        values: float [G, S], the lower the better; rows that are not finite lose.

    Raises:
        UserError: if there are fewer than two seeds, or no row is finite.

    Example:
        >>> noise = np.array([0.01, -0.01, 0.0, 0.02])
        >>> contest = compete(np.stack([noise + 1.0, noise[::-1] + 1.001, noise + 2.0]))
        >>> contest.contenders.tolist(), contest.best
        ([True, True, False], 0)

    Source: Hsu, "Multiple Comparisons: Theory and Methods", 1996, chapter 4; Dunnett, "A multiple comparison procedure
    for comparing several treatments with a control", 1955, for d.
    """
    from scipy import stats  # imported where it is needed: 0.3 s

    num_seeds = values.shape[1]
    if num_seeds < 2:
        raise UserError(f"{num_seeds} seed says nothing about chance, an interval needs at least 2: give more seeds")
    finite = np.isfinite(values).all(axis=1)
    if not finite.any():
        raise UserError("no setting has finite values with all seeds")
    known = np.where(np.isfinite(values), values, 0.0)
    means = np.where(finite, known.mean(1), np.inf)
    spread = known.std(1, ddof=1)
    half = stats.t.ppf((1 + LEVEL) / 2, num_seeds - 1) * spread / np.sqrt(num_seeds)
    order = np.argsort(means)[: finite.sum()]
    if len(order) == 1:
        margin = 0.0
    else:
        better = values[order[: max(2, -(-len(order) // 2))]]
        residuals = better - better.mean(1, keepdims=True) - better.mean(0) + better.mean()
        freedom = (better.shape[0] - 1) * (num_seeds - 1)
        noise = np.sqrt(np.sum(residuals**2) / freedom)
        margin = float(dunnett(len(order) - 1, freedom) * noise * np.sqrt(2 / num_seeds))
    others = np.array([np.min(np.delete(means, i), initial=np.inf) for i in range(len(means))])
    contenders = finite & (means - others <= margin)
    return Contest(means, means - half, means + half, contenders, int(order[0]), margin)


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
