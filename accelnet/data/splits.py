"""Which rows become training, validation and test rows: seeded, stratified, never overlapping."""

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.arguments import fraction, integer
from accelnet.data.arrays import leaves
from accelnet.data.precision import compact_dtype
from accelnet.data.row_views import joined, reordered
from accelnet.data.rows import LazyArray
from accelnet.errors import UserError


def split_rows(
    parts: Mapping[str, Mapping[str, Any]], seed: int, *, name: str, stratify: bool, validation: float, test: float
) -> tuple[dict[str, Any], dict[str, range]]:
    """Put the rows of a data set in the order train, validation, test.

    Args:
        parts: Arrays (trees of them, with a leading axis of rows) by name, of "train" and of what else was held out
            by the user: "validation", "test". Held-out rows keep their order.
        seed: Seed of the order of the training rows, at least 0.
        name: Name of the data, for messages.
        stratify: Hold out of every class its share, where "targets" is one number for each row.
        validation: Fraction of the training rows to hold out, at least one row where it is above 0; 0 for none, and
            where the part is there.
        test: The same.

    Returns:
        The arrays of all rows by name, and the rows of each split; a split without rows is not there.

    Raises:
        UserError: if a fraction is out of range, no training row is left, or the parts do not fit together.

    Example:
        >>> parts = {"train": {"targets": np.array([7, 8, 9])}, "test": {"targets": np.array([1])}}
        >>> split_rows(parts, 0, name="toy", stratify=False, validation=0.3, test=0)
        ({'targets': array([9, 8, 7, 1])}, {'train': range(0, 2), 'validation': range(2, 3), 'test': range(3, 4)})
    """
    train = parts["train"]
    num_rows = len(next(leaves(train))[1])
    labels = train["targets"] if stratify and train["targets"].ndim == 1 else None
    order, splits = divide(num_rows, seed, validation=validation, test=test, labels=labels)
    trees = [reordered(dict(train), order)]
    for split in ("validation", "test"):
        if split in parts:
            rows = len(next(leaves(parts[split]))[1])
            splits[split] = range(num_rows, num_rows + rows)
            num_rows += rows
            trees.append(parts[split])
    return {key: concatenated([tree[key] for tree in trees], f"{name}: {key}") for key in train}, splits


def divide(
    num_rows: int, seed: int, *, validation: float, test: float, labels: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, range]]:
    """Choose the rows of each split.

    Args:
        num_rows: Number N of rows.
        seed: Seed of the order, at least 0.
        validation: Fraction of the rows to hold out, at least one row where it is above 0; 0 for none.
        test: The same.
        labels: Integers or text [N] of which every split gets its share; None: rows are drawn at random.

    Returns:
        (order, splits): int [N], the rows in the order train, validation, test, and the ranges of that order.

    Raises:
        UserError: if a fraction is out of range or no training row is left.

    Example:
        >>> divide(4, seed=0, validation=0.25, test=0)
        (array([3, 2, 1, 0]), {'train': range(0, 3), 'validation': range(3, 4)})
    """
    order = random_order(num_rows, seed) if labels is None else _stratified_order(labels, seed)
    return order, _cut(num_rows, validation=validation, test=test)


def concatenated(trees: list[Any], where: str) -> Any:
    """Put arrays, or dicts of them, one after the other; the lazy ones are not read.

    Args:
        trees: Arrays or dicts of arrays, all alike.
        where: Name of them in messages.

    Raises:
        UserError: if they differ in names, or in type or shape of a row.
    """
    if len(trees) == 1:
        return trees[0]
    if any(isinstance(tree, Mapping) for tree in trees):
        if not all(isinstance(tree, Mapping) and set(tree) == set(trees[0]) for tree in trees):
            raise UserError(f"{where}: held-out arrays are named differently from those to train on")
        return {key: concatenated([tree[key] for tree in trees], f"{where} {key!r}") for key in trees[0]}
    if len({(tree.shape[1:], compact_dtype(tree.dtype)) for tree in trees}) > 1:
        came = ", ".join(f"{compact_dtype(tree.dtype)}{list(tree.shape)}" for tree in trees)
        raise UserError(f"{where}: train and held-out arrays differ in type or shape of a row: {came}")
    if any(isinstance(tree, LazyArray) for tree in trees):
        return joined(trees)
    return np.concatenate(trees)


def random_order(num_rows: int, seed: int) -> np.ndarray:
    """Return a random order of rows that is the same on every machine and with every NumPy.

    The rows are sorted by the raw output of a PCG64 generator, which NumPy keeps stable; the streams of its
    `permutation` may change between versions.

    Args:
        num_rows: N, at least 0.
        seed: Seed of the order, at least 0.

    Returns:
        int64 [N], each of 0 to N - 1 once.

    Example:
        >>> random_order(5, seed=0)
        array([3, 2, 1, 0, 4])

    Source: NEP 19, https://numpy.org/neps/nep-0019-rng-policy.html
    """
    seed = integer("seed", seed, low=0)
    return np.argsort(np.random.PCG64(seed).random_raw(num_rows), kind="stable")


def _stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
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


def _cut(num_rows: int, **fractions: float) -> dict[str, range]:
    """Divide rows into training rows and those of each fraction, at least one row where it is above 0."""
    counts = {}
    for split, share in fractions.items():
        share = fraction(split, share)
        counts[split] = max(1, round(share * num_rows)) if share > 0 else 0
    train = num_rows - sum(counts.values())
    if train < 1:
        raise UserError(
            f"{num_rows} rows less {counts['validation']} for validation and {counts['test']} for the test "
            f"leave none for training: give more rows or smaller fractions"
        )
    splits, start = {"train": range(train)}, train
    for split, count in counts.items():
        if count:
            splits[split] = range(start, start + count)
        start += count
    return splits
