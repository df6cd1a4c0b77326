"""Everything that can be measured of a run on one split, with its uncertainty."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.arguments import flags, function, instance, names, word
from accelnet.errors import UserError
from accelnet.evaluating.classes import class_names, describe_classes, describe_labels
from accelnet.evaluating.latency import measure_latency
from accelnet.evaluating.numbers import describe_numbers
from accelnet.evaluating.page import assessment_page
from accelnet.evaluating.pixels import describe_pixels
from accelnet.evaluating.predictions import Predictions, predict
from accelnet.evaluating.slices import mean_metrics, slice_metrics
from accelnet.evaluating.text import describe_tokens
from accelnet.evaluating.worst import worst_predicted
from accelnet.json_file import plain_value
from accelnet.report.document import embedded
from accelnet.report.numbers import interval
from accelnet.training.record import write_report
from accelnet.training.run import Run

_MOST_LINES = 10  # of metrics, where it prints itself


@dataclass(frozen=True, eq=False, repr=False)
class Assessment:
    """Hold what was measured on a split.

    Attributes:
        values: JSON values, of the schema that the guide documents.
    """

    values: dict[str, Any]

    def __repr__(self) -> str:
        head = f"{self.values['experiment']}, step {self.values['step']:,}: {self.values['split']}, "
        lines = [f"{head}{self.values['examples']:,} examples"]
        for name, found in list(self.values["metrics"].items())[:_MOST_LINES]:
            value = "undefined" if found["value"] is None else f"{found['value']:.4g}"
            lines.append(f"{name:24.24} {value:>10}  {interval(found) or ''}".rstrip())
        left = len(self.values["metrics"]) - _MOST_LINES
        return "\n".join(lines + ([f"and {left} more"] if left > 0 else []))

    def _repr_html_(self) -> str:
        return embedded(self.page())

    def page(self) -> str:
        """Return them as an HTML page that needs nothing else."""
        return assessment_page(self.values)

    def write(self, directory: str | Path) -> Path:
        """Write evaluate.json and report.html, each whole or not at all; return the page's path.

        Raises:
            UserError: if they cannot be written.
        """
        return write_report(directory, "evaluate", self.values, self.page())


def assess(
    run: Run,
    split: str = "test",
    *,
    slices: Sequence[str] = (),
    latency: bool = True,
    weighted: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Assessment:
    """Measure metrics of a run on a split, with their uncertainty.

    Args:
        run: Run that was trained, or restored by `evaluate`.
        split: Name of a split of its data.
        slices: Labels; the metrics are computed for each of their values too. A label is "targets", another array of
            the data with one number per example, or a column of a table.
        latency: Whether the latency of answers is measured too.
        weighted: Whether examples are weighted by `data.arrays["weights"]` in all that is described. False: each
            example counts once, but one of weight 0 nowhere. The objective's own metrics count as they do in training.
        say: Function that is told what is being done.

    Returns:
        The `Assessment`.

    Raises:
        UserError: if there is no such split or label, or the outputs are not finite.

    Example:
        >>> import accelnet as an
        >>> data = an.data.from_arrays(np.eye(300, 2), np.arange(300) % 2, num_classes=2, test=0.2)
        >>> run = an.fit(
        ...     an.Experiment(
        ...         data=data,
        ...         model=lambda rngs: an.models.MLP(2, (), 2, rngs=rngs),
        ...         batch_size=32,
        ...         steps=3,
        ...         optimizer=an.optim.adam(1e-2),
        ...         objective=an.objectives.softmax_cross_entropy(),
        ...     ),
        ...     progress=False,
        ... )
        >>> accuracy = assess(run, latency=False).values["metrics"]["accuracy"]
        >>> accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        True
    """
    instance("run", run, Run, "a Run, as of an.fit(...) or an.evaluate(...)")
    flags(latency=latency, weighted=weighted)
    slices = names("slices", slices)
    function("say", say, "a function of a text")
    experiment, data = run.experiment, run.experiment.data
    word("split", split, tuple(data.splits))
    predictions = predict(run, split, say)
    say("intervals from resampled examples")
    sums, described = predictions.sums, _described(run, predictions, weighted)
    # What the objective names counts as it is there: its loss may be smoothed or weighted.
    metrics = described.pop("metrics", {}) | mean_metrics(experiment.objective.metrics, sums)
    values = {
        "experiment": experiment.name,
        "step": run.step,
        "split": split,
        "examples": len(predictions.rows),
        "kind": predictions.kind,
        "described": predictions.described,
        "weighted": weighted,
        "exact": run.metrics,
        "metrics": {name: metrics[name] for name in sorted(metrics, key=lambda name: name != "loss")},
        **described,
        "slices": slice_metrics(data, predictions.rows, slices, experiment.objective.metrics, sums),
        "worst": worst_predicted(data, predictions),
    }
    if latency:
        say("latency")
        large = min(max(experiment.resolved_eval_batch_size, 2), data.num_rows)
        values["latency"] = measure_latency(run, sorted({1, large}))
    return Assessment(plain_value(values))


def _described(run: Run, predictions: Predictions, weighted: bool) -> dict[str, Any]:
    if not predictions.described:
        return {}
    if predictions.kind == "tokens":
        return describe_tokens(run, predictions)
    info, outputs, targets = run.experiment.data.info, predictions.outputs, predictions.targets
    assert outputs is not None
    # A loss's class weights say what to learn, not how often a class occurs.
    weights = _example_weights(run, predictions, weighted)
    if predictions.kind == "numbers":
        return describe_numbers(outputs, targets, weights, info.get("target"))
    if outputs.dtype.kind == "i":
        live = predictions.weights != 0
        counted = np.broadcast_to(live.reshape(live.shape + (1,) * (targets.ndim - live.ndim)), targets.shape)
        num_classes = max(info.get("num_classes", 0), int(outputs.max()) + 1, int(targets[counted].max(initial=0)) + 1)
        return describe_pixels(outputs, targets, counted, weights, class_names(info, num_classes))
    describe = describe_classes if predictions.kind == "classes" else describe_labels
    return describe(outputs, targets, weights, class_names(info, outputs.shape[1]))


def _example_weights(run: Run, predictions: Predictions, weighted: bool) -> np.ndarray:
    rows, weights = predictions.rows, run.experiment.data.arrays.get("weights")
    if weights is None:
        return np.ones(len(rows))
    weights = np.asarray(weights[rows.start : rows.stop], np.float64)
    if weights.ndim > 1:  # of steps or pixels, which the losses' own weights leave out
        return np.ones(len(rows))
    if not weights.sum() > 0:
        raise UserError(f"all weights of the {len(rows)} examples are 0: none of them counts")
    return weights if weighted else (weights != 0).astype(np.float64)
