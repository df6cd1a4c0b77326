"""From losses and times to a row of the result: pure functions of plain numbers."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Relative differences from accelnet's losses. In the first steps peers that do the same work stay within 9e-5 (an MLP
# 300-1024-1024-1024-5, CNNs, ResNet-8; torch, flax, Keras on jax), while a learning rate that is 10 % higher changes
# them by 2.9e-4 (XOR) to 1e-1. Afterwards Adam, whose updates are nearly the signs of the gradients, makes more of
# rounding from step to step: up to 8e-3 among the peers themselves at step 20, and 3e-7 where no gradient is nearly 0.
FIRST_STEPS, FIRST_TOLERANCE = 5, 2e-4
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


def refusal(reference: Sequence[Any], losses: Sequence[Any], others: Sequence[Sequence[Any]] = ()) -> Difference | None:
    """Return where a system's losses show that it does other work, or None.

    The first steps must agree closely; later ones may differ twice as much as two of the others do from each other.

    Args:
        reference: accelnet's losses.
        losses: the system's.
        others: those of the other peers.
    """
    first = largest_difference(reference[:FIRST_STEPS], losses[:FIRST_STEPS])
    if first.relative > FIRST_TOLERANCE:
        return first
    spread = max((largest_difference(*pair).relative for pair in itertools.combinations(others, 2)), default=0.0)
    later = largest_difference(reference, losses)
    return later if later.relative > max(TOLERANCE, 2 * spread) else None


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
