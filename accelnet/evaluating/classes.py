"""What can be said of predicted classes: right, how sure, and which for which."""

from typing import Any

import numpy as np

from accelnet.evaluating.bootstrap import Statistic, ratio, resampled

BINS = 15  # of confidence
_MOST_CLASSES = 50  # whose confusion matrix is kept whole
_PAIRS = 20  # most confused
_CURVE_POINTS = 200


def describe_classes(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Describe predictions of one class of C.

    Args:
        probabilities: float [N, C].
        labels: int [N].
        weights: float [N], of the examples.
        names: of the C classes.

    Returns:
        "metrics" (with intervals, as of `resampled`), "classes" (per class "name", "support", "precision", "recall",
        "f1"), "confusion" (rows are true classes; None for many), "confused" (the commonest mistakes), "calibration"
        and, for two classes, "curves".

    Example:
        >>> found = describe_classes(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), np.ones(2), ("a", "b"))
        >>> found["metrics"]["f1_macro"]["value"], found["confusion"]
        (1.0, [[1, 0], [0, 1]])

    Source: Guo et al., "On calibration of modern neural networks", 2017, equation 3, for the calibration error.
    """
    from sklearn.metrics import confusion_matrix

    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    num_classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
    statistic = _statistic(probabilities, labels, predicted)
    found = resampled(statistic, weights)
    # The estimate by bins is too high by about what resampling adds to it once more: the interval is reflected.
    error = found["calibration_error"]
    if error["low"] is not None:
        error["low"], error["high"] = (max(0.0, 2 * error["value"] - error[end]) for end in ("high", "low"))
    per_class = {name: found.pop(name) for name in ("precision", "recall", "f1")}
    bins = {name: found.pop(name) for name in ("bin_accuracy", "bin_confidence", "bin_share")}
    counted = confusion_matrix(labels, predicted, labels=np.arange(num_classes))
    support = counted.sum(axis=1)
    wrong = counted * ~np.eye(num_classes, dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [divmod(int(cell), num_classes) for cell in order if wrong.flat[cell]]
    described = {
        "metrics": found,
        "classes": [
            {"name": name, "support": int(support[c]), **{key: _entry(value, c) for key, value in per_class.items()}}
            for c, name in enumerate(names)
        ],
        "confusion": counted.tolist() if num_classes <= _MOST_CLASSES else None,
        "confused": [
            {"true": names[a], "predicted": names[b], "count": int(wrong[a, b]), "share": wrong[a, b] / support[a]}
            for a, b in pairs
        ],
        "calibration": [
            {"accuracy": _entry(bins["bin_accuracy"], b)}
            | {name: bins[f"bin_{name}"]["value"][b] for name in ("confidence", "share")}
            for b in range(len(bins["bin_share"]["value"]))
        ],
    }
    if num_classes == 2 and 0 < support[1] < len(labels):
        described["curves"] = _curves(probabilities[:, 1], labels, weights)
    return described


def class_names(info: Any, num_classes: int) -> tuple[str, ...]:
    """Return what the data calls its classes, else their numbers."""
    names = tuple(map(str, info.get("class_names", ())))
    return names if len(names) == num_classes else tuple(map(str, range(num_classes)))


def _entry(found: dict[str, Any], index: int) -> dict[str, Any]:
    return {end: None if values is None else values[index] for end, values in found.items()}


def _statistic(probabilities: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> Statistic:
    from scipy.sparse import csr_array

    num_examples, num_classes = probabilities.shape
    every = np.arange(num_examples)
    right = (predicted == labels).astype(np.float64)
    own, confidence = probabilities[every, labels], probabilities[every, predicted]
    # Of equals the first rank higher, as in accelnet.objectives.TopKAccuracy.
    ahead = (probabilities > own[:, None]) | (
        (probabilities == own[:, None]) & (np.arange(num_classes) < labels[:, None])
    )
    found = {f"top_{k}_accuracy": (ahead.sum(axis=1) < k).astype(np.float64) for k in (2, 5) if k < num_classes}
    # A probability that float32 rounds to 0 is taken for its smallest: the logarithm stays finite.
    cross_entropy = -np.log(np.maximum(own, np.finfo(np.float32).tiny))

    def one_hot(index: np.ndarray, size: int) -> Any:
        return csr_array((np.ones(num_examples), (every, index)), shape=(num_examples, size))

    of_label, of_predicted = one_hot(labels, num_classes), one_hot(predicted, num_classes)
    occupied, bins = np.unique(np.ceil(confidence * BINS), return_inverse=True)
    of_bin = one_hot(bins, len(occupied))
    present = np.bincount(labels, minlength=num_classes) + np.bincount(predicted, minlength=num_classes) > 0
    ranked = _ranked(probabilities[:, 1], labels) if num_classes == 2 else None

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=1)
        hits, support, claimed = (weights * right) @ of_label, weights @ of_label, weights @ of_predicted
        f1 = ratio(2 * hits, support + claimed)
        in_bin, bin_right, bin_sure = weights @ of_bin, (weights * right) @ of_bin, (weights * confidence) @ of_bin
        values = {
            "accuracy": ratio(weights @ right, total),
            **{name: ratio(weights @ value, total) for name, value in found.items()},
            "cross_entropy": ratio(weights @ cross_entropy, total),
            "f1_macro": f1[:, present].mean(axis=1),
            "calibration_error": ratio(np.abs(bin_right - bin_sure).sum(axis=1), total),
            "precision": ratio(hits, claimed),
            "recall": ratio(hits, support),
            "f1": f1,
            # A resample without any example of a bin says nothing of it.
            "bin_accuracy": np.where(in_bin > 0, ratio(bin_right, in_bin), np.nan),
            "bin_confidence": ratio(bin_sure, in_bin),
            "bin_share": ratio(in_bin, total[:, None]),
        }
        return values if ranked is None else {**values, **ranked(weights)}

    return statistic


def _ranked(scores: np.ndarray, labels: np.ndarray) -> Statistic:
    """Return the statistic of the areas under the ROC and the precision-recall curve; equal scores count as one."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    positive = labels[order].astype(np.float64)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        sorted_ = weights[:, order]
        hits = np.cumsum(sorted_ * positive, axis=1)[:, ends]
        alarms = np.cumsum(sorted_ * (1 - positive), axis=1)[:, ends]
        recall, fall = (ratio(part, part[:, -1:]) for part in (hits, alarms))
        before = np.pad(recall, ((0, 0), (1, 0)))[:, :-1]
        middle = (recall + before) / 2
        gain = np.diff(fall, axis=1, prepend=0.0)
        precision = ratio(hits, hits + alarms)
        return {
            "roc_auc": (middle * gain).sum(axis=1),
            "average_precision": ((recall - before) * precision).sum(axis=1),
        }

    return statistic


def _curves(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    fall, hit, _ = roc_curve(labels, scores, sample_weight=weights)
    precision, recall, _ = precision_recall_curve(labels, scores, sample_weight=weights)
    return {
        "roc": _thinned(np.stack([fall, hit], axis=1)),
        "precision_recall": _thinned(np.stack([recall[::-1], precision[::-1]], axis=1)),
    }


def _thinned(points: np.ndarray) -> list[list[float]]:
    index = np.unique(np.linspace(0, len(points) - 1, _CURVE_POINTS).round().astype(int))
    return points[index].tolist()


def describe_labels(
    probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Describe K answers yes or no; one of them as two classes.

    Args:
        probabilities: of yes, float [N, K].
        targets: 0 or 1, [N] or [N, K]; above 0.5 is yes.
        weights: float [N], of the examples.
        names: of the K labels.

    Returns:
        As of `describe_classes` for one label; else "metrics" (means over the labels) and "classes".

    Example:
        >>> yes = np.array([[0.9, 0.2], [0.3, 0.6]])
        >>> [c["f1"]["value"] for c in describe_labels(yes, yes > 0.5, np.ones(2), ("a", "b"))["classes"]]
        [1.0, 1.0]
    """
    answers = (np.asarray(targets).reshape(len(targets), -1) > 0.5).astype(np.int64)
    pairs = np.stack([1 - probabilities, probabilities], axis=2).astype(np.float64)
    if answers.shape[1] == 1:
        return describe_classes(pairs[:, 0], answers[:, 0], weights, ("no", "yes"))
    statistics = [_statistic(p, t, p.argmax(axis=1)) for p, t in zip(pairs.swapaxes(0, 1), answers.T, strict=True)]
    kept = {"precision": 1, "recall": 1, "f1": 1, "roc_auc": None, "average_precision": None}

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        every = [one(weights) for one in statistics]
        columns = {
            name: np.stack([one[name] if of is None else one[name][:, of] for one in every], axis=1)
            for name, of in kept.items()
        }
        return columns | {f"{name}_macro": value.mean(axis=1) for name, value in columns.items()}

    found = resampled(statistic, weights)
    per_label = {name: found.pop(name) for name in kept}
    return {
        "metrics": found,
        "classes": [
            {"name": name, "support": int(answers[:, k].sum())}
            | {key: _entry(value, k) for key, value in per_label.items()}
            for k, name in enumerate(names)
        ],
    }
