"""Which rows become training, validation and test rows: seeded, stratified, never overlapping."""

import numpy as np

from accelnet.arguments import fraction, whole
from accelnet.errors import UserError


def random_order(num_rows: int, seed: int) -> np.ndarray:
    """Return a random order of rows that is the same on every machine and with every NumPy.

    The rows are sorted by the raw output of a PCG64 generator, which NumPy keeps stable; the streams of its
    `permutation` may change between versions.

    Args:
        num_rows: N, at least 0.
        seed: at least 0.

    Returns:
        int64 [N], each of 0 to N - 1 once.

    Example:
        >>> random_order(5, seed=0)
        array([3, 2, 1, 0, 4])

    Source: NEP 19, https://numpy.org/neps/nep-0019-rng-policy.html
    """
    seed = whole("seed", seed, low=0)
    return np.argsort(np.random.PCG64(seed).random_raw(num_rows), kind="stable")


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order in which every stretch of rows holds the classes in their proportions.

    Each row gets the position (rank + 1/2) / count of its class, rank being random, and rows are sorted by
    it: any cut is within one row per class of exact proportions.

    Args:
        labels: int [N].
        seed: at least 0.

    Returns:
        int64 [N], each of 0 to N - 1 once.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> labels[stratified_order(labels, seed=0)].reshape(4, 2).sum(axis=1)
        array([1, 1, 1, 1])

    """
    order = random_order(len(labels), seed)
    shuffled = np.asarray(labels)[order]
    position = np.empty(len(order))
    for label in np.unique(shuffled):
        rows = np.flatnonzero(shuffled == label)
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(position, kind="stable")]


def cut(num_rows: int, *, validation: float, test: float) -> dict[str, range]:
    """Divide rows into training, then validation, then test rows.

    Args:
        num_rows: N.
        validation: fraction of the rows, 0 to 1; at least one row where it is above 0.
        test: the same.

    Returns:
        Ranges that cover 0 to N - 1; a split of fraction 0 is not there.

    Raises:
        UserError: if a fraction is out of range or no training row is left.

    Example:
        >>> cut(10, validation=0.1, test=0.2)
        {'train': range(0, 7), 'validation': range(7, 8), 'test': range(8, 10)}
    """
    counts = {}
    for split, share in (("validation", validation), ("test", test)):
        share = fraction(split, share)
        counts[split] = max(1, round(share * num_rows)) if share > 0 else 0
    train = num_rows - sum(counts.values())
    if train < 1:
        raise UserError(
            f"{num_rows} rows less {counts['validation']} for validation and {counts['test']} for the test "
            f"leave none for training: give more rows or smaller fractions"
        )
    splits = {"train": range(train)}
    start = train
    for split, count in counts.items():
        if count:
            splits[split] = range(start, start + count)
        start += count
    return splits
