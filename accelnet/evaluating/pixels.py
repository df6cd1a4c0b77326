"""Metrics of one predicted class for each pixel, or each step, of an example."""

from typing import Any

import numpy as np

from accelnet.evaluating.bootstrap import resampled
from accelnet.evaluating.confusion import class_rates, class_table
from accelnet.evaluating.shares import mean_known, ratio


def describe_pixels(
    predicted: np.ndarray, labels: np.ndarray, counted: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Describe predictions of one class of C at each of many places of an example.

    The places of an example are alike, so the intervals come from resampled examples, not from resampled places.

    Args:
        predicted: Predicted classes, int [N, ...].
        labels: True classes, int [N, ...].
        counted: Places that count, bool [N, ...].
        weights: Weights of the examples, float [N].
        names: Names of the C classes.

    Returns:
        "metrics" ("f1_macro", "iou_macro": means of F1 and of the intersection over union), "classes", "confusion" and
        "confused", of places, as in `describe_classes`.

    Example:
        >>> classes = np.array([[0, 1, 1], [0, 0, 1]])
        >>> found = describe_pixels(classes, classes, np.ones((2, 3), bool), np.ones(2), ("ground", "tree"))
        >>> found["metrics"]["iou_macro"]["value"], found["confusion"]
        (1.0, [[3, 0], [0, 3]])

    Source: Everingham et al., "The Pascal visual object classes challenge", 2015, section 4.3, for the intersection
    over union.
    """
    num_classes, num_examples = len(names), len(labels)
    owner = np.broadcast_to(np.arange(num_examples).reshape(-1, *[1] * (labels.ndim - 1)), labels.shape)[counted]
    true, called = labels[counted].astype(np.int64), predicted[counted].astype(np.int64)

    def places(index: np.ndarray, chosen: Any = slice(None)) -> np.ndarray:
        cells = owner[chosen] * num_classes + index[chosen]
        return np.bincount(cells, minlength=num_examples * num_classes).reshape(num_examples, num_classes).astype(float)

    parts = places(true, true == called), places(true), places(called)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits, support, claimed = (weights @ part for part in parts)
        found = class_rates(hits, support, claimed) | {"iou": ratio(hits, support + claimed - hits, np.nan)}
        return found | {f"{name}_macro": mean_known(found[name], axis=1) for name in ("f1", "iou")}

    found = resampled(statistic, weights)
    described = class_table(true, called, weights[owner], names)
    for name in ("precision", "recall", "f1", "iou"):
        for one, estimate in zip(described["classes"], found.pop(name), strict=True):
            one[name] = estimate
    return {**described, "metrics": found}
