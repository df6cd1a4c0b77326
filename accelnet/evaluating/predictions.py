"""What a run says of every example of a split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.objectives.regression import BinaryAccuracy
from accelnet.parallel.layout import whole
from accelnet.report.progress import Progress
from accelnet.training.run import Run
from accelnet.training.step import with_precision

Kind = Literal["classes", "labels", "tokens", "numbers", "other"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Hold what a run says of the N examples of a split.

    Attributes:
        kind: of the task. "classes": one of C; "labels": K answers yes or no; "tokens": one of V at each of T steps;
            "numbers": K of them; "other": an objective of the user's own with outputs of any form.
        rows: of the data's arrays.
        outputs: float32: probabilities [N, C] of classes and [N, K] of labels, numbers [N, K]; None for the others.
        targets: [N], [N, K] or [N, T].
        losses: float32 [N] or [N, T].
        weights: of the losses.
        sums: by metric that is a mean, what each example adds to its total and weight, both float64 [N].
    """

    kind: Kind
    rows: range
    outputs: np.ndarray | None
    targets: np.ndarray
    losses: np.ndarray
    weights: np.ndarray
    sums: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def example_losses(self) -> np.ndarray:
        """The mean loss of each example, float64 [N]; 0 where its weight is 0."""
        total, weight = self.sums["loss"]
        return np.divide(total, weight, out=np.zeros(len(total)), where=weight != 0)


def kind_of(experiment: Experiment, outputs: Any, targets: Any) -> Kind:
    """Tell the kind of a task from the shapes and types of outputs and targets, and from its metrics.

    Args:
        experiment: whose objective is asked.
        outputs: of the model, arrays or their shapes.
        targets: of the data.
    """
    if not hasattr(outputs, "shape") or not hasattr(targets, "shape"):
        return "other"
    if jnp.issubdtype(targets.dtype, jnp.integer) and outputs.shape[:-1] == targets.shape:
        kinds: dict[int, Kind] = {2: "classes", 3: "tokens"}
        return kinds.get(len(outputs.shape), "other")
    if len(outputs.shape) not in (1, 2) or _columns(outputs) != _columns(targets):
        return "other"
    binary = any(isinstance(metric, BinaryAccuracy) for metric in experiment.objective.metrics.values())
    return "labels" if binary else "numbers"


def _columns(array: Any) -> tuple[int, ...]:
    return (*array.shape, 1) if len(array.shape) == 1 else tuple(array.shape)


def make_forward(experiment: Experiment) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """Return `forward(params, model_state, batch) -> (outputs, prepared batch)`, as evaluation computes them."""
    apply = with_precision(experiment.pure_model.apply, experiment.precision)

    def forward(params: Any, model_state: Any, batch: Any) -> tuple[Any, Any]:
        batch = experiment.data.prepare(batch)
        outputs, _ = apply(params, model_state, batch["inputs"], key=jax.random.key(0), train=False)
        return outputs, batch

    return forward


def predict(run: Run, split: str, say: Progress | None = None) -> Predictions:
    """Compute outputs, losses and metrics of every example of a split, in batches of one shape.

    Args:
        run: trained, or restored by `evaluate`.
        split: of its data.
        say: what is told what is being done. None: nobody.

    Returns:
        The `Predictions`.

    Raises:
        UserError: if the data has no such split, or outputs are not finite.

    Source: original.
    """
    experiment, data, say = run.experiment, run.experiment.data, say or Progress(False)
    rows = data.splits.get(split, range(0))
    if not len(rows):
        raise UserError(f"data {data.name!r} has no split {split!r}, only: {', '.join(data.splits)}")
    size = min(experiment.resolved_eval_batch_size, len(rows))
    forward, weights = make_forward(experiment), (run.params, whole(run.state.model_state))

    def batch_of(first: int) -> Any:
        # The last batch is filled up with its own first row, which counts nowhere there.
        index = np.arange(first, first + size)
        mask = index < len(rows)
        return {**data.take(rows.start + np.where(mask, index, first)), "mask": mask}

    outputs, prepared = jax.eval_shape(forward, *weights, batch_of(0))
    kind = kind_of(experiment, outputs, prepared["targets"])

    def reduced(params: Any, model_state: Any, batch: Any) -> Any:
        outputs, batch = forward(params, model_state, batch)
        targets = batch["targets"] if kind != "other" else jnp.zeros(size)
        return _kept(kind, outputs), targets, experiment.objective.examples(outputs, batch)

    program, parts = jax.jit(reduced), []
    for first in range(0, len(rows), size):
        last = min(first + size, len(rows))
        say(f"{split}: {last:,} of {len(rows):,} examples")
        part = jax.device_get(program(*weights, batch_of(first)))
        parts.append(jax.tree.map(lambda leaf, n=last - first: leaf[:n], part))
    kept, targets, examples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    losses, weight = examples["loss"]
    finite = np.isfinite(losses[weight != 0]).all() and (kept is None or np.isfinite(kept).all())
    if not finite:
        raise UserError(
            f"outputs or losses of {split} are not finite: the weights of step {run.step} cannot be evaluated; take an "
            "earlier checkpoint (--best), or train with a lower learning rate"
        )
    return Predictions(kind, rows, kept, targets, losses, weight, {name: _sums(*v) for name, v in examples.items()})


def _kept(kind: Kind, outputs: Any) -> Any:
    if kind == "classes":
        return jax.nn.softmax(outputs.astype(jnp.float32))
    if kind in ("labels", "numbers"):
        columns = outputs.reshape(len(outputs), -1).astype(jnp.float32)
        return jax.nn.sigmoid(columns) if kind == "labels" else columns
    return None


def _sums(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, weights = values.astype(np.float64), weights.astype(np.float64)
    axes = tuple(range(1, weights.ndim))
    return np.sum(weights * np.where(weights != 0, values, 0.0), axis=axes), np.sum(weights, axis=axes)
