"""Seeded orders of rows: at random, and so that every stretch holds the classes in their proportions."""

import heapq

import numpy as np

from accelnet.arguments import integer
from accelnet.errors import UserError

MOST_ROWS = 1 << 28


def random_order(num_rows: int, seed: int) -> np.ndarray:
    """Return a random order of rows that is the same on every machine and with every NumPy.

    The rows are sorted by the raw output of a PCG64 generator, which NumPy keeps stable; the streams of its
    `permutation` may change between versions.

    Args:
        num_rows: N, at least 0.
        seed: Seed of the order, at least 0.

    Returns:
        int64 [N], each of 0 to N - 1 once.

    Raises:
        UserError: for more than 2**28 rows.

    Example:
        >>> random_order(5, seed=0)
        array([3, 2, 1, 0, 4])

    Source: NEP 19, https://numpy.org/neps/nep-0019-rng-policy.html
    """
    seed = integer("seed", seed, low=0)
    if num_rows > MOST_ROWS:
        raise UserError(
            f"{num_rows:,} rows: a random order of more than {MOST_ROWS:,} takes over 6 GB of memory. Name the rows of "
            "each split as ranges: splits={'train': range(0, 900), 'validation': range(900, 1000)}"
        )
    return np.argsort(np.random.PCG64(seed).random_raw(num_rows), kind="stable")


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order in which every stretch of rows holds the classes in their proportions.

    Any number of first rows, and so any number of last rows, has of each class within one row of its share. Each row
    gets the position (rank + 1/2) / count of its class, rank being random, and rows are sorted by it. Where that leaves
    a share by more than a row, as it does with one large class and many small ones, rows are put in line one by one:
    of those whose class is not a row ahead, the one whose class would be a row behind first.

    Source: Steiner and Yeomans, "Level schedules for mixed-model, just-in-time processes", 1993, for the line.
    """
    order = random_order(len(labels), seed)
    _, classes, counts = np.unique(np.asarray(labels)[order], return_inverse=True, return_counts=True)
    rows = np.argsort(classes, kind="stable")
    rank, count = np.empty(len(order), int), counts[classes]
    rank[rows] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = np.argsort((rank + 0.5) / count, kind="stable")
    # Both before and behind a row, its class may be ahead or behind; times N, in whole numbers.
    ahead = rank[place] * len(order) - np.arange(len(order)) * count[place]
    furthest = max(np.abs(ahead).max(initial=0), np.abs(ahead + len(order) - count[place]).max(initial=0))
    return order[place if furthest <= len(order) else _in_line(rank, count)]


def _in_line(rank: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Order N rows, each with its rank in a class of `count`, so that no class is a row ahead or behind its share."""
    num_rows = len(rank)
    # At place t, t count / N of a class are due: a row may come once the class would not be a whole row ahead with it,
    # and must before the class would be a whole row behind without it.
    first = (rank * num_rows) // count
    last = -(-(rank + 1) * num_rows // count) - 1
    waiting, line, coming = [], np.empty(num_rows, int), np.argsort(first, kind="stable")
    urgency, first = (last * num_rows + np.arange(num_rows)).tolist(), first[coming].tolist()
    coming, come = coming.tolist(), 0
    for place in range(num_rows):
        while come < num_rows and first[come] <= place:
            heapq.heappush(waiting, (urgency[coming[come]], coming[come]))
            come += 1
        line[place] = heapq.heappop(waiting)[1]
    return line
