"""From answers to plain values for JSON: class names, probabilities, numbers in their units."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.artifact.outputs import OUTPUTS
from accelnet.artifact.prediction import Prediction


def told(prediction: Prediction) -> list[dict[str, Any]]:
    """Return each row's prediction as values for `written`.

    Args:
        prediction: Predictions for B rows.

    Returns:
        Of classes "label", "probability" and, by class, "probabilities" (not of pixels); of several labels "label" and
        "probability"; of tokens "text" or "tokens"; of numbers "prediction"; of others "outputs".

    Example:
        >>> values = {"outputs": np.zeros((1, 2)), "probabilities": np.array([[0.25, 0.75]]), "classes": np.array([1])}
        >>> written(told(Prediction("classes", [0], values, {"class_names": ("no", "yes")})))
        b'[{"label":"yes","probability":0.75,"probabilities":{"no":0.25,"yes":0.75}}]'
    """
    columns = _columns(prediction)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def written(value: Any) -> bytes:
    """Write plain values and arrays as JSON: float32 with as few digits as it needs, null for what is not finite.

    Example:
        >>> written({"a": np.array([0.1, np.nan], np.float32)})
        b'{"a":[0.1,null]}'
    """
    import orjson

    return orjson.dumps(value, _list_of, orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _list_of(array: Any) -> Any:
    """Return an array of a type that the writer does not know as one that it knows, or as lists."""
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"{type(array).__name__} is no value of JSON")
    return np.ascontiguousarray(array, np.float32) if array.dtype.name == "bfloat16" else array.tolist()


def _columns(prediction: Prediction) -> Mapping[str, Any]:
    kind, values = prediction.kind, prediction.values
    if kind == "classes":
        shares = values["probabilities"]
        if shares.ndim > 2:
            return {"label": prediction.labels, "probability": shares.max(axis=-1)}
        names = prediction.class_names
        names = names if len(names) == shares.shape[1] else tuple(map(str, range(shares.shape[1])))
        return {
            "label": prediction.labels,
            "probability": [row[number] for row, number in zip(shares, values["classes"], strict=True)],
            "probabilities": [dict(zip(names, row, strict=True)) for row in shares],
        }
    if kind == "labels":
        return {"label": prediction.labels, "probability": values["probabilities"]}
    if kind == "tokens":
        labels = prediction.labels
        assert labels is not None
        return {"text": labels} if labels.dtype.kind == "U" else {"tokens": labels}
    if kind == "numbers":
        numbers = prediction.numbers
        assert numbers is not None
        return {"prediction": numbers[:, 0] if numbers.shape[1:] == (1,) else numbers}
    outputs = prediction.outputs
    if not isinstance(outputs, Mapping):
        return {OUTPUTS: outputs}
    return {OUTPUTS: [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}
