"""The numbers among inputs and targets, feature by feature: range, mean, deviation, histogram, outliers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from accelnet.data.arrays import leaves
from accelnet.data.columns import input_names
from accelnet.data.glance.examples import feature_names, is_text, lengths_of
from accelnet.data.look.reading import blocks

FAR = 20.0  # deviations: no value of 10**80 normal ones is as far from the mean
_MOST_FEATURES = 1000
_BARS = 30
_LEAST_VALUES = 20  # that outliers may be among
_SOME_ROWS = 5_000
_SOME_VALUES = 200_000


class Numbers(NamedTuple):
    """An array of which each position along the last axis is a feature.

    Attributes:
        names: Names of the C features.
        values: [n, ..., C].
        lengths: Steps of each row that count, int [n], or None for all.
        has_one_a_row: Whether a row holds each feature once.
    """

    names: list[str]
    values: np.ndarray
    lengths: np.ndarray | None
    has_one_a_row: bool

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the values by blocks, float64 [m, C]."""
        start = 0
        for block in blocks(self.values):
            if self.lengths is not None:
                within = np.arange(block.shape[1])[None, :] < self.lengths[start : start + len(block), None]
                start += len(block)
                block = block[within]
            yield block.reshape(-1, len(self.names)).astype(np.float64)


def input_numbers(data: Any, inputs: Any) -> list[Numbers]:
    """Return the arrays of inputs that hold numbers to compute with: floats, pixels, columns; no symbols.

    Args:
        data: The `Data` that they are of.
        inputs: Arrays [n, ...] in the structure of `data.arrays["inputs"]`.

    Example:
        >>> import accelnet as an
        >>> [numbers.names for numbers in input_numbers(an.data.xor(), an.data.xor().arrays["inputs"])]
        [['inputs[0]', 'inputs[1]']]
    """
    found = []
    for path, array in leaves(inputs, "inputs"):
        symbols = is_text(data) or (
            array.dtype.kind in "iu" and array.dtype.itemsize > 1 and array.ndim > 1 and "columns" not in data.fitted
        )
        if array.dtype.kind == "c" or symbols:
            continue
        lengths = lengths_of(inputs) if array.ndim == 3 else None
        found.append(_numbers(data, path, array, lengths))
    return found


def target_numbers(data: Any, targets: Any) -> list[Numbers]:
    """Return the arrays of targets that hold numbers to predict, with the units of the user's file.

    Args:
        data: The `Data` that they are of.
        targets: Arrays [n, ...] in the structure of `data.arrays["targets"]`.
    """
    found = []
    for path, array in leaves(targets, "targets"):
        if array.dtype.kind in "iub" and array.ndim > 1:
            continue  # symbols, or a class for each pixel
        if array.dtype.kind != "c":
            values = data.decode(array) if "target" in data.fitted else array
            found.append(_numbers(data, path, np.asarray(values), None))
    return found


def statistics(numbers: Numbers) -> list[dict[str, Any]]:
    """Compute for each feature its "name", "least", "most", "mean", "std" and "far".

    "far" counts the values at least 20 deviations from the mean, where there are more than two different ones. Mean and
    deviation are those of the middle 99 % of some rows, which outliers do not change.

    Args:
        numbers: Numbers, at least one row of them.

    Example:
        >>> statistics(Numbers(["a"], np.array([[1.0], [3.0]]), None, True))
        [{'name': 'a', 'least': 1.0, 'most': 3.0, 'mean': 2.0, 'std': 1.0, 'far': 0}]
    """
    shape = len(numbers.names)
    count, total, least, most = 0, np.zeros(shape), np.full(shape, np.inf), np.full(shape, -np.inf)
    for part in numbers.parts():
        if len(part):
            count, total = count + len(part), total + part.sum(axis=0)
            least, most = np.minimum(least, part.min(axis=0)), np.maximum(most, part.max(axis=0))
    # The sum of equal numbers divided by their count may be another number.
    mean = np.clip(total / max(1, count), least, most)
    squares = sum((np.square(part - mean[None, :]).sum(axis=0) for part in numbers.parts()), np.zeros(shape))
    std = np.sqrt(squares / max(1, count))
    # A range of bytes is no accident.
    far = np.zeros(shape, np.int64) if numbers.values.dtype.itemsize == 1 else _far(numbers, least, most, mean, std)
    columns = {"least": least, "most": most, "mean": mean, "std": std, "far": far}
    return [
        {"name": name, **{key: values[index].item() for key, values in columns.items()}}
        for index, name in enumerate(numbers.names)
    ]


def _far(numbers: Numbers, least: np.ndarray, most: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    some = _some(numbers)
    if len(some) < _LEAST_VALUES:
        return np.zeros(len(mean), np.int64)
    ends = np.quantile(some, [0.005, 0.995], axis=0)
    middle = np.where((some >= ends[:1]) & (some <= ends[1:]), some, np.nan)
    centre, scale = np.nanmean(middle, axis=0), np.nanstd(middle, axis=0)
    centre, scale = np.where(scale > 0, centre, mean), np.where(scale > 0, scale, std)
    far, between = np.zeros(len(mean), np.int64), np.zeros(len(mean), bool)
    if (np.maximum(most - centre, centre - least) > FAR * scale).any():
        for part in numbers.parts():
            far += (np.abs(part - centre[None, :]) > FAR * scale[None, :]).sum(axis=0)
            between |= ((part > least[None, :]) & (part < most[None, :])).any(axis=0)
    return np.where(between, far, 0)


def histograms(numbers: Numbers, names: Sequence[str]) -> list[dict[str, Any]]:
    """Count the values of some features between edges; of many rows, 5,000 evenly spaced ones.

    Args:
        numbers: Numbers, at least one row of them.
        names: Names of the features.

    Returns:
        For each, "name", "counts" and "edges".
    """
    some = _some(numbers)
    found = []
    for name in names if len(some) else ():
        values = some[:, numbers.names.index(name)]
        counts, edges = np.histogram(values, bins=min(_BARS, max(1, len(np.unique(values[:1000])))))
        found.append({"name": name, "counts": counts.tolist(), "edges": edges.tolist()})
    return found


def _some(numbers: Numbers) -> np.ndarray:
    """Return the values of some rows, evenly spaced, float64 [m, C]."""
    per_row = max(1, int(np.prod(numbers.values.shape[1:])))
    rows = np.linspace(0, len(numbers.values) - 1, min(len(numbers.values), _SOME_ROWS)).astype(np.int64)
    rows = rows[:: max(1, -(-len(rows) * per_row // (_SOME_VALUES * len(numbers.names))))]
    lengths = None if numbers.lengths is None else numbers.lengths[rows]
    return np.concatenate(list(numbers._replace(values=numbers.values[rows], lengths=lengths).parts()))


def _numbers(data: Any, path: str, array: np.ndarray, lengths: np.ndarray | None) -> Numbers:
    channels = array.shape[-1] if array.ndim > 1 else 1
    if array.ndim == 3 and lengths is None and array.dtype == np.uint8:
        channels = 1  # grey pictures
    if channels > _MOST_FEATURES:
        return Numbers([path], array, lengths, False)
    one_a_row = array.ndim <= 2
    names = feature_names(data, path, channels)
    return Numbers(names, array, lengths, one_a_row)


def named_columns(data: Any, inputs: Any) -> list[dict[str, Any]]:
    """Return the columns of a table that hold names, with "name", "names" and "counts" of these.

    Args:
        data: The `Data`.
        inputs: Inputs of some rows [n, features].
    """
    found, start = [], 0
    for column in data.fitted.get("columns", ()) if isinstance(inputs, np.ndarray) and inputs.ndim == 2 else ():
        names = column.get("names") or ()
        if column["kind"] == "categories":
            own = inputs[:, start : start + len(names)]
            found.append({"name": column["name"], "names": list(names), "counts": own.sum(axis=0).astype(int).tolist()})
        start += len(input_names([column]))
    return found


def as_json(rows: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """Return statistics whose numbers JSON can hold: None for what is not finite.

    Example:
        >>> as_json([{"name": "a", "std": float("inf")}])
        [{'name': 'a', 'std': None}]
    """
    return [
        {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}
        for row in rows
    ]
