"""Splits whose rows the user names: by indices, masks, ranges, or a name for each row."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.data.row_labels import row_values
from accelnet.errors import UserError
from accelnet.wording import shown


def order_by_name(splits: Any, num_rows: int) -> tuple[np.ndarray, dict[str, range]]:
    """Put the rows of each split one after the other, training rows first, in the order in which they are named.

    Args:
        splits: As of `divide`.
        num_rows: Number N of rows.

    Returns:
        (order, ranges): int64 [M], the rows, and the range of each split.

    Raises:
        UserError: if there are no training rows, a split is empty or names rows that are not there, or a row is named
            twice.

    Example:
        >>> order_by_name({"ood": [True, False, False, False], "train": range(1, 3)}, 4)
        (array([1, 2, 0]), {'train': range(0, 2), 'ood': range(2, 3)})
    """
    if not isinstance(splits, Mapping):
        names = row_values("splits", splits, num_rows)
        if names.dtype.kind != "U":
            raise UserError(f"splits holds {names.dtype.name} values, expected a name of a split for each row")
        names = np.char.strip(names)
        splits = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist()) if name}
    if "train" not in splits:
        raise UserError(f"splits name {', '.join(map(shown, splits)) or 'nothing'}, expected 'train' among them")
    rows = {split: _rows(f"splits[{split!r}]", splits[split], num_rows) for split in sorted(splits, key=_train_first)}
    owner = np.full(num_rows, -1)
    for number, (split, own) in enumerate(rows.items()):
        taken = own[owner[own] >= 0]
        if len(taken):
            other = list(rows)[owner[taken[0]]]
            raise UserError(f"row {taken[0]} is in the splits {other!r} and {split!r}: leave it in one")
        owner[own] = number
    stops = np.cumsum([len(own) for own in rows.values()]).tolist()
    return np.concatenate(list(rows.values())), dict(zip(rows, map(range, [0, *stops], stops), strict=False))


def check_groups(values: Any, groups: np.ndarray, order: np.ndarray, ranges: Mapping[str, range]) -> None:
    """Raise UserError if rows of one group are in two splits."""
    owner = np.full(int(groups.max()) + 1, -1)
    for number, (split, rows) in enumerate(ranges.items()):
        own = order[rows.start : rows.stop]
        shared = own[(owner[groups[own]] >= 0) & (owner[groups[own]] != number)]
        if len(shared):
            other, group = list(ranges)[owner[groups[shared[0]]]], np.asarray(values)[shared[0]].item()
            raise UserError(
                f"group {shown(group)} has rows in the splits {other!r} and "
                f"{split!r} (row {shared[0]}): name its rows in one of them"
            )
        owner[groups[own]] = number


def _train_first(split: Any) -> bool:
    return split != "train"


def _rows(where: str, given: Any, num_rows: int) -> np.ndarray:
    if isinstance(given, slice):
        given = np.arange(num_rows)[given]
    if isinstance(given, str | bytes | Mapping) or np.isscalar(given) or given is None:
        raise UserError(f"{where} is {shown(given)}, expected indices of rows, a mask or a range")
    array = np.asarray(given)
    if array.ndim != 1 or (array.dtype.kind not in "biu" and array.size):
        raise UserError(f"{where} is {shown(array)}, expected indices of rows, a mask or a range")
    if array.dtype.kind == "b":
        if len(array) != num_rows:
            raise UserError(f"{where} is a mask of {len(array)} rows, expected one of the {num_rows} rows")
        array = np.flatnonzero(array)
    if not array.size:
        raise UserError(f"{where} has no rows: leave it out, or name some")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_rows:
        raise UserError(f"{where} has the row {low if low < 0 else high}, expected 0 to {num_rows - 1}")
    distinct, times = np.unique(array, return_counts=True)
    if (times > 1).any():
        raise UserError(
            f"{where} has the row {distinct[np.argmax(times > 1)]} twice: leave it in once; `Data.sampled` draws rows "
            f"more often than others"
        )
    return array.astype(np.int64)
