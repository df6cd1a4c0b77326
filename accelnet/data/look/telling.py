"""Inputs that alone tell the target: what should not be known yet, or needs no network."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from accelnet.data.columns import input_names
from accelnet.data.glance.outline import labels_of
from accelnet.data.look.features import input_numbers, target_numbers
from accelnet.data.look.finding import Finding, few
from accelnet.data.look.reading import SplitRows

_MOST_ROWS = 20_000
_LEAST_ROWS = 20
_LEAST_OTHERS = 10  # rows that are not of the commonest class
_EQUAL = 0.999  # correlation


def telling_inputs(data: Any, train: SplitRows) -> list[Finding]:
    """Find inputs that alone tell the target: they equal it, order as it does, or each value has one class.

    Args:
        data: The `Data`.
        train: Rows of the training split.

    Example:
        >>> import accelnet as an
        >>> from accelnet.data.look.reading import read_splits
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> data = an.data.from_arrays(x, x[:, 1] > 0, num_classes=2)
        >>> telling_inputs(data, read_splits(data, 0, lambda text: None)["train"])[0].text
        'of 1 of 2 inputs each value (or range of values) has one class in 160 rows of train: inputs[1]'
    """
    rows = np.linspace(0, len(train.rows) - 1, min(len(train.rows), _MOST_ROWS)).astype(np.int64)
    if len(rows) < _LEAST_ROWS:
        return []
    some = {key: _taken(train.arrays[key], rows) for key in ("inputs", "targets")}
    columns = dict(_columns(data, some["inputs"]))
    targets = some["targets"]
    labels = None if isinstance(targets, Mapping) else labels_of(data, targets)
    if labels is not None:
        found = [name for name, (values, _) in columns.items() if _tells_class(values, labels)]
        text = f"of {len(found):,} of {len(columns):,} inputs each value (or range of values) has one class"
    else:
        found = _correlated({name: values for name, (values, ordered) in columns.items() if ordered}, data, targets)
        text = f"{len(found):,} of {len(columns):,} inputs equal the target or order as it does (|r| > {_EQUAL})"
    if not found:
        return []
    advice = "leave them out if they are not known before the target is; else no network is needed"
    text = f"{text} in {len(rows):,} rows of train: {few(found)}"
    return [Finding("inputs that tell the target", len(found), text, advice)]


def _taken(tree: Any, rows: np.ndarray) -> Any:
    return {key: _taken(one, rows) for key, one in tree.items()} if isinstance(tree, Mapping) else tree[rows]


def _columns(data: Any, inputs: Any) -> Iterator[tuple[str, tuple[np.ndarray, bool]]]:
    """Yield name, values [n] and whether they have an order; inputs of 0 and 1 for each name are one column again."""
    for numbers in input_numbers(data, inputs):
        if not numbers.has_one_a_row:
            continue
        values = np.concatenate(list(numbers.parts()))
        table = data.fitted.get("columns", ())
        if sum(len(input_names([column])) for column in table) != values.shape[1]:
            yield from ((name, (values[:, index], True)) for index, name in enumerate(numbers.names))
            continue
        start = 0
        for column in table:
            width = len(input_names([column]))
            own = values[:, start : start + width]
            start += width
            named = column["kind"] == "categories"
            yield column["name"], (np.where(own.any(axis=1), own.argmax(axis=1), -1) if named else own[:, 0], not named)


def _tells_class(values: np.ndarray, labels: np.ndarray) -> bool:
    """Say whether each value, or each of a few ranges of values, has one class, and not by chance."""
    order = np.argsort(values, kind="stable")
    changes, differ = (one[order][1:] != one[order][:-1] for one in (labels, values))
    if (changes & ~differ).any():
        return False
    counts = np.bincount(labels)
    others, num_classes = len(labels) - counts.max(), (counts > 0).sum()
    most = others / 5
    if differ.sum() > len(values) / 10:  # few rows of a value: a little noise would leave many ranges
        most = min(most, 2 * (num_classes - 1) + others / 50)
    return bool(others >= _LEAST_OTHERS and changes.sum() <= most)


def _correlated(columns: Mapping[str, np.ndarray], data: Any, targets: Any) -> list[str]:
    from scipy.stats import rankdata

    found = []
    for numbers in target_numbers(data, targets):
        if not numbers.has_one_a_row:
            continue
        goals = np.concatenate(list(numbers.parts()))
        for goal in goals.T:
            ranks = rankdata(goal)
            for name, column in columns.items():
                if max(abs(_correlation(column, goal)), abs(_correlation(rankdata(column), ranks))) > _EQUAL:
                    found.append(name)
    return list(dict.fromkeys(found))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else 0.0
