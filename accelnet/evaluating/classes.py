"""What can be said of predicted classes: right, how sure, and which for which."""

from typing import Any

import numpy as np

from accelnet.evaluating.bootstrap import Statistic, ratio, resampled
from accelnet.evaluating.ranking import ranked, ranking_curves
from accelnet.evaluating.shares import Found, entries, f1_interval, macro_interval, mean_share, share_interval

BINS = 15  # of confidence
_MOST_CLASSES = 50  # whose confusion matrix is kept whole
_PAIRS = 20  # most confused


def describe_classes(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Describe predictions of one class of C.

    All is computed from the logits, in float64: probabilities of float32 are 1, and equal, for logits that are not.

    Args:
        logits: float [N, C], -inf for a class that is left out.
        labels: int [N].
        weights: float [N], of the examples; they weigh all that is described.
        names: of the C classes.

    Returns:
        "metrics" (each "value", "low" and "high", None where undefined), "classes" (per class "name", "support",
        "precision", "recall", "f1"), "confusion" (rows are true classes; None for many), "confused" (the commonest
        mistakes), "calibration" and, for two classes, "curves".

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
    occupied, bins = np.unique(np.ceil(confidence * BINS), return_inverse=True)
    scores = logits[:, 1] - logits[:, 0] if num_classes == 2 else None
    found = resampled(_statistic(-logs[every, labels], confidence, right, bins, scores, labels), weights)
    # The estimate by bins is too high by about what resampling adds to it once more: the interval is reflected.
    error = found["calibration_error"]
    if error["low"] is not None:
        error["low"], error["high"] = (max(0.0, 2 * error["value"] - error[end]) for end in ("high", "low"))
    tabled = class_table(labels, predicted, weights, names)
    described = {
        "metrics": {
            "accuracy": mean_share(right, weights),
            **_top(logits, labels, weights),
            **tabled.pop("metrics"),
            **found,
        },
        **tabled,
        "calibration": _calibration(bins, len(occupied), confidence, right, weights),
    }
    if scores is not None and 0 < labels.sum() < len(labels):
        described["curves"] = ranking_curves(scores, labels == 1, weights)
    return described


def class_names(info: Any, num_classes: int) -> tuple[str, ...]:
    """Return what the data calls its classes, else their numbers."""
    names = tuple(map(str, info.get("class_names", ())))
    return names if len(names) == num_classes else tuple(map(str, range(num_classes)))


def class_table(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray, names: tuple[str, ...]) -> Any:
    """Count which classes came out as which, and say how well each is predicted.

    Precision is 0 for a class that occurs and is never predicted, as scikit-learn has it; it and F1 are undefined for a
    class that neither occurs nor is predicted, and recall for one that does not occur.

    Args:
        labels: int [N], the true classes.
        predicted: int [N].
        weights: float [N].
        names: of the C classes.

    Returns:
        "metrics" ("f1_macro"), "classes", "confusion" and "confused", as of `describe_classes`.
    """
    num_classes = len(names)
    pairs, where = np.unique(labels * num_classes + predicted, return_inverse=True)
    counts = np.bincount(where, weights=weights, minlength=len(pairs))
    squares = np.bincount(where, weights=weights**2, minlength=len(pairs))
    true, called = np.divmod(pairs, num_classes)

    def summed(values: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.bincount(index, weights=values, minlength=num_classes)

    correct = true == called
    hits, support, claimed = summed(counts * correct, true), summed(counts, true), summed(counts, called)
    f1 = f1_interval(hits, support, claimed, summed(squares, true) + summed(squares * ~correct, called))
    # An example counts in at most two classes: its own, and that which it was taken for.
    values = {
        "precision": share_interval(hits, claimed, summed(squares, called)),
        "recall": share_interval(hits, support, summed(squares, true)),
        "f1": f1,
    }
    np.copyto(values["precision"][0], 0.0, where=(claimed == 0) & (support > 0))
    whole = bool((weights == np.round(weights)).all())
    count = int if whole else float
    columns = {name: entries(*value) for name, value in values.items()}
    wrong = [index for index in np.argsort(-counts, kind="stable") if counts[index] > 0 and not correct[index]]
    matrix = None
    if num_classes <= _MOST_CLASSES:
        matrix = np.zeros((num_classes, num_classes), int if whole else float)
        matrix[true, called] = counts
    return {
        "metrics": {"f1_macro": macro_interval(*f1, shared=2.0)},
        "classes": [
            {"name": name, "support": count(support[c]), **{key: column[c] for key, column in columns.items()}}
            for c, name in enumerate(names)
        ],
        "confusion": None if matrix is None else matrix.tolist(),
        "confused": [
            {"true": names[true[i]], "predicted": names[called[i]], "count": count(counts[i]),
             "share": counts[i] / support[true[i]]}
            for i in wrong[:_PAIRS]
        ],
    }  # fmt: skip


def _top(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Found]:
    num_classes = logits.shape[1]
    own = logits[np.arange(len(labels)), labels][:, None]
    # Of equals the first rank higher, as in accelnet.objectives.TopKAccuracy.
    ahead = ((logits > own) | ((logits == own) & (np.arange(num_classes) < labels[:, None]))).sum(axis=1)
    return {f"top_{k}_accuracy": mean_share((ahead < k).astype(np.float64), weights) for k in (2, 5) if k < num_classes}


def _calibration(bins: np.ndarray, number: int, confidence: Any, right: Any, weights: np.ndarray) -> list[Any]:
    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins, weights=values, minlength=number)

    total = summed(weights)
    sure, share = ratio(summed(weights * confidence), total), total / total.sum()
    accuracy = entries(*share_interval(summed(weights * right), total, summed(weights**2)))
    return [
        {"accuracy": accuracy[b], "confidence": float(sure[b]), "share": float(share[b])}
        for b in range(number)
        if total[b] > 0
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
