"""What a data set is, in a few lines: rows, shapes, classes, what was fitted. No row is read for it."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accelnet.characters import visible
from accelnet.data.arrays import leaves
from accelnet.data.rows import LazyArray
from accelnet.terminal import columns
from accelnet.wording import size

Values = Mapping[str, Any]  # of JSON
_WIDTH = 80
_LINES = 12
_MOST_FIELDS = 4
_FEW_CLASSES = 10
_MOST_LABEL = 999  # of whole numbers that nobody called classes


def outline(data: Any) -> dict[str, Any]:
    """Describe a data set without reading rows that are not in memory.

    Args:
        data: A `Data`.

    Returns:
        JSON values: "name", "rows", "splits" (rows by name), "fields" (each with "name", "dtype", "shape" of a row,
        "bytes" and "place"), "classes" ("names" and "counts" by split; None where targets are no classes, or not in
        memory), "fitted" (in words) and "augment" (its name or None).

    Example:
        >>> import accelnet as an
        >>> outline(an.data.xor())["fields"][0]
        {'name': 'inputs', 'dtype': 'float32', 'shape': [2], 'bytes': 32, 'place': 'in memory'}
    """
    targets = data.arrays["targets"]
    return {
        "name": data.name,
        "rows": data.num_rows,
        "splits": {split: len(rows) for split, rows in data.splits.items()},
        "fields": [
            {
                "name": path, "dtype": array.dtype.name, "shape": list(array.shape[1:]), "bytes": array.nbytes,
                "place": _place(array),
            }
            for path, array in leaves(data.arrays)
        ],
        "classes": counted(
            data, {split: targets[rows.start : rows.stop] for split, rows in data.splits.items()}
        ) if isinstance(targets, np.ndarray) else None,
        "fitted": _fitted(data),
        "augment": None if data.augment is None else _function_name(data.augment),
    }  # fmt: skip


def labels_of(data: Any, targets: np.ndarray) -> np.ndarray | None:
    """Return the classes that targets are, int [N], or None where they are none.

    Classes are one whole number for each row, and answers of 0 and 1.

    Args:
        data: The `Data` that they are of.
        targets: Targets [N, ...], as the arrays hold them.
    """
    if targets.dtype.kind in "iub" and targets.ndim == 1:
        if "num_classes" in data.info:
            return targets.astype(np.int64)
        known = targets.size and targets.min() >= 0 and targets.max() <= _MOST_LABEL
        return targets.astype(np.int64) if known else None
    if targets.size != len(targets) or targets.dtype.kind == "c" or "target" in data.fitted:
        return None
    flat = targets.reshape(-1)
    return flat.astype(np.int64) if len(flat) and bool(((flat == 0) | (flat == 1)).all()) else None


def counted(data: Any, targets: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Count the rows of each class in each split.

    Args:
        data: The `Data`.
        targets: Targets [N, ...] by split.

    Returns:
        "names" of the classes and "counts", by split a number for each; None where targets are no classes.
    """
    found = {split: labels_of(data, values) for split, values in targets.items() if len(values)}
    labels = {split: one for split, one in found.items() if one is not None}
    if not labels or len(labels) < len(found):
        return None
    highest = max(int(one.max()) for one in labels.values())
    num_classes = max(highest + 1, int(data.info.get("num_classes", 0)))
    counts = {split: np.bincount(one, minlength=num_classes).tolist() for split, one in labels.items()}
    return {"names": list(class_names(data, num_classes)), "counts": counts}


def class_names(data: Any, num_classes: int) -> tuple[str, ...]:
    """Return the names that a data set gives its classes, else their numbers."""
    names = tuple(map(str, data.info.get("class_names", ())))
    return names if len(names) == num_classes else tuple(map(str, range(num_classes)))


def outline_text(values: Values) -> str:
    """Return an outline as at most 12 lines of at most 80 characters.

    Args:
        values: JSON values, as of `outline`.

    Example:
        >>> import accelnet as an
        >>> print(outline_text(outline(an.data.xor())))
        data     xor, 4 rows: train 4
        inputs   float32 [N, 2], 32 B in memory
        targets  float32 [N, 1], 16 B in memory
        classes  2, rows in train: 0 2, 1 2
    """
    splits = ", ".join(f"{split} {rows:,}" for split, rows in values["splits"].items())
    fields = values["fields"]
    shown = fields if len(fields) <= _MOST_FIELDS else fields[: _MOST_FIELDS - 1]
    parts = [("data", f"{_short(values['name'], 40)}, {values['rows']:,} rows: {splits}", 2)]
    parts += [(_short(one["name"], 24), field_words(one), 1) for one in shown]
    if len(shown) < len(fields):
        parts.append(("...", f"{len(fields) - len(shown)} arrays more", 1))
    ends = [("fitted", "; ".join(values["fitted"]), 2)] if values["fitted"] else []
    ends += [("augment", values["augment"], 1)] if values["augment"] is not None else []
    indent = 2 + max(len(label) for label, _, _ in [*parts, ("classes", "", 0)])
    first, last = ([line for part in some for line in _wrapped(*part, indent)] for some in (parts, ends))
    classes = [] if values["classes"] is None else [
        *_wrapped("classes", _class_words(**values["classes"]), _LINES - len(first) - len(last), indent)
    ]  # fmt: skip
    return "\n".join([*first, *classes, *last])


def field_words(field: Values) -> str:
    """Return an array in words: its type, shape, size and place.

    Example:
        >>> field_words({"dtype": "uint8", "shape": [28, 28], "bytes": 1 << 20, "place": "read by rows"})
        'uint8 [N, 28, 28], 1.0 MiB read by rows'
    """
    shape = ", ".join(["N", *map(str, field["shape"])])
    return f"{field['dtype']} [{shape}], {size(field['bytes'])} {field['place']}"


def _class_words(names: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    told = [
        f"{_short(name, 24)} {'/'.join(f'{of_split[index]:,}' for of_split in counts.values())}"
        for index, name in enumerate(names)
    ]
    if len(names) > _FEW_CLASSES:
        order = np.argsort(next(iter(counts.values())), kind="stable")
        few, many = ([told[index] for index in part] for part in (order[:3], order[-3:]))
        told = [f"from {few[0]}", *few[1:], f"... to {many[0]}", *many[1:]]
    return f"{len(names):,}, rows in {'/'.join(counts)}: {', '.join(told)}"


def _wrapped(label: str, text: str, most: int, indent: int) -> list[str]:
    text = " ".join(visible(text).split())
    return textwrap.wrap(
        text, min(columns(), _WIDTH), initial_indent=label.ljust(indent), subsequent_indent=" " * indent,
        max_lines=most, placeholder=" ...",
    )  # fmt: skip


def _short(text: str, most: int) -> str:
    text = " ".join(visible(text).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _place(array: Any) -> str:
    if not isinstance(array, LazyArray):
        return "in memory"
    stream = array.rows.stream
    if stream is None:
        return "read by rows"
    return f"in a stream of {stream.steps:,} batches of {stream.batch_size:,}"


def _fitted(data: Any) -> list[str]:
    words = []
    for name, value in data.fitted.items():
        if name == "columns":
            words += [_column_words(value)]
        elif name == "vocabulary":
            words.append(f"a vocabulary of {len(value):,} characters")
        elif name == "class_names":
            words.append(f"names of {len(value):,} classes")
        elif name == "target":
            words.append("mean and std of the target" + (", a logarithm" if value.get("log") else ""))
        elif name == "std" and "mean" in data.fitted:
            continue
        elif name == "mean" and "std" in data.fitted:
            count = len(np.ravel(value))
            words.append(f"mean and std of {count:,} feature{'s' if count > 1 else ''}")
        elif isinstance(value, tuple | Mapping):
            words.append(f"{name} ({len(value):,})")
        else:
            words.append(f"{name} {value}")
    return words


def _column_words(columns: Sequence[Values]) -> str:
    named = [f"{column['name']} ({len(column['names'])} names)" for column in columns if column.get("names")]
    return f"{len(columns)} columns" + (f", {', '.join(named)}" if named else "")


def _function_name(function: Any) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    return name.partition(".<locals>")[0]
