"""What can be said of one class for each pixel, or each step, of an example."""

from typing import Any

import numpy as np

from accelnet.evaluating.bootstrap import mean_known, ratio, resampled
from accelnet.evaluating.confusion import class_table


def describe_pixels(
    predicted: np.ndarray, labels: np.ndarray, counted: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Describe predictions of one class of C at each of many places of an example.

    The places of an example are alike, so that intervals come from other examples, not from other places.

    Args:
        predicted: int [N, ...], the classes.
        labels: int [N, ...].
        counted: bool [N, ...], the places that count.
        weights: float [N], of the examples.
        names: of the C classes.

    Returns:
        "metrics" ("f1_macro", "iou_macro": means of F1 and of the intersection over union), "classes", "confusion" and
        "confused", of places, as of `describe_classes`.

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

    hits, support, claimed = places(true, true == called), places(true), places(called)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        right, of_class, called_so = weights @ hits, weights @ support, weights @ claimed
        found = {
            "precision": np.where((called_so == 0) & (of_class > 0), 0.0, ratio(right, called_so, np.nan)),
            "recall": ratio(right, of_class, np.nan),
            "f1": ratio(2 * right, of_class + called_so, np.nan),
            "iou": ratio(right, of_class + called_so - right, np.nan),
        }
        return found | {f"{name}_macro": mean_known(found[name], axis=1) for name in ("f1", "iou")}

    found = resampled(statistic, weights)
    described = class_table(true, called, weights[owner], names)
    by_class = {name: found.pop(name) for name in ("precision", "recall", "f1", "iou")}
    for place, one in enumerate(described["classes"]):
        one |= {
            name: {end: None if values is None else values[place] for end, values in value.items()}
            for name, value in by_class.items()
        }
    return {**described, "metrics": found}
