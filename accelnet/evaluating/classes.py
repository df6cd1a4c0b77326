"""Metrics of predicted classes and of answers yes or no: how many are right, and how well confidence fits."""

from typing import Any

import numpy as np

from accelnet.evaluating.bootstrap import Statistic, resampled
from accelnet.evaluating.confusion import by_class, class_rates, class_table, counted, rate_intervals
from accelnet.evaluating.ranking import ranked, ranking_curves
from accelnet.evaluating.shares import (
    Estimate,
    estimates,
    macro_interval,
    mean_known,
    mean_share,
    ratio,
    share_interval,
)  # fmt: skip

BINS = 15  # of confidence


def describe_classes(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Describe predictions of one class of C.

    All is computed from the logits, in float64: where logits differ, probabilities in float32 may be equal, and 1.

    Args:
        logits: Logits, float [N, C], -inf for a class that is left out.
        labels: True classes, int [N].
        weights: Weights of the examples, float [N]; they weigh all that is described.
        names: Names of the C classes.

    Returns:
        "metrics" (`Estimate`s by name), "classes" (per class "name", "support", "precision", "recall", "f1"),
        "confusion" (rows are true classes; None for many), "confused" (the commonest mistakes), "calibration" and, for
        two classes, "curves".

    Example:
        >>> found = describe_classes(np.array([[2.0, 0.1], [0.2, 0.8]]), np.array([0, 1]), np.ones(2), ("a", "b"))
        >>> found["metrics"]["f1_macro"]["value"], found["confusion"]
        (1.0, [[1, 0], [0, 1]])

    Source: Guo et al., "On calibration of modern neural networks", 2017, equation 3, for the calibration error.
    """
    from scipy.special import log_softmax

    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    num_classes, predicted = logits.shape[1], logits.argmax(axis=1)
    logs, every = log_softmax(logits, axis=1), np.arange(len(labels))
    confidence, right = np.exp(logs[every, predicted]), (predicted == labels).astype(np.float64)
    _, bins = np.unique(np.ceil(confidence * BINS), return_inverse=True)
    scores = logits[:, 1] - logits[:, 0] if num_classes == 2 else None
    found = resampled(_statistic(-logs[every, labels], confidence, right, bins, scores, labels), weights)
    # The estimate by bins is too high by about what resampling adds to it once more: the interval is reflected.
    error = found["calibration_error"]
    if error["low"] is not None:
        error["low"], error["high"] = (max(0.0, 2 * error["value"] - error[end]) for end in ("high", "low"))
    tabled = class_table(labels, predicted, weights, names)
    metrics = {
        "accuracy": mean_share(right, weights), **_top(logits, labels, weights), **tabled.pop("metrics"), **found,
    }  # fmt: skip
    described = {"metrics": metrics, **tabled, "calibration": _calibration(bins, confidence, right, weights)}
    if scores is not None and 0 < labels.sum() < len(labels):
        described["curves"] = ranking_curves(scores, labels == 1, weights)
    return described


def describe_labels(
    logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Describe K answers yes or no; one of them as two classes.

    A label that is never yes has no recall, and one that is always yes or always no has no area under the ROC curve:
    these are None, and left out of the means over the labels.

    Args:
        logits: Logits of yes, float [N, K].
        targets: Answers, 0 or 1, [N] or [N, K], integers too; above 0.5 is yes.
        weights: Weights of the examples, float [N].
        names: Names of the K labels.

    Returns:
        For one label as `describe_classes`; else "metrics" (means over the labels) and "classes".

    Example:
        >>> yes = np.array([[2.0, -1.0], [-3.0, 0.5]])
        >>> [c["f1"]["value"] for c in describe_labels(yes, yes > 0, np.ones(2), ("a", "b"))["classes"]]
        [1.0, 1.0]
    """
    logits = np.asarray(logits, np.float64)
    answers = np.asarray(targets, np.float64).reshape(logits.shape) > 0.5
    if logits.shape[1] == 1:
        pair = np.concatenate([np.zeros_like(logits), logits], axis=1)
        return describe_classes(pair, answers[:, 0].astype(np.int64), weights, ("no", "yes"))
    predicted = logits > 0
    columns = [part.astype(np.float64) for part in (answers & predicted, answers, predicted, answers | predicted)]
    rankings = [ranked(logits[:, k], answers[:, k]) for k in range(logits.shape[1])]

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        rates = class_rates(*(weights @ column for column in columns[:3]))
        every = [ranking(weights) for ranking in rankings]
        found = rates | {name: np.stack([one[name] for one in every], axis=1) for name in every[0]}
        return found | {f"{name}_macro": mean_known(value, axis=1) for name, value in found.items()}

    found = resampled(statistic, weights)
    hits, support, claimed, _ = (weights @ column for column in columns)
    rates = rate_intervals((hits, support, claimed), [weights**2 @ column for column in columns[1:]])
    for name, rate in rates.items():
        # Resamples know how labels go together, but not that a share of 1 may be chance.
        alone, macro = macro_interval(*rate, shared=1.0), found[f"{name}_macro"]
        if macro["low"] is not None:
            macro["low"], macro["high"] = min(macro["low"], alone["low"]), max(macro["high"], alone["high"])
        found[name] = estimates(*rate)
    by_label = {name: found.pop(name) for name in [*rates, "roc_auc", "average_precision"]}
    return {"metrics": found, "classes": by_class(names, counted(support, weights), by_label)}


def class_names(info: Any, num_classes: int) -> tuple[str, ...]:
    """Return the names that the data gives its classes, else their numbers."""
    names = tuple(map(str, info.get("class_names", ())))
    return names if len(names) == num_classes else tuple(map(str, range(num_classes)))


def _top(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Estimate]:
    num_classes = logits.shape[1]
    own = logits[np.arange(len(labels)), labels][:, None]
    # Of equals the first rank higher, as in accelnet.objectives.TopKAccuracy.
    ahead = ((logits > own) | ((logits == own) & (np.arange(num_classes) < labels[:, None]))).sum(axis=1)
    return {f"top_{k}_accuracy": mean_share((ahead < k).astype(np.float64), weights) for k in (2, 5) if k < num_classes}


def _calibration(bins: np.ndarray, confidence: Any, right: Any, weights: np.ndarray) -> list[Any]:
    total, sure, hits, squares = (
        np.bincount(bins, weights=values) for values in (weights, weights * confidence, weights * right, weights**2)
    )
    accuracy = estimates(*share_interval(hits, total, squares))
    return [
        {"accuracy": accuracy[b], "confidence": float(sure[b] / total[b]), "share": float(total[b] / total.sum())}
        for b in np.flatnonzero(total > 0)
    ]


def _statistic(
    cross_entropy: np.ndarray, confidence: np.ndarray, right: np.ndarray, bins: np.ndarray, scores: Any, labels: Any
) -> Statistic:
    from scipy.sparse import csr_array

    every = np.arange(len(bins))
    of_bin = csr_array((right - confidence, (every, bins)), shape=(len(bins), bins.max() + 1))
    ranking = None if scores is None else ranked(scores, labels == 1)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=1)
        values = {
            "cross_entropy": ratio(weights @ cross_entropy, total),
            "calibration_error": ratio(np.abs(weights @ of_bin).sum(axis=1), total),
        }
        return values if ranking is None else {**values, **ranking(weights)}

    return statistic
