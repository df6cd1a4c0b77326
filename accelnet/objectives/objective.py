"""The objective of an experiment: one loss to descend and any number of metrics to report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from accelnet.errors import UserError
from accelnet.objectives.metric import Batch, Loss, Mean, Metric, State, safe_ratio, weighted_sum

Task = Literal["classes", "labels", "tokens", "numbers", "other"]
LossFunction = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
States = dict[str, State]


@dataclass(frozen=True, eq=False)
class Objective:
    """Say what training makes small, and what is reported: `mean = sum(weights * losses) / sum(weights)`.

    Before the loss and the metrics see them, outputs and targets of examples (or steps) with mask False or
    weight 0 are replaced by zeros. So whatever is there, NaN included, counts nowhere, in gradients too.

    Args:
        loss: from (outputs, batch) to (losses, weights), both float32[B] or float32[B, T]. The weights
            include the batch's own (see `example_weights`) and whatever the loss adds, such as class weights.
        metrics: by name. "loss" is added where it is missing.
        task: what outputs and targets mean, which evaluation describes: "classes", one of C that exclude each other,
            logits [B, ..., C]; "labels", K answers yes or no, logits [B] or [B, K]; "tokens", one of V at each of T
            steps, logits [B, T, V]; "numbers", [B] or [B, K]; "other", anything else.

    Example:
        >>> import jax.numpy as jnp
        >>> def absolute(outputs, batch):
        ...     return jnp.abs(outputs - batch["targets"]), jnp.ones(outputs.shape)
        >>> objective = Objective(absolute)
        >>> mean, states = objective.evaluate(jnp.array([1.0, 2.0]), {"targets": jnp.array([0.0, 0.0])})
        >>> float(mean), {name: float(value) for name, value in objective.compute(states).items()}
        (1.5, {'loss': 1.5})

    Source: original.
    """

    loss: LossFunction
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    task: Task = "other"

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise UserError(f"task is {self.task!r}, expected one of {', '.join(get_args(Task))}")
        for name, metric in self.metrics.items():
            if not isinstance(metric, Metric):
                raise UserError(f"metric {name!r} is {metric!r}, expected an instance of Metric, as Accuracy()")
        object.__setattr__(self, "metrics", {"loss": Loss(), **self.metrics})

    def totals(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array, States]:
        """Sum the losses and their weights over a batch: what microbatches add up before they divide.

        Args:
            outputs: what the model returned: an array [B, ...] or a pytree of them.
            batch: "targets" and maybe "mask", bool[B], and "weights", float[B] or float[B, T].

        Returns:
            (sum of weights * losses, sum of weights, metric states by name), the sums float32 scalars.

        Raises:
            UserError: a shape or dtype does not suit the loss or a metric.
        """
        outputs, batch, losses, weights = self._losses(outputs, batch)
        total, weight = weighted_sum(losses, weights)
        # No gradient goes through a metric: states are carried through loops, where it would cost memory.
        seen = jax.lax.stop_gradient((outputs, losses, weights))
        states = {name: metric.measure(seen[0], batch, seen[1], seen[2]) for name, metric in self.metrics.items()}
        return total, weight, states

    def _losses(self, outputs: Any, batch: Batch) -> tuple[Any, Batch, jax.Array, jax.Array]:
        outputs, batch = _silence(outputs, batch)
        losses, weights = self.loss(outputs, batch)
        if losses.shape != weights.shape:
            raise UserError(
                f"the loss returned losses of shape {losses.shape} and weights of shape {weights.shape}: "
                "expected the same shape, [B] or [B, T]"
            )
        return outputs, batch, losses.astype(jnp.float32), weights.astype(jnp.float32)

    def examples(self, outputs: Any, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return what each example adds to the metrics that are means, "loss" among them.

        Args:
            outputs: as for `totals`.
            batch: as for `totals`.

        Returns:
            (values, weights) by metric, both float32[B] or float32[B, T]: the metric is
            `metric.compute({"total": sum(weights * values), "weight": sum(weights)})`.

        Example:
            >>> objective = Objective(lambda outputs, batch: (outputs**2, jnp.ones(2)))
            >>> objective.examples(jnp.array([1.0, 3.0]), {})["loss"][0].tolist()
            [1.0, 9.0]
        """
        seen = self._losses(outputs, batch)
        return {name: metric.values(*seen) for name, metric in self.metrics.items() if isinstance(metric, Mean)}

    def evaluate(self, outputs: Any, batch: Batch) -> tuple[jax.Array, States]:
        """Compute the mean loss of a batch, a float32 scalar (0 if all weights are 0), and the metric states.

        Args:
            outputs: as for `totals`.
            batch: as for `totals`.

        Returns:
            (mean loss, metric states by name).
        """
        total, weight, states = self.totals(outputs, batch)
        return safe_ratio(total, weight), states

    def empty(self) -> States:
        """Return the states of all metrics that have seen nothing."""
        return {name: metric.empty() for name, metric in self.metrics.items()}

    def merge(self, a: States, b: States) -> States:
        """Return the states of all metrics that have seen what both have."""
        return {name: metric.merge(a[name], b[name]) for name, metric in self.metrics.items()}

    @property
    def additive(self) -> frozenset[str]:
        """Names of the metrics whose states merge by addition, and so by one sum over all devices."""
        return frozenset(name for name, metric in self.metrics.items() if type(metric).merge is Metric.merge)

    def compute(self, states: States) -> dict[str, jax.Array]:
        """Return every metric by name, float32 scalars."""
        return {name: metric.compute(states[name]) for name, metric in self.metrics.items()}


def _silence(outputs: Any, batch: Batch) -> tuple[Any, Batch]:
    """Put zeros for outputs and targets that count nowhere, row by row, then step by step."""
    lives = []
    if batch.get("mask") is not None:
        lives.append(jnp.asarray(batch["mask"], bool))
    if batch.get("weights") is not None:
        lives.append(jnp.asarray(batch["weights"]) != 0)

    def silence(leaf: Any) -> Any:
        for live in lives:
            if jnp.shape(leaf)[: live.ndim] == live.shape:
                live = live.reshape(live.shape + (1,) * (jnp.ndim(leaf) - live.ndim))
                leaf = jnp.where(live, leaf, jnp.zeros((), jnp.asarray(leaf).dtype))
        return leaf

    if not lives:
        return outputs, batch
    targets = {"targets": jax.tree.map(silence, batch["targets"])} if "targets" in batch else {}
    return jax.tree.map(silence, outputs), {**batch, **targets}
