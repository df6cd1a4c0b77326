"""Which classes are predicted as which, and how well each is predicted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accelnet.evaluating.shares import Estimate, estimates, macro_interval, ratio, share_interval

_MOST_CLASSES = 50  # of a confusion matrix that is kept whole
_PAIRS = 20  # of the most confused classes


def class_rates(hits: np.ndarray, support: np.ndarray, claimed: np.ndarray) -> dict[str, np.ndarray]:
    """Compute precision, recall and F1 of classes, NaN where undefined.

    Precision is 0 for a class that occurs and is never predicted, as scikit-learn has it. Precision and F1 are
    undefined for a class that neither occurs nor is predicted, and recall for one that does not occur.

    Args:
        hits: Weights of each class's examples that are predicted as it, float [..., C].
        support: Weights of the examples of each class.
        claimed: Weights of the examples that are predicted as each class.
    """
    return {
        "precision": np.where((claimed == 0) & (support > 0), 0.0, ratio(hits, claimed, np.nan)),
        "recall": ratio(hits, support, np.nan),
        "f1": ratio(2 * hits, support + claimed, np.nan),
    }


def rate_intervals(sums: Sequence[np.ndarray], squares: Sequence[np.ndarray]) -> dict[str, tuple[np.ndarray, ...]]:
    """Compute `class_rates` with their intervals.

    `F1 = 2 J / (1 + J)`, where J is a share: of the examples that are of a class or predicted as it, those of which
    both are true.

    Args:
        sums: Hits, support and claimed, float [C] each, as in `class_rates`.
        squares: Sums of squared weights, float [C] each: of support, of claimed, and of the examples in either.

    Returns:
        (value, low, high) by name, float [C] each.

    Example:
        >>> thirty = np.array([30.0])
        >>> f1, low, high = rate_intervals((thirty, thirty, thirty), (thirty, thirty, thirty))["f1"]
        >>> float(f1[0]), round(float(low[0]), 3), float(high[0])
        (1.0, 0.94, 1.0)
    """
    hits, support, claimed = sums
    found = {
        "precision": share_interval(hits, claimed, squares[1]),
        "recall": share_interval(hits, support, squares[0]),
        "f1": tuple(2 * j / (1 + j) for j in share_interval(hits, support + claimed - hits, squares[2])),
    }
    rates = class_rates(hits, support, claimed)
    return {name: (rates[name], *ends) for name, (_, *ends) in found.items()}


def by_class(names: Sequence[str], support: np.ndarray, columns: Mapping[str, list[Estimate]]) -> list[dict[str, Any]]:
    """Return the columns of a table of classes as its rows: "name", "support" and the estimates by name."""
    return [
        {"name": name, "support": count, **{key: column[c] for key, column in columns.items()}}
        for c, (name, count) in enumerate(zip(names, support.tolist(), strict=True))
    ]


def counted(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return sums of weights as whole numbers where all weights are whole."""
    return sums.astype(int) if (weights == np.round(weights)).all() else sums


def class_table(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray, names: tuple[str, ...]) -> Any:
    """Count which classes are predicted as which, and compute how well each is predicted.

    Args:
        labels: True classes, int [N].
        predicted: Predicted classes, int [N].
        weights: Weights of the examples, float [N].
        names: Names of the C classes.

    Returns:
        "metrics" ("f1_macro"), "classes", "confusion" and "confused", as in `describe_classes`.
    """
    from scipy.sparse import csr_array

    counts, squares = (
        csr_array((values, (labels, predicted)), shape=(len(names),) * 2) for values in (weights, weights**2)
    )
    hits, support, claimed = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    either = squares.sum(axis=1) + squares.sum(axis=0) - squares.diagonal()
    rates = rate_intervals((hits, support, claimed), (squares.sum(axis=1), squares.sum(axis=0), either))
    pairs = counts.tocoo()
    of_pairs = np.asarray(pairs.data, np.float64)
    numbers = counted(of_pairs, weights).tolist()
    mistakes = [i for i in np.argsort(-of_pairs, kind="stable") if numbers[i] > 0 and pairs.row[i] != pairs.col[i]]
    return {
        # An example counts in at most two classes: its own, and the predicted one.
        "metrics": {"f1_macro": macro_interval(*rates["f1"], shared=2.0)},
        "classes": by_class(names, counted(support, weights), {name: estimates(*rate) for name, rate in rates.items()}),
        "confusion": counted(counts.toarray(), weights).tolist() if len(names) <= _MOST_CLASSES else None,
        "confused": [
            {"true": names[pairs.row[i]], "predicted": names[pairs.col[i]], "count": numbers[i],
             "share": float(of_pairs[i] / support[pairs.row[i]])}
            for i in mistakes[:_PAIRS]
        ],
    }  # fmt: skip
