"""Sampling weights: training rows that are drawn more often than others, in whole numbers alone."""

from typing import Any

import numpy as np

from accelnet.data.row_labels import row_codes, row_values
from accelnet.errors import UserError

BALANCED = "balanced"


def balanced_weights(targets: Any, train: range, name: str) -> np.ndarray:
    """Return weights of the training rows that give every class the same chance, float64 [n].

    Raises:
        UserError: if targets are not one class for each row.

    Example:
        >>> balanced_weights(np.array([0, 1, 1]), range(3), "toy").tolist()
        [1.0, 0.5, 0.5]
    """
    if not hasattr(targets, "ndim") or targets.ndim != 1:
        raise UserError(f"{name}: 'balanced' needs one class for each row as target: give weights, one for each row")
    own = targets[train.start : train.stop]
    codes = row_codes(f"{name}: targets", own, len(train), "classes")
    return 1.0 / np.bincount(codes)[codes]


def checked_weights(weights: Any, num_rows: int, name: str) -> np.ndarray:
    """Return sampling weights as float64 [N], or raise UserError unless they are numbers of at least 0."""
    array = row_values(f"{name}: sampling weights", weights, num_rows)
    if array.dtype.kind not in "biuf" or (array < 0).any():
        least = f"go down to {array.min()}" if array.dtype.kind in "if" else f"are {array.dtype.name} values"
        raise UserError(f"{name}: sampling weights {least}, expected numbers of at least 0")
    return array.astype(np.float64)


def make_tickets(weights: np.ndarray, name: str) -> np.ndarray:
    """Divide the tickets of a lottery among rows in proportion to their weights.

    Of n rows, an epoch draws one ticket of each of n cells of `(2^32 - 1) // n` tickets: a row with the weight w comes
    n w / sum(weights) times in the mean, and never two times more or less than that. With equal weights every row comes
    once.

    Args:
        weights: float64 [n], at least 0.
        name: Name of the data, for messages.

    Returns:
        uint32 [n]: the first ticket that is not a row's any more; it is the next row's first.

    Raises:
        UserError: if all weights are 0.

    Example:
        >>> (make_tickets(np.array([1.0, 3.0]), "toy") / 2**32).round(3).tolist()
        [0.25, 1.0]
    """
    total = np.cumsum(weights)
    if not total[-1] > 0:
        raise UserError(f"data {name!r}: the sampling weights of all training rows are 0: nothing would be drawn")
    num_tickets = (2**32 - 1) // len(weights) * len(weights)
    return np.rint(total / total[-1] * num_tickets).astype(np.uint32)
