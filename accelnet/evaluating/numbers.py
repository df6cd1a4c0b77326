"""Errors of predicted numbers: their size, and their direction."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.data.encoding import undo_target
from accelnet.evaluating.bootstrap import resampled
from accelnet.evaluating.shares import mean_known, ratio

_POINTS = 600  # of a picture
_BARS = 30
_PICTURED = 4  # outputs


def describe_numbers(
    outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray, undo: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe predictions of K numbers.

    R2 of targets that are all equal is 1 if every output is exact, else 0, as `accelnet.objectives.R2` has it.

    Args:
        outputs: Predictions, float [N, K].
        targets: True numbers, float [N] or [N, K].
        weights: Weights of the examples, float [N].
        undo: How targets were standardized, as for `accelnet.data.undo_target`. None: not known.

    Returns:
        "metrics" (`Estimate`s by name, means over the outputs; errors in the units of the file), "outputs" (the same
        for each, where there are several) and "residuals": for each of the first outputs "quantiles" (by percentage), a
        "histogram" and some "points" (predicted, target minus predicted), all in the units of the file.

    Example:
        >>> found = describe_numbers(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0]), np.ones(3))
        >>> found["metrics"]["r2"]["value"], found["residuals"][0]["quantiles"]["50"]
        (0.5, 0.0)
    """
    outputs = np.asarray(outputs, np.float64)
    targets = np.asarray(targets, np.float64).reshape(outputs.shape)
    # Sums of squares cancel for targets far from zero.
    errors, spread = targets - outputs, targets - targets[weights > 0].mean(axis=0)
    other, exact = _not_the_commonest(targets, weights > 0), np.all(errors[weights > 0] == 0, axis=0)
    own_outputs = outputs if undo is None else undo_target(outputs, undo)
    own_errors = errors if undo is None else undo_target(targets, undo) - own_outputs
    columns = {
        "absolute": np.abs(own_errors),
        "own_square": own_errors**2,
        "square": errors**2,
        "spread": spread,
        "spread_square": spread**2,
    }

    unvaried = np.where(weights @ other > 0, np.nan, exact)

    def each(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=1, keepdims=True)
        mean = {name: ratio(weights @ column, total) for name, column in columns.items()}
        variance = mean["spread_square"] - mean["spread"] ** 2
        return {
            # The variance of equal targets is rounding, and not 0. Resamples of them alone say nothing of others.
            "r2": np.where(weights @ other > 0, 1 - ratio(mean["square"], variance), unvaried),
            "mean_absolute_error": mean["absolute"],
            "root_mean_squared_error": np.sqrt(mean["own_square"]),
        }

    num_outputs = outputs.shape[1]
    by_output = resampled(each, weights) if num_outputs > 1 else {}
    return {
        "metrics": resampled(lambda w: {name: mean_known(value, axis=1) for name, value in each(w).items()}, weights),
        "outputs": [dict(zip(by_output, one, strict=True)) for one in zip(*by_output.values(), strict=True)],
        "residuals": [_residuals(own_outputs[:, k], own_errors[:, k]) for k in range(min(_PICTURED, num_outputs))],
    }


def _not_the_commonest(targets: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Mark the live examples with another target than most, float64 [N, K]: none where all targets are equal."""
    marked = np.zeros(targets.shape)
    for k, column in enumerate(targets.T):
        values, counts = np.unique(column[live], return_counts=True)
        marked[:, k] = live & (column != values[counts.argmax()])
    return marked


def _residuals(outputs: np.ndarray, errors: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(errors, bins=_BARS)
    some = np.random.default_rng(0).permutation(len(errors))[:_POINTS]
    return {
        "quantiles": {str(q): float(np.percentile(errors, q)) for q in (1, 5, 25, 50, 75, 95, 99)},
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "points": np.stack([outputs[some], errors[some]], axis=1).tolist(),
    }
