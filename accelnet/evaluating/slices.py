"""The metrics of parts of a split: by class, by a column of a table, by any other label of the examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accelnet.arguments import listed
from accelnet.data.arrays import leaves
from accelnet.data.dataset import Data
from accelnet.errors import UserError
from accelnet.evaluating.bootstrap import Statistic, resampled
from accelnet.evaluating.classes import class_names
from accelnet.evaluating.shares import Found, mean_share
from accelnet.objectives.metric import Mean, Metric

_MOST_VALUES = 20  # of a label; of more, quarters are taken
_QUARTERS = (0.25, 0.5, 0.75)
Sums = Mapping[str, tuple[np.ndarray, np.ndarray]]


def mean_metrics(metrics: Mapping[str, Metric], sums: Sums) -> dict[str, Found]:
    """Return the objective's metrics that are means, with intervals, by what examples add to them.

    Args:
        metrics: of the objective.
        sums: as of `Predictions`.

    Returns:
        By name "value", "low" and "high": None where no example has weight.
    """
    found: dict[str, Found] = {}
    for name, (total, weight) in sums.items():
        metric = metrics[name]
        if isinstance(metric, Mean) and metric.is_share:
            found[name] = mean_share(np.divide(total, weight, out=np.zeros(len(total)), where=weight > 0), weight)
    others = {name: pair for name, pair in sums.items() if name not in found}
    count = len(next(iter(sums.values()))[0])
    return found | resampled(_means(metrics, others), np.ones(count))


def _means(metrics: Mapping[str, Metric], sums: Sums) -> Statistic:
    import jax.numpy as jnp

    def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, (total, weight) in sums.items():
            state = {"total": jnp.asarray(counts @ total), "weight": jnp.asarray(counts @ weight)}
            found[name] = np.where(counts @ weight > 0, np.asarray(metrics[name].compute(state)), np.nan)
        return found

    return statistic


def slice_metrics(
    data: Data, rows: range, names: Sequence[str], metrics: Mapping[str, Metric], sums: Sums
) -> dict[str, list[dict[str, Any]]]:
    """Compute the metrics of examples that share a label, for each label's values.

    Args:
        data: whose examples they are.
        rows: of the split.
        names: of labels: "targets", an array of the data beside it with one number per example, or a column of a table.
        metrics: of the objective.
        sums: as of `Predictions`.

    Returns:
        By name, for each value "value" (in words), "examples" and "metrics" (as of `mean_metrics`).

    Raises:
        UserError: if there is no such label.
    """
    return {name: _slices(_groups(data, rows, name), metrics, sums) for name in names}


def labels_of(data: Data) -> dict[str, np.ndarray]:
    """Return what examples can be told apart by: arrays of one number per example, and the columns of a table."""
    subtracted = any("offset" in one for one in data.coding.values())
    arrays = data.raw(np.arange(data.num_rows)) if subtracted else data.arrays
    found = {
        path.removeprefix("inputs."): array
        for path, array in leaves(arrays)
        if array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    }
    columns = data.info.get("input_names", ())
    inputs = arrays["inputs"]
    if columns and isinstance(inputs, np.ndarray):
        found |= {name: inputs[:, index] for index, name in enumerate(columns)}
    return {name: array.reshape(len(array)) for name, array in found.items() if name != "weights"}


def _groups(data: Data, rows: range, name: str) -> list[tuple[str, np.ndarray]]:
    labels = labels_of(data)
    if name not in labels:
        raise UserError(f"data {data.name!r} has no label {name!r} to slice by, only: {listed(labels)}")
    values = np.asarray(labels[name][rows.start : rows.stop])
    distinct = np.unique(values)
    if len(distinct) <= _MOST_VALUES:
        words = [f"{value:g}" for value in distinct.astype(float)]
        if name == "targets" and "num_classes" in data.info:
            named = class_names(data.info, data.info["num_classes"])
            words = [named[int(value)] for value in distinct]
        return [(word, values == value) for word, value in zip(words, distinct, strict=True)]
    edges = [values.min(), *np.quantile(values, _QUARTERS), values.max()]
    quarter = np.searchsorted(edges[1:-1], values, side="right")
    return [(f"{edges[q]:.4g} to {edges[q + 1]:.4g}", quarter == q) for q in range(4) if (quarter == q).any()]


def _slices(groups: list[tuple[str, np.ndarray]], metrics: Mapping[str, Metric], sums: Sums) -> list[dict[str, Any]]:
    found = []
    for word, chosen in groups:
        part = {name: (total[chosen], weight[chosen]) for name, (total, weight) in sums.items()}
        found.append({"value": word, "examples": int(chosen.sum()), "metrics": mean_metrics(metrics, part)})
    return found
