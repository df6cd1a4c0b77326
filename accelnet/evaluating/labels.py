"""What can be said of answers yes or no."""

from typing import Any

import numpy as np

from accelnet.evaluating.bootstrap import mean_known, ratio, resampled
from accelnet.evaluating.classes import describe_classes
from accelnet.evaluating.ranking import ranked
from accelnet.evaluating.shares import entries, f1_interval, macro_interval, share_interval


def describe_labels(
    logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Describe K answers yes or no; one of them as two classes.

    A label that never is yes has no recall, and one that is always yes or always no has no area under the ROC curve:
    these are None, and left out of the means over the labels.

    Args:
        logits: of yes, float [N, K].
        targets: 0 or 1, [N] or [N, K], integers too; above 0.5 is yes.
        weights: float [N], of the examples.
        names: of the K labels.

    Returns:
        As of `describe_classes` for one label; else "metrics" (means over the labels) and "classes".

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
    parts = {"hits": answers & predicted, "targets": answers, "claimed": predicted, "either": answers | predicted}
    columns = {name: part.astype(np.float64) for name, part in parts.items()}
    rankings = [ranked(logits[:, k], answers[:, k]) for k in range(logits.shape[1])]

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits, true, claimed = (weights @ columns[name] for name in ("hits", "targets", "claimed"))
        every = [ranking(weights) for ranking in rankings]
        found = {
            "precision": np.where((claimed == 0) & (true > 0), 0.0, ratio(hits, claimed, np.nan)),
            "recall": ratio(hits, true, np.nan),
            "f1": ratio(2 * hits, true + claimed, np.nan),
            **{name: np.stack([one[name] for one in every], axis=1) for name in ("roc_auc", "average_precision")},
        }
        return found | {f"{name}_macro": mean_known(value, axis=1) for name, value in found.items()}

    found = resampled(statistic, weights)
    sums = {name: weights @ column for name, column in columns.items()}
    squares = {name: weights**2 @ column for name, column in columns.items()}
    shares = {
        "precision": share_interval(sums["hits"], sums["claimed"], squares["claimed"]),
        "recall": share_interval(sums["hits"], sums["targets"], squares["targets"]),
        "f1": f1_interval(sums["hits"], sums["targets"], sums["claimed"], squares["either"]),
    }
    np.copyto(shares["precision"][0], 0.0, where=(sums["claimed"] == 0) & (sums["targets"] > 0))
    for name, (value, low, high) in shares.items():
        # Resamples know how labels go together, but not that a share of 1 may be chance.
        alone, macro = macro_interval(value, low, high, shared=1.0), found[f"{name}_macro"]
        if macro["low"] is not None:
            macro["low"], macro["high"] = min(macro["low"], alone["low"]), max(macro["high"], alone["high"])
    by_label = {name: entries(*share) for name, share in shares.items()}
    for name in ("precision", "recall", "f1", "roc_auc", "average_precision"):
        listed = found.pop(name)
        if name not in by_label:
            by_label[name] = [
                {end: None if values is None else values[k] for end, values in listed.items()}
                for k in range(len(names))
            ]
    whole = bool((weights == np.round(weights)).all())
    return {
        "metrics": found,
        "classes": [
            {"name": name, "support": int(sums["targets"][k]) if whole else float(sums["targets"][k])}
            | {key: column[k] for key, column in by_label.items()}
            for k, name in enumerate(names)
        ],
    }
