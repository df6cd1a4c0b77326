"""A row that shows what a model takes, for pages and for the description of the interface."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.artifact.program import STEPS
from accelnet.artifact.raw_rows import picture_form, takes_text

_MOST_NUMBERS = 64  # of an example that a person can read


def kind_of_rows(schema: Mapping[str, Any]) -> str:
    """Return what a person would send: a row of a "table", a "picture", "text", an "array", or several "arrays".

    Example:
        >>> kind_of_rows({"inputs": {"dtype": "uint8", "shape": ["batch", 8, 8, 1]}, "fitted": {}, "tokenizer": None})
        'picture'
    """
    if "columns" in schema["fitted"]:
        return "table"
    if picture_form(schema) is not None:
        return "picture"
    if takes_text(schema):
        return "text"
    return "array" if isinstance(schema["inputs"].get("dtype"), str) else "arrays"


def example(schema: Mapping[str, Any]) -> Any:
    """Return one row as JSON has it; None where that would be too long to read.

    Example:
        >>> schema = {"inputs": {"dtype": "float32", "shape": ["batch", 2]}, "fitted": {}, "tokenizer": None}
        >>> example(schema)
        [0.0, 0.0]
    """
    kind = kind_of_rows(schema)
    if kind == "table":
        return {one["name"]: _value(one) for one in schema["fitted"]["columns"]}
    if kind == "text":
        return str(schema["fitted"].get("vocabulary", "a text"))[:16]
    if kind == "picture":
        return None
    return _zeros(schema["inputs"])


def _value(column: Mapping[str, Any]) -> Any:
    values = {"number": 1.5, "boolean": True, "time": "2024-03-31 12:00:00"}
    return values[column["kind"]] if column["kind"] in values else column["names"][0]


def _zeros(described: Mapping[str, Any]) -> Any:
    """Return zeros of one row, two steps of a sequence; None where there are many."""
    if not isinstance(described.get("dtype"), str):
        found = {name: _zeros(one) for name, one in described.items() if name != "lengths"}
        return None if None in found.values() else found
    shape = [2 if size == STEPS else size for size in described["shape"][1:]]
    zeros = np.zeros(shape, float if "float" in described["dtype"] else int)
    return None if zeros.size > _MOST_NUMBERS else zeros.tolist()
