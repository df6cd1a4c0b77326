"""Examples of a data set as values that a person can look at: pictures, texts, series, rows."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from accelnet.data.arrays import leaves
from accelnet.data.columns import input_names
from accelnet.data.glance.outline import class_names, labels_of
from accelnet.report.numbers import number
from accelnet.report.pictures import is_images, picture

_MOST_INPUTS = 24
_MOST_NAMELESS = 8
_MOST_LINES = 6  # of a series
_MOST_STEPS = 200
_MOST_CHARACTERS = 400


def examples(data: Any, batch: Mapping[str, Any], rows: np.ndarray) -> list[dict[str, Any]]:
    """Turn rows into something to look at.

    Args:
        data: The `Data` that they are of.
        batch: The rows, as `data.raw(rows)` gives them.
        rows: int [B], their numbers.

    Returns:
        For each, "row", "target" (in words) and what `shown_inputs` gives.

    Example:
        >>> import accelnet as an
        >>> data = an.data.xor()
        >>> examples(data, data.raw(np.array([1])), np.array([1]))
        [{'row': 1, 'target': '1', 'inputs': {'inputs[0]': 0.0, 'inputs[1]': 1.0}}]
    """
    return [
        {"row": int(row), "target": _target(data, batch, index), **shown_inputs(data, batch["inputs"], index)}
        for index, row in enumerate(rows)
    ]


def shown_inputs(data: Any, inputs: Any, index: int) -> dict[str, Any]:
    """Return the inputs of one row as something to look at.

    Args:
        data: The `Data` that they are of.
        inputs: Inputs of some rows, arrays [B, ...] in the structure of `data.arrays["inputs"]`.
        index: Position of the row among them.

    Returns:
        "picture", a PNG as a data URI, of an image; "text" of characters; "series", up to six lists of numbers, of
        numbers that have steps; else "inputs", up to 24 numbers and names of categories by name, or 8 where the data
        has no names. Of a dict with an image or a series, that alone.
    """
    fields = list(leaves(inputs, "inputs"))
    for _, array in fields:
        if is_images(array):
            return {"picture": picture(array[index])}
    if is_text(data) and not isinstance(inputs, Mapping):
        return {"text": data.decode(inputs[index])[:_MOST_CHARACTERS]}
    for _, array in fields:
        if array.ndim == 3 and array.dtype.kind == "f":
            return {"series": _series(array[index], _length(inputs, array, index))}
    table = data.fitted.get("columns")
    if table and len(fields) == 1 and fields[0][1].ndim == 2:
        return {"inputs": dict(_table_row(table, fields[0][1][index]))}
    values = [pair for path, array in fields for pair in _numbers(data, path, array[index])]
    return {"inputs": dict(values[:_MOST_INPUTS])}


def is_text(data: Any) -> bool:
    """Say whether the inputs of a data set are symbols of a text, which `data.decode` spells."""
    return bool({"vocabulary", "tokenizer"} & set(data.info))


def lengths_of(inputs: Any) -> np.ndarray | None:
    """Return how many steps of each series are valid, int [N], where a data set says it."""
    lengths = inputs.get("lengths") if isinstance(inputs, Mapping) else None
    if lengths is None or isinstance(lengths, Mapping) or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        return None
    return lengths


def feature_names(data: Any, path: str, num_features: int) -> list[str]:
    """Return names for the last axis of an array of inputs: those that the data has, else positions.

    Example:
        >>> import accelnet as an
        >>> feature_names(an.data.xor(), "inputs", 2)
        ['inputs[0]', 'inputs[1]']
    """
    known = data.info.get("input_names", ())
    if path == "inputs" and len(known) == num_features:
        return list(map(str, known))
    return [path] if num_features == 1 else [f"{path}[{index}]" for index in range(num_features)]


def _length(inputs: Any, array: np.ndarray, index: int) -> int:
    lengths = lengths_of(inputs)
    return array.shape[1] if lengths is None else int(lengths[index])


def _series(steps: np.ndarray, length: int) -> list[list[float]]:
    every = max(1, -(-length // _MOST_STEPS))
    return steps[:length:every, :_MOST_LINES].T.astype(np.float64).tolist()


def _table_row(columns: Any, values: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a table as its file has them: of 0 and 1 for each name, the name."""
    start = 0
    for column in columns[:_MOST_INPUTS]:
        width = len(input_names([column]))
        own = values[start : start + width]
        start += width
        names = column.get("names") or ()
        if column.get("flag") and own[-1] == 1:
            yield column["name"], "missing"
        elif column["kind"] == "categories":
            yield column["name"], names[int(own[: len(names)].argmax())] if own[: len(names)].any() else "none of them"
        elif column["kind"] == "positions":
            yield column["name"], names[round(float(own[0]))] if own[0] % 1 == 0 else float(own[0])
        else:
            yield column["name"], float(own[0])


def _numbers(data: Any, path: str, values: Any) -> Iterator[tuple[str, float]]:
    flat = np.ravel(values)
    if flat.dtype.kind == "c":
        return
    names = feature_names(data, path, len(flat))
    most = _MOST_NAMELESS if names[-1].endswith("]") else _MOST_INPUTS
    for name, value in zip(names[:most], flat[:most], strict=True):
        yield name, float(value)


def _target(data: Any, batch: Mapping[str, Any], index: int) -> str:
    targets = batch["targets"]
    if isinstance(targets, Mapping):
        return ", ".join(f"{path} {_few(array[index])}" for path, array in leaves(targets, "targets"))
    if is_text(data) and targets.ndim == 2 and targets.dtype.kind in "iu":
        return ""  # the next characters
    labels = labels_of(data, targets)
    if labels is not None:
        label = int(labels[index])
        return class_names(data, max(label + 1, int(data.info.get("num_classes", 0))))[label]
    return _few(data.decode(targets[index]) if "target" in data.fitted else targets[index])


def _few(values: Any) -> str:
    flat = np.ravel(values)
    if flat.dtype.kind == "c":
        return f"{len(flat)} complex numbers"
    return ", ".join(number(float(value)) for value in flat[:4]) + (", ..." if len(flat) > 4 else "")
