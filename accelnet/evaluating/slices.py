"""The metrics of parts of a split: by class, by a column of a table, by any other label of the examples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from accelnet.data.arrays import leaves
from accelnet.data.dataset import Data
from accelnet.errors import UserError
from accelnet.evaluating.bootstrap import resampled
from accelnet.evaluating.classes import class_names
from accelnet.evaluating.shares import Estimate, mean_share, ratio
from accelnet.objectives.metric import Mean, Metric
from accelnet.wording import listed

_MOST_VALUES = 20  # of a label; of more, quarters are taken
_QUARTERS = (0.25, 0.5, 0.75)
Sums = Mapping[str, tuple[np.ndarray, np.ndarray]]


def mean_metrics(metrics: Mapping[str, Metric], sums: Sums) -> dict[str, Estimate]:
    """Return the objective's metrics that are means, with intervals.

    Args:
        metrics: Metrics of the objective.
        sums: What examples add to the metrics, as in `Predictions`.

    Returns:
        `Estimate`s by name, None where no example has weight.
    """

    def is_share(name: str) -> bool:
        metric = metrics[name]
        return isinstance(metric, Mean) and metric.is_share

    def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, (total, weight) in sums.items():
            if not is_share(name):
                state = {"total": jnp.asarray(counts @ total), "weight": jnp.asarray(counts @ weight)}
                found[name] = np.where(counts @ weight > 0, np.asarray(metrics[name].compute(state)), np.nan)
        return found

    shares = {name: mean_share(ratio(*pair), pair[1]) for name, pair in sums.items() if is_share(name)}
    return shares | resampled(statistic, np.ones(len(next(iter(sums.values()))[0])))


def slice_metrics(
    data: Data, rows: range, names: Sequence[str], metrics: Mapping[str, Metric], sums: Sums
) -> dict[str, list[dict[str, Any]]]:
    """Compute the metrics of examples that share a label, for each of the label's values.

    Args:
        data: Data set of the examples.
        rows: Rows of the split.
        names: Labels: "targets", another array of the data with one number per example, or a column of a table.
        metrics: Metrics of the objective.
        sums: What examples add to the metrics, as in `Predictions`.

    Returns:
        By label, for each of its values "value" (in words), "examples" and "metrics" (as in `mean_metrics`).

    Raises:
        UserError: if there is no such label.
    """

    def part(chosen: np.ndarray) -> dict[str, Estimate]:
        return mean_metrics(metrics, {name: (total[chosen], weight[chosen]) for name, (total, weight) in sums.items()})

    return {
        name: [
            {"value": word, "examples": int(chosen.sum()), "metrics": part(chosen)}
            for word, chosen in _groups(data, rows, name)
        ]
        for name in names
    }


def _labels(data: Data) -> dict[str, np.ndarray]:
    """Return the arrays of one number per example, and the columns of a table."""
    subtracted = any("offset" in one for one in data.coding.values())
    arrays = data.raw(np.arange(data.num_rows)) if subtracted else data.arrays
    found = {
        path.removeprefix("inputs."): array
        for path, array in leaves(arrays)
        if array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    }
    inputs = arrays["inputs"]
    if isinstance(inputs, np.ndarray):
        found |= {name: inputs[:, index] for index, name in enumerate(data.info.get("input_names", ()))}
    return {name: array.reshape(len(array)) for name, array in found.items() if name != "weights"}


def _groups(data: Data, rows: range, name: str) -> Iterable[tuple[str, np.ndarray]]:
    """Yield the values of a label in words, each with the examples that have it, bool [N]."""
    labels = _labels(data)
    categories = {one["name"]: one["names"] for one in data.fitted.get("columns", ()) if one["kind"] == "categories"}
    if name in categories and name not in labels:
        parts = ((word, labels[f"{name}={word}"][rows.start : rows.stop] != 0) for word in categories[name])
        yield from ((word, chosen) for word, chosen in parts if chosen.any())
        return
    if name not in labels:
        raise UserError(f"data {data.name!r} has no label {name!r} to slice by, only: {listed([*categories, *labels])}")
    values = np.asarray(labels[name][rows.start : rows.stop])
    distinct = np.unique(values)
    if len(distinct) > _MOST_VALUES:
        edges = [values.min(), *np.quantile(values, _QUARTERS), values.max()]
        quarter = np.searchsorted(edges[1:-1], values, side="right")
        yield from ((f"{edges[q]:.4g} to {edges[q + 1]:.4g}", quarter == q) for q in range(4) if (quarter == q).any())
    elif name == "targets" and "num_classes" in data.info:
        classes = class_names(data.info, data.info["num_classes"])
        yield from ((classes[int(value)], values == value) for value in distinct)
    else:
        yield from ((f"{float(value):g}", values == value) for value in distinct)
