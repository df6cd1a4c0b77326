"""Outputs, losses and metrics of every example of a split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.errors import UserError
from accelnet.evaluating.shares import ratio
from accelnet.experiment import Experiment
from accelnet.models.precision import with_precision
from accelnet.objectives.objective import Task
from accelnet.parallel.memory import fetched
from accelnet.training.batch import prepared
from accelnet.training.forward import BoundModel
from accelnet.training.run import Run


@dataclass(frozen=True, eq=False)
class Predictions:
    """Hold the predictions of a run for the N examples of a split.

    Attributes:
        kind: Task of the objective.
        described: Whether outputs and targets have a form in which the task can be described; else there are losses and
            metrics alone.
        rows: Rows of the data's arrays.
        outputs: float32: logits [N, C] of classes and [N, K] of labels, numbers [N, K]; int32: the predicted classes
            [N, ...] of one for each pixel. None for tokens, and where nothing is described.
        targets: Targets [N], [N, K] or [N, ...]; classes by number.
        losses: Losses, float32 [N] or [N, ...].
        weights: Weights of the losses.
        sums: What each example adds to total and weight of every metric that is a mean, both float64 [N].
    """

    kind: Task
    described: bool
    rows: range
    outputs: np.ndarray | None
    targets: np.ndarray
    losses: np.ndarray
    weights: np.ndarray
    sums: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def example_losses(self) -> np.ndarray:
        """Mean loss of each example, float64 [N]; 0 where its weight is 0."""
        return ratio(*self.sums["loss"])


def is_described(task: Task, outputs: Any, targets: Any) -> bool:
    """Say whether outputs and targets have a form in which the objective's task can be described.

    Args:
        task: Task of the objective.
        outputs: Outputs of the model, a pytree of arrays or of their shapes.
        targets: Targets of the data.

    Example:
        >>> is_described("labels", np.zeros((5, 1)), np.zeros(5, int)), is_described("labels", {"a": 0}, None)
        (True, False)
    """
    if not (hasattr(outputs, "shape") and hasattr(targets, "shape")):
        return False
    rank, one_each = len(outputs.shape), outputs.shape[:-1] == targets.shape
    if task in ("classes", "tokens"):
        numbered = one_each and jnp.issubdtype(targets.dtype, jnp.integer)
        one_hot = rank == 2 and outputs.shape == targets.shape
        return rank == 3 and numbered if task == "tokens" else rank >= 2 and (numbered or one_hot)
    return task != "other" and rank in (1, 2) and _columns(outputs) == _columns(targets)


def _columns(array: Any) -> tuple[int, ...]:
    return (*array.shape, 1) if len(array.shape) == 1 else tuple(array.shape)


def make_forward(experiment: Experiment) -> Callable[[Any, Any, Any], tuple[Any, Any, dict[str, Any]]]:
    """Return `forward(params, model_state, batch) -> (outputs, prepared batch, offered)`, as evaluation computes them.

    `offered` is what a loss may ask for beside outputs and batch, as it is at the end of the run.
    """
    apply = with_precision(experiment.pure_model.apply, experiment.precision)

    def forward(params: Any, model_state: Any, batch: Any) -> tuple[Any, Any, dict[str, Any]]:
        step, key = jnp.int32(experiment.total_steps), jax.random.key(0)
        given = {"step": step, "progress": experiment.progress(step)}
        batch = prepared(experiment, batch)
        outputs, _, sown = apply(params, model_state, batch["inputs"], key=key, train=False, sown=True, **given)
        model = BoundModel(apply, params, model_state, key, False, given)
        return outputs, batch, {**given, "model": model, "params": params, "key": key, "train": False, "sown": sown}

    return forward


def predict(run: Run, split: str, say: Callable[[str], None]) -> Predictions:
    """Compute outputs, losses and metrics of every example of a split, in batches of one shape.

    Args:
        run: Run that was trained, or restored by `evaluate`.
        split: Name of a split of its data.
        say: Function that is told what is being done.

    Returns:
        The `Predictions`.

    Raises:
        UserError: if the data has no such split, or outputs are not finite.
    """
    experiment, data = run.experiment, run.experiment.data
    rows = data.splits.get(split, range(0))
    if not len(rows):
        raise UserError(f"data {data.name!r} has no split {split!r}, only: {', '.join(data.splits)}")
    size = min(experiment.resolved_eval_batch_size, len(rows))
    forward, weights = make_forward(experiment), (run.params, run.model_state)

    def batch_of(first: int) -> Any:
        # The last batch is filled up with its own first row, which counts nowhere there; where it would, it is smaller.
        index = np.arange(first, min(first + size, len(rows)) if experiment.couples_padding else first + size)
        mask = index < len(rows)
        return {**data.take(rows.start + np.where(mask, index, first)), "mask": mask}

    def answers(*args: Any) -> tuple[Any, Any]:
        outputs, batch, _ = forward(*args)
        return outputs, batch.get("targets")

    kind, (outputs, targets) = experiment.objective.task, jax.eval_shape(answers, *weights, batch_of(0))
    described = is_described(kind, outputs, targets)
    one_hot = described and kind == "classes" and outputs.shape == targets.shape

    def reduced(params: Any, model_state: Any, batch: Any) -> Any:
        outputs, batch, offered = forward(params, model_state, batch)
        kept = (_kept(kind, outputs), batch["targets"]) if described else (None, jnp.zeros(len(batch["mask"])))
        return *kept, experiment.objective.examples(outputs, batch, **offered)

    program, parts = jax.jit(reduced), []
    for first in range(0, len(rows), size):
        last = min(first + size, len(rows))
        say(f"{split}: {last:,} of {len(rows):,} examples")
        part = fetched(program(*weights, batch_of(first)))
        parts.append(jax.tree.map(lambda leaf, n=last - first: leaf[:n], part))
    kept, targets, examples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    losses, weight = examples["loss"]
    if not np.isfinite(losses[weight != 0]).all() or _is_bad(kind, kept):
        raise UserError(
            f"outputs or losses of {split} are not finite: the weights of step {run.step} cannot be evaluated; take an "
            "earlier checkpoint (--best), or train with a lower learning rate"
        )
    if one_hot:
        # A mixture of classes has no right answer that could be counted.
        described = bool(((targets == 1).sum(axis=1) == 1).all() and ((targets == 0) | (targets == 1)).all())
        kept, targets = (kept, targets.argmax(axis=1)) if described else (None, targets)
    sums = {name: _sums(*pair) for name, pair in examples.items()}
    return Predictions(kind, described, rows, kept, targets, losses, weight, sums)


def _kept(kind: Task, outputs: Any) -> Any:
    if kind == "tokens":
        return None
    if kind == "classes" and outputs.ndim > 2:
        return jnp.argmax(outputs, axis=-1).astype(jnp.int32)
    return outputs.reshape(len(outputs), -1).astype(jnp.float32)


def _is_bad(kind: Task, kept: np.ndarray | None) -> bool:
    """Say whether outputs are useless. Logits of -inf are not: they leave a class out."""
    if kept is None or kept.dtype.kind == "i":
        return False
    if kind == "numbers":
        return not np.isfinite(kept).all()
    return bool(np.isnan(kept).any() or (kind == "classes" and np.isposinf(kept).any()))


def _sums(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, weights = values.astype(np.float64), weights.astype(np.float64)
    axes = tuple(range(1, weights.ndim))
    return np.sum(weights * np.where(weights != 0, values, 0.0), axis=axes), np.sum(weights, axis=axes)
