"""Where on the ladder of sizes a search trains next."""

import math
from collections.abc import Mapping, Sequence

# How many times fewer FLOPs a network has. The first training stands in the middle; each says where the next is.
LADDER = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_FIRST = 4.0


def next_factor(judged: Mapping[float, bool], ladder: Sequence[float], *, ascending: bool = False) -> float | None:
    """Return where on the ladder to train next: between the smallest network that is good and the largest that is not.

    Args:
        judged: By factor, whether a network of that size is good enough.
        ladder: Factors, ascending.
        ascending: Take the largest networks first, as where only their speed is asked for.

    Returns:
        The factor, None where all is known.

    Example:
        >>> next_factor({}, LADDER), next_factor({4.0: True}, LADDER), next_factor({4.0: True, 8.0: False}, LADDER)
        (4.0, 8.0, 6.0)
        >>> next_factor({4.0: False}, LADDER), next_factor({1.5: False}, LADDER)
        (2.0, None)
    """
    left = [factor for factor in ladder if factor not in judged]
    if ascending or not left:
        return left[0] if left else None
    if not judged:
        return min(left, key=lambda factor: abs(math.log(factor / _FIRST)))
    good = max((factor for factor, fine in judged.items() if fine), default=1.0)
    bad = min((factor for factor, fine in judged.items() if not fine and factor > good), default=math.inf)
    between = [factor for factor in left if good < factor < bad]
    if not between:
        return None
    middle = 2 * good if bad == math.inf else math.sqrt(good * bad)
    return min(between, key=lambda factor: abs(math.log(factor / middle)))
