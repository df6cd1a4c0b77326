"""What is proposed to the search: networks with so many times fewer FLOPs, by each method."""

import math
from collections.abc import Sequence

from accelnet.compressing.measured import Say
from accelnet.compressing.search import Ways
from accelnet.training.run import Run

NUM_BITS = 2
_SHARES = 32  # tried between nothing and all of the widths


def smaller(width: int, share: float, step: int = 1) -> int:
    """Return a share of a width as a number that processors like: a multiple of 16, of smaller widths of 8 or 4.

    Args:
        width: The width.
        share: Share of it, above 0 and at most 1.
        step: Number that it has to be a multiple of.

    Example:
        >>> [smaller(width, 0.5) for width in (300, 64, 20, 3)], smaller(192, 0.3, step=12)
        ([144, 32, 8, 1], 60)
    """
    if share >= 1:
        return width
    nice = 16 if width >= 128 else 8 if width >= 32 else 4 if width >= 8 else 1
    while step % nice and nice > 1:  # a step of 12 has room for 4
        nice //= 2
    unit = math.lcm(nice if width * share >= nice else 1, step)
    return max(unit, int(width * share) // unit * unit)


def ways_of(run: Run, methods: Sequence[str], say: Say) -> Ways:
    """Return how a run's network is made smaller by methods."""
    return Ways()
