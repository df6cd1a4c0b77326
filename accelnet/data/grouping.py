"""Groups of rows that stay together: which split, or which fold, each of them goes to."""

from collections.abc import Sequence

import numpy as np

from accelnet.data.row_order import random_order
from accelnet.errors import UserError


def assign_groups(
    groups: np.ndarray, shares: Sequence[float], seed: int, labels: np.ndarray | None = None, *, what: str
) -> np.ndarray:
    """Divide rows into parts of given shares without cutting a group.

    Groups are assigned one by one, the largest first and equal ones in random order: each goes where it leaves the
    least sum, over parts and classes, of (rows - rows due)^2 / rows due. The shares, and with labels those of each
    class, are as near as this finds them; every part gets at least one group.

    Args:
        groups: Numbers of the groups, int [N], each from 0 to G - 1.
        shares: Share of the rows of each part, all above 0, together 1.
        seed: Seed of the order of groups, at least 0.
        labels: Numbers of the classes, int [N]. None: rows of one class.
        what: Name of the parts in the message, such as "folds".

    Returns:
        Number of the part of each row, int64 [N].

    Raises:
        UserError: if there are fewer groups than parts.

    Example:
        >>> assign_groups(np.array([0, 0, 1, 1, 2, 2]), (2 / 3, 1 / 3), seed=0, what="splits").tolist()
        [0, 0, 1, 1, 0, 0]
    """
    labels = np.zeros_like(groups) if labels is None else labels
    num_groups, num_classes, num_parts = int(groups.max()) + 1, int(labels.max()) + 1, len(shares)
    if num_groups < num_parts:
        raise UserError(f"{num_groups} groups cannot make {num_parts} {what}: give more groups, or ask for fewer")
    counts = np.bincount(groups * num_classes + labels, minlength=num_groups * num_classes)
    counts = counts.reshape(num_groups, num_classes).astype(np.float64)
    due = np.asarray(shares)[:, None] * counts.sum(axis=0)[None, :]
    have = np.zeros_like(due)
    order = random_order(num_groups, seed)
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    part_of = np.empty(num_groups, np.int64)
    for left, group in zip(range(num_groups, 0, -1), order, strict=True):
        own = counts[group]
        worse = (own[None, :] * (own[None, :] + 2 * (have - due)) / due).sum(axis=1)
        empty = ~have.any(axis=1)
        if left <= empty.sum():
            worse = np.where(empty, worse, np.inf)
        part = part_of[group] = int(np.argmin(worse))
        have[part] += own
    return part_of[groups]
