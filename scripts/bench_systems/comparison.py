"""From losses and times to a row of the result: pure functions of plain numbers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Float32 sums in another order, and Adam's first steps are nearly the signs of the gradients, so that rounding shows
# where a gradient is nearly zero. Measured over 20 steps, the largest relative difference from accelnet's losses was
# 3e-5 without such gradients (recurrent networks), 3e-4 in the MLPs and CNNs and 5e-4 with batch norm. A learning rate
# that is 10 % higher changes them by 1.3e-3 (XOR) to 1e-1.
TOLERANCE = 1e-3
_SMALLEST_LOSS = 1e-3


class Difference(NamedTuple):
    """Hold the largest relative difference of two systems' losses, and where it is."""

    relative: float
    step: int
    reference: float
    loss: float


def largest_difference(reference: Sequence[Any], losses: Sequence[Any]) -> Difference:
    """Compare losses step by step, and member by member in a population; what is not a number differs infinitely."""
    differences = []
    for step, (expected, got) in enumerate(zip(reference, losses, strict=True)):
        pairs = zip(expected, got, strict=True) if isinstance(expected, list) else [(expected, got)]
        for a, b in pairs:
            relative = abs(a - b) / max(abs(a), _SMALLEST_LOSS)
            differences.append(Difference(math.inf if math.isnan(relative) else relative, step, a, b))
    return max(differences, key=lambda difference: difference.relative)


def agrees(difference: Difference) -> bool:
    """Whether two systems did the same work."""
    return difference.relative <= TOLERANCE


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the order of a round: each begins one system later, so that none always follows the same one's heat."""
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def counted_variants(times: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, str]:
    """Choose, for each system, the allocator with which it is faster.

    Args:
        times: by system and allocator, the seconds per step of each round.

    Returns:
        The allocator by system.
    """
    best: dict[str, str] = {}
    for (system, allocator), values in times.items():
        chosen = best.get(system)
        if chosen is None or statistics.median(values) < statistics.median(times[system, chosen]):
            best[system] = allocator
    return best


def best_peer(times: Mapping[str, Sequence[float]]) -> str | None:
    """Return the system with the smallest median, accelnet and the limit aside."""
    peers = [system for system in times if system not in ("accelnet", "limit")]
    return min(peers, key=lambda system: statistics.median(times[system]), default=None)


def paired_ratio(peer: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median over rounds of the peer's time over accelnet's in the same round."""
    return statistics.median(a / b for a, b in zip(peer, ours, strict=True))


def summary(cases: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the smallest ratio and the geometric mean over the cases that have one, with and without the largest."""
    ratios = [case["ratio"] for case in cases if case["ratio"] is not None]
    if not ratios:
        return {"min_ratio": None, "geomean_ratio": None, "geomean_but_largest": None}
    others = sorted(ratios)[:-1] or ratios
    return {
        "min_ratio": min(ratios),
        "geomean_ratio": statistics.geometric_mean(ratios),
        "geomean_but_largest": statistics.geometric_mean(others),
    }
