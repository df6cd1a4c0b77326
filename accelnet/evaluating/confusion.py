"""Which classes come out as which, and how well each is predicted."""

from typing import Any

import numpy as np

from accelnet.evaluating.shares import entries, f1_interval, macro_interval, share_interval

_MOST_CLASSES = 50  # whose confusion matrix is kept whole
_PAIRS = 20  # most confused


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
