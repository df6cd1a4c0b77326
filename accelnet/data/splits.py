"""Which rows become training, validation and test rows: seeded, stratified, grouped, by time or by name."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.arguments import fraction, integer
from accelnet.data.arrays import leaves
from accelnet.data.grouping import assign_groups
from accelnet.data.named_splits import check_groups, order_by_name
from accelnet.data.precision import compact_dtype
from accelnet.data.row_labels import row_codes
from accelnet.data.row_order import random_order, stratified_order
from accelnet.data.row_views import joined, reordered
from accelnet.data.rows import LazyArray
from accelnet.errors import UserError


class Share(float):
    """The default share of rows to hold out; where splits name their rows, it counts as none."""


TENTH = Share(0.1)


class Splits(dict[str, range]):
    """The rows of each split, and where each row came from.

    Attributes:
        origin: Row among those that were given, of each row of the arrays, int64 [N].
        num_given: Number of rows that were given, those left out included.
        groups: Number of the group of each row of the arrays, int64 [N]. None: the data was not split by groups.
        by_time: Whether later rows were held out.
    """

    def __init__(
        self,
        ranges: Mapping[str, range],
        origin: np.ndarray,
        num_given: int,
        groups: np.ndarray | None = None,
        by_time: bool = False,
    ) -> None:
        super().__init__(ranges)
        self.origin, self.num_given, self.groups, self.by_time = origin, num_given, groups, by_time


def with_origin(splits: Mapping[str, range], num_rows: int) -> Splits:
    """Return splits of data that know where each of its rows came from.

    Args:
        splits: What `divide` or `split_rows` returned, whose rows others may follow, given as they are; or ranges of
            rows in the order in which they were given.
        num_rows: Number of rows of the arrays.

    Example:
        >>> splits = divide(3, 0, validation=0, test=0)[1]
        >>> with_origin(splits, 5).origin.tolist(), with_origin(dict(splits), 3).origin.tolist()
        ([2, 1, 0, 3, 4], [0, 1, 2])
    """
    if not isinstance(splits, Splits) or len(splits.origin) > num_rows:
        return Splits(splits, np.arange(num_rows), num_rows)
    more = num_rows - len(splits.origin)
    if not more:
        return splits
    origin = np.concatenate([splits.origin, np.arange(splits.num_given, splits.num_given + more)])
    groups = splits.groups
    if groups is not None:  # those of the others are not known
        groups = np.concatenate([groups, np.arange(more) + groups.max() + 1])
    return Splits(splits, origin, splits.num_given + more, groups, splits.by_time)


def split_rows(
    parts: Mapping[str, Mapping[str, Any]],
    seed: int,
    *,
    name: str,
    stratify: Any,
    validation: float,
    test: float,
    groups: Any = None,
    time: Any = None,
    splits: Any = None,
) -> tuple[dict[str, Any], Splits]:
    """Put the rows of a data set in the order train, validation, test.

    Args:
        parts: Arrays (trees of them, with a leading axis of rows) by name, of "train" and of what else was held out
            by the user: "validation", "test". Held-out rows keep their order.
        seed: Seed of the order of the training rows, at least 0.
        name: Name of the data, for messages.
        stratify: Hold out of every class its share: classes as an array of one for each training row; "targets"; or
            True, "targets" where these are one number for each row and rows are drawn. False: not.
        validation: Fraction of the training rows to hold out, at least one row where it is above 0; 0 for none, and
            where the part is there.
        test: The same.
        groups: As of `divide`.
        time: As of `divide`.
        splits: As of `divide`.

    Returns:
        The arrays of all rows by name, and the rows of each split; a split without rows is not there.

    Raises:
        UserError: if a fraction is out of range, no training row is left, the parts do not fit together, or as of
            `divide`.

    Example:
        >>> parts = {"train": {"targets": np.array([7, 8, 9])}, "test": {"targets": np.array([1])}}
        >>> split_rows(parts, 0, name="toy", stratify=False, validation=0.3, test=0)
        ({'targets': array([9, 8, 7, 1])}, {'train': range(0, 2), 'validation': range(2, 3), 'test': range(3, 4)})
    """
    train = parts["train"]
    num_rows = len(next(leaves(train))[1])
    drawn = time is None and splits is None
    labels = None if isinstance(stratify, bool) else stratify
    targets = train.get("targets")
    if isinstance(labels, str) and labels == "targets":
        if isinstance(targets, Mapping) or targets is None or targets.ndim != 1:
            raise UserError(f"{name}: stratify='targets' needs one target for each row: give an array of classes")
        labels = targets
    elif stratify is True and drawn and targets is not None and targets.ndim == 1:
        labels = targets
    division = {"labels": labels, "groups": groups, "time": time, "splits": splits}
    try:
        order, found = divide(num_rows, seed, validation=validation, test=test, **division)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    trees, stop = [reordered(dict(train), order)], len(order)
    for split in ("validation", "test"):
        if split in parts:
            if split in found:
                raise UserError(f"{name}: splits name rows of {split!r}, which is given as arrays too: choose one")
            rows = len(next(leaves(parts[split]))[1])
            found[split] = range(stop, stop + rows)
            stop += rows
            trees.append(parts[split])
    return {key: concatenated([tree[key] for tree in trees], f"{name}: {key}") for key in train}, found


def divide(
    num_rows: int,
    seed: int,
    *,
    validation: float,
    test: float,
    labels: Any = None,
    groups: Any = None,
    time: Any = None,
    splits: Any = None,
) -> tuple[np.ndarray, Splits]:
    """Choose the rows of each split.

    Args:
        num_rows: Number N of rows.
        seed: Seed of the order, at least 0.
        validation: Fraction of the rows to hold out, at least one row where it is above 0; 0 for none.
        test: The same.
        labels: Integers or text [N] of which every split gets its share; None: rows are drawn at random.
        groups: Numbers or text [N]; the rows of a group go to the same split. The fractions, and with `labels` the
            shares of the classes, are as near as `assign_groups` finds them.
        time: Numbers or times [N]. The latest rows are the test, those before them validation; rows of the same time
            are in one split, so that the fractions are the nearest that this allows.
        splits: The rows of each split by name, as indices, a bool mask [N], a range or a slice; or a name for each row,
            text [N]. Rows that are not named, or named "", are left out.

    Returns:
        (order, splits): int [M], the rows in the order train, validation, test, and the ranges of that order.

    Raises:
        UserError: if a fraction is out of range, no training row is left, arrays do not fit the rows, or rows are in
            two splits.

    Example:
        >>> divide(4, seed=0, validation=0.25, test=0)
        (array([3, 2, 1, 0]), {'train': range(0, 3), 'validation': range(3, 4)})
        >>> divide(4, seed=0, validation=0.25, test=0, time=[3, 9, 1, 2])[0].tolist()
        [2, 3, 0, 1]
    """
    seed = integer("seed", seed, low=0)
    ways = {"splits": splits, "time": time, "groups": groups, "stratify": labels}
    given = [way for way, value in ways.items() if value is not None]
    if given[:1] in (["splits"], ["time"]) and given not in (["splits"], ["time"], ["splits", "groups"]):
        raise UserError(f"{given[0]} decides about the rows, and {given[1]} would too: give one of them")
    group_of = None if groups is None else row_codes("groups", groups, num_rows, "groups")
    if splits is not None:
        for split, share in (("validation", validation), ("test", test)):
            if share and not isinstance(share, Share):
                raise UserError(f"{split} is {share}, but splits name the rows: name those of {split!r} there, too")
        order, ranges = order_by_name(splits, num_rows)
        if group_of is not None:
            check_groups(groups, group_of, order, ranges)
    elif time is not None:
        counts = _counts(num_rows, validation=validation, test=test)
        order, ranges = _order_by_time(row_codes("time", time, num_rows, "times"), counts)
    else:
        ranges = _ranges(counts := _counts(num_rows, validation=validation, test=test))
        classes = None if labels is None else row_codes("stratify", labels, num_rows, "classes")
        if group_of is None:
            order = random_order(num_rows, seed) if classes is None else stratified_order(classes, seed)
        else:
            order = random_order(num_rows, seed)
            wanted = [split for split, count in counts.items() if count]
            shares = [counts[split] / num_rows for split in wanted]
            part_of = assign_groups(group_of, shares, seed, classes, what="splits")
            order = order[np.argsort(part_of[order], kind="stable")]
            ranges = _ranges(dict(zip(wanted, np.bincount(part_of).tolist(), strict=True)))
    own = None if group_of is None else group_of[order]
    return order, Splits(ranges, order, num_rows, own, time is not None)


def _order_by_time(times: np.ndarray, counts: Mapping[str, int]) -> tuple[np.ndarray, dict[str, range]]:
    """Order rows by time, and cut where time changes, as near to the counts as that allows."""
    order = np.argsort(times, kind="stable")
    edges = (np.flatnonzero(np.diff(times[order])) + 1).tolist()
    held_out = [split for split in ("test", "validation") if counts[split]]
    stop, sizes = len(times), {}
    for left, split in zip(range(len(held_out) - 1, -1, -1), held_out, strict=True):
        possible = [edge for edge in edges if edge < stop][left:]
        if not possible:
            raise UserError(
                f"time has {len(edges) + 1} different values, expected at least one for each of "
                f"{', '.join(['train', *reversed(held_out)])}, since rows of one time stay together"
            )
        start = min(possible, key=lambda edge, due=stop - counts[split]: abs(edge - due))
        sizes[split], stop = stop - start, start
    return order, _ranges({"train": stop, **{split: sizes[split] for split in reversed(held_out)}})


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


def _counts(num_rows: int, **fractions: float) -> dict[str, int]:
    """Return the numbers of training rows and of those of each fraction, at least one row where it is above 0."""
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
    return {"train": train, **counts}


def _ranges(counts: Mapping[str, int]) -> dict[str, range]:
    """Return where the rows of each split are, one split after the other; a split without rows is not there."""
    stops = np.cumsum(list(counts.values())).tolist()
    ranges = map(range, [0, *stops], stops)
    return {split: rows for split, rows in zip(counts, ranges, strict=False) if len(rows)}
