"""How well scores put positive examples before negative ones."""

from typing import Any

import numpy as np

from accelnet.evaluating.bootstrap import Statistic
from accelnet.evaluating.shares import ratio

_CURVE_POINTS = 200


def ranked(scores: np.ndarray, positive: np.ndarray) -> Statistic:
    """Return the statistic of the areas under the ROC and the precision-recall curve; equal scores count as one.

    Args:
        scores: float64 [N], finite or infinite: logits, which are all different where probabilities of float32 are 1.
        positive: bool [N].

    Returns:
        The statistic of "roc_auc", NaN without positive or without negative examples, and "average_precision", NaN
        without positive ones.

    Example:
        >>> ranked(np.array([0.1, 0.8, 0.3]), np.array([False, True, True]))(np.ones((1, 3)))["roc_auc"]
        array([1.])
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    ends = np.append(np.flatnonzero(sorted_scores[1:] != sorted_scores[:-1]), len(scores) - 1)
    positive = positive[order].astype(np.float64)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        sorted_ = weights[:, order]
        hits = np.cumsum(sorted_ * positive, axis=1)[:, ends]
        alarms = np.cumsum(sorted_ * (1 - positive), axis=1)[:, ends]
        recall, fall = (ratio(part, part[:, -1:], np.nan) for part in (hits, alarms))
        before = np.pad(recall, ((0, 0), (1, 0)))[:, :-1]
        middle = (recall + before) / 2
        gain = np.diff(fall, axis=1, prepend=0.0)
        precision = ratio(hits, hits + alarms)
        return {
            "roc_auc": (middle * gain).sum(axis=1),
            "average_precision": ((recall - before) * precision).sum(axis=1),
        }

    return statistic


def ranking_curves(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return points of the ROC ("roc": false alarms, found) and of the "precision_recall" curve."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    # scikit-learn wants finite scores; their ranks have the same curves.
    ranks = np.unique(scores, return_inverse=True)[1]
    fall, hit, _ = roc_curve(positive, ranks, sample_weight=weights)
    precision, recall, _ = precision_recall_curve(positive, ranks, sample_weight=weights)
    return {
        "roc": _thinned(np.stack([fall, hit], axis=1)),
        "precision_recall": _thinned(np.stack([recall[::-1], precision[::-1]], axis=1)),
    }


def _thinned(points: np.ndarray) -> list[list[float]]:
    index = np.unique(np.linspace(0, len(points) - 1, _CURVE_POINTS).round().astype(int))
    return points[index].tolist()
