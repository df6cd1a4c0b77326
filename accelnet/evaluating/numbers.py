"""What can be said of predicted numbers: how far off, and in which direction."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from accelnet.evaluating.bootstrap import ratio, resampled

_POINTS = 600  # of a picture
_BARS = 30
_PICTURED = 4  # outputs


def describe_numbers(
    outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray, undo: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe predictions of K numbers.

    Args:
        outputs: float [N, K].
        targets: float [N] or [N, K].
        weights: float [N], of the examples.
        undo: as of `accelnet.data.undo_target`, where the data says how targets were standardized.

    Returns:
        "metrics" (with intervals, as of `resampled`; means over the outputs), "outputs" (the same for each, where there
        are several) and "residuals": for each of the first outputs "quantiles" (by percentage), a "histogram" and
        some "points" (predicted, target minus predicted).

    Example:
        >>> found = describe_numbers(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0]), np.ones(3))
        >>> found["metrics"]["r2"]["value"], found["residuals"][0]["quantiles"]["50"]
        (0.5, 0.0)
    """
    outputs = np.asarray(outputs, np.float64)
    targets = np.asarray(targets, np.float64).reshape(outputs.shape)
    center = targets.mean(axis=0)  # sums of squares cancel for targets far from zero
    errors, spread = targets - outputs, targets - center
    columns = {"absolute": np.abs(errors), "square": errors**2, "spread": spread, "spread_square": spread**2}
    if undo is not None:
        from accelnet.data.encoding import undo_target

        columns["own_units"] = np.abs(undo_target(targets, undo) - undo_target(outputs, undo))

    def each(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=1, keepdims=True)
        mean = {name: ratio(weights @ column, total) for name, column in columns.items()}
        variance = mean["spread_square"] - mean["spread"] ** 2
        found = {
            # Of targets that do not vary, as accelnet.objectives.R2 has it.
            "r2": np.where(variance > 0, 1 - ratio(mean["square"], variance), mean["square"] == 0),
            "mean_absolute_error": mean["absolute"],
            "root_mean_squared_error": np.sqrt(mean["square"]),
        }
        return found | ({"mean_absolute_error_in_own_units": mean["own_units"]} if undo is not None else {})

    found = resampled(lambda w: {name: value.mean(axis=1) for name, value in each(w).items()}, weights)
    described: dict[str, Any] = {"metrics": found, "outputs": []}
    if outputs.shape[1] > 1:
        by_output = resampled(each, weights)
        described["outputs"] = [
            {name: {end: v and v[k] for end, v in value.items()} for name, value in by_output.items()}
            for k in range(outputs.shape[1])
        ]
    described["residuals"] = [_residuals(outputs[:, k], errors[:, k]) for k in range(min(_PICTURED, outputs.shape[1]))]
    return described


def _residuals(outputs: np.ndarray, errors: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(errors, bins=_BARS)
    some = np.random.default_rng(0).permutation(len(errors))[:_POINTS]
    return {
        "quantiles": {str(q): float(np.percentile(errors, q)) for q in (1, 5, 25, 50, 75, 95, 99)},
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "points": np.stack([outputs[some], errors[some]], axis=1).tolist(),
    }
