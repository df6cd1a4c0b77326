"""Which of several candidates is better: paired over seeds, corrected for several comparisons, or not shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from accelnet.arguments import integer
from accelnet.errors import UserError

# Of the whole table: in two of a hundred tables of equal candidates a difference is claimed. At the usual 0.05 it would
# be five, in many a hundred more; at 0.01 fewer of the real differences are found (scripts/check_compare.py).
ALPHA = 0.02
_USUAL_SEEDS = 12
_EXACT = 14  # seeds up to which all signs are tried
_DRAWS = 1 << 16
_PART = 1 << 12


@dataclass(frozen=True)
class Comparison:
    """One candidate against another.

    Attributes:
        first: The one with the better mean.
        second: The other one.
        difference: Mean over seeds of first less second.
        low: Lower end of the interval of the difference, at the level 1 - alpha / comparisons.
        high: Upper end.
        p: Probability of differences this large, were the two the same.
        corrected: The same by Holm's method.
        shown: Whether that is at most alpha.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    corrected: float
    shown: bool

    @property
    def words(self) -> str:
        """What can be said."""
        return f"{self.first} is better than {self.second}" if self.shown else "no difference shown"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"words": self.words}


def compare_paired(values: Mapping[str, Any], *, lower_is_better: bool, alpha: float = ALPHA) -> tuple[Comparison, ...]:
    """Compare every candidate with every other.

    The values of a seed are paired: what the seed does to all candidates cancels in their differences. The test flips
    the signs of these differences, as chance would if the candidates were the same.

    Args:
        values: Values of each candidate, float [S], of the same seeds in the same order.
        lower_is_better: Direction of the values.
        alpha: Chance of a claim where all candidates are the same, over all comparisons.

    Returns:
        The comparisons, the clearest first.

    Raises:
        UserError: if there are too few candidates, or too few seeds for any claim.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> seeds = rng.normal(size=10)
        >>> (found,) = compare_paired({"a": seeds, "b": seeds + 1 + 0.1 * rng.normal(size=10)}, lower_is_better=True)
        >>> found.words, found.low < -1 < found.high
        ('a is better than b', True)

    Source: Fisher, The Design of Experiments, 1935, section 21, for the test; Holm, "A simple sequentially rejective
    multiple test procedure", 1979.
    """
    names = list(values)
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    if len(names) < 2:
        raise UserError(f"there is {len(names)} candidate, expected at least two to compare")
    check_seeds(len(arrays[names[0]]), len(names), alpha)
    pairs = []
    for a, b in combinations(names, 2):
        worse = arrays[a].mean() > arrays[b].mean() if lower_is_better else arrays[a].mean() < arrays[b].mean()
        pairs.append((b, a) if worse else (a, b))
    differences = [arrays[first] - arrays[second] for first, second in pairs]
    ps = [sign_flip_p(difference) for difference in differences]
    found = []
    for (first, second), difference, p, corrected in zip(pairs, differences, ps, holm(ps), strict=True):
        low, high = mean_interval(difference, 1 - alpha / len(pairs))
        mean = float(difference.mean())
        found.append(Comparison(first, second, mean, low, high, p, corrected, corrected <= alpha))
    return tuple(sorted(found, key=lambda one: (one.corrected, -abs(one.difference))))


def least_seeds(num_candidates: int, alpha: float = ALPHA) -> int:
    """Return how many seeds there have to be before the clearest difference can be claimed.

    Of S differences of one sign, 2 in 2^S arrangements of signs are as extreme.

    Example:
        >>> least_seeds(2), least_seeds(4)
        (7, 10)
    """
    comparisons = num_candidates * (num_candidates - 1) / 2
    return math.ceil(math.log2(2 * comparisons / alpha))


def check_seeds(num_seeds: int | None, num_candidates: int, alpha: float) -> int:
    """Return a number of seeds, None being as many as can show a difference, at least 12.

    Raises:
        UserError: if so few cannot show any.
    """
    least = least_seeds(num_candidates, alpha)
    num_seeds = max(_USUAL_SEEDS, least) if num_seeds is None else integer("seeds", num_seeds)
    if num_seeds < least:
        raise UserError(
            f"{num_seeds} seeds cannot show any difference between {num_candidates} candidates: give at least {least}"
        )
    return num_seeds


def sign_flip_p(differences: np.ndarray) -> float:
    """Return the probability of a mean this far from 0 if each difference had either sign with equal chance.

    Exact up to 14 differences; of more, estimated from 65,536 draws, and never below what these can tell.

    Example:
        >>> sign_flip_p(np.array([1.0, 2.0, 3.0])), sign_flip_p(np.zeros(5))
        (0.25, 1.0)
    """
    count, observed = len(differences), abs(differences.sum())
    # Equal sums in another order are equal.
    bar = observed - 1e-9 * np.abs(differences).sum()
    if count <= _EXACT:
        signs = 1 - 2 * (np.arange(1 << count)[:, None] >> np.arange(count) & 1)
        return float((np.abs(signs @ differences) >= bar).mean())
    rng, extreme = np.random.default_rng(0), 0
    for _ in range(_DRAWS // _PART):
        signs = 1 - 2 * rng.integers(0, 2, (_PART, count))
        extreme += int((np.abs(signs @ differences) >= bar).sum())
    return (1 + extreme) / (1 + _DRAWS)


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for being several, step by step from the least.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(ps, kind="stable")
    stepped = np.maximum.accumulate([(len(ps) - rank) * ps[index] for rank, index in enumerate(order)])
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def mean_interval(values: Any, level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of a mean over seeds, `mean +- t s / sqrt(S)`, t of S - 1 degrees of freedom.

    A bootstrap of few values is too narrow: of 5 normal ones, at 95 %, it holds the mean in 79 of 100 cases.

    Returns:
        (low, high); infinite for a single value.

    Example:
        >>> [round(end, 3) for end in mean_interval([1.0, 2.0, 3.0])]
        [-0.484, 4.484]

    Source: Student, "The probable error of a mean", 1908.
    """
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return -math.inf, math.inf
    half = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    # Rounding gives equal values a spread.
    half = 0.0 if np.ptp(values) == 0 else half
    return float(values.mean() - half), float(values.mean() + half)


def median_interval(values: Any, level: float = 0.95) -> tuple[float, float]:
    """Return an interval of the median over seeds, whatever the distribution: its ends are two of the values.

    The k-th lowest and the k-th highest of S values hold the median between them with a chance of `1 - 2 P(B < k)`, B
    being binomial of S and 1/2; k is the largest for which that is at least the level.

    Returns:
        (low, high), which may be infinite as values may; the lowest and the highest of fewer values than the level
        needs, 6 for 95 %.

    Example:
        >>> median_interval([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0])
        (2.0, 8.0)

    Source: Thompson, "On confidence ranges for the median and other expectation distributions", 1936.
    """
    from scipy.stats import binom

    values = np.sort(np.asarray(values, np.float64))
    place = max(1, int(binom.ppf((1 - level) / 2, len(values), 0.5)))
    return float(values[place - 1]), float(values[-place])
