"""The objective of an experiment: one loss to descend and any number of metrics to report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from accelnet.arguments import function, instance, word
from accelnet.errors import UserError
from accelnet.objectives.metric import FunctionMean, Loss, Mean, Metric, State, measured
from accelnet.objectives.weights import Batch, example_weights, safe_ratio, weighted_sum
from accelnet.signature import call, described, name_of, wants
from accelnet.wording import shown

Task = Literal["classes", "labels", "tokens", "numbers", "other"]
States = dict[str, State]

# A loss whose second argument has one of these names is given the targets, not the batch: `optax`'s losses as they are.
_TARGETS = ("targets", "target", "labels", "label", "log_targets")
OFFERED = ("mask", "weights", "model", "params", "key", "step", "progress", "train", "sown")


def check_metrics(metrics: Any) -> Mapping[str, Any]:
    """Return metrics by name; what is no dict, or has a name that is no text, raises `UserError`."""
    for name in instance("metrics", metrics, Mapping, "a dict of metrics by name"):
        word("the name of a metric", name)
    return metrics


@dataclass(frozen=True, eq=False)
class Objective:
    """Say what training makes small, and what is reported: `mean = sum(weights * losses) / sum(weights)`.

    The loss is a function of (outputs, batch). The batch holds "inputs", "targets", "mask" and what else the data has,
    but for "weights": the mask and the data's weights are applied to what the loss returns, so the loss need not apply
    them. Where the mask is False or the weight is 0, outputs and targets hold zeros, so that whatever was there, NaN
    included, counts nowhere, in gradients too.

    A loss may ask for more, by the names of further parameters:

    - `model`: the model as a function, `model(inputs, *, params=..., train=..., method=...)`, to call it again (each
      call draws its own noise) or to differentiate it with respect to its inputs; what it changes of the model's state
      is dropped;
    - `params`: the weights, a nested dict;
    - `key`: a PRNG key of this step; `step`: int32 scalar; `progress`: updates done over updates of the run, float32;
    - `train`: whether this is training, a Python bool;
    - `sown`: what the model's `sow` left behind, by collection (Linen) or path (nnx);
    - `mask`: bool[B], False for padding; `weights`: float[B] or [B, ...], the data's and the mask's. A loss that asks
      for `weights` applies both itself.

    It returns the losses of the examples, float[B, ...]; or (losses, weights) of one shape, where the weights are its
    own, such as class weights; or one number for the whole batch. A number cannot be freed of padding afterwards:
    such a loss asks for `mask`, or the last, partial batch of each epoch is left out of training and evaluated at its
    own size. A loss that couples the examples of a batch, as contrastive losses do, asks for `mask` as well, and keeps
    padding out of its sums:

        >>> def contrastive(outputs, batch, mask):
        ...     similarity = outputs @ outputs.T / 0.2
        ...     others = mask[None, :] & ~jnp.eye(len(outputs), dtype=bool)
        ...     return jax.nn.logsumexp(similarity, axis=1, where=others)

    A function whose second parameter is called `targets` or `labels`, such as optax's losses, gets the targets.

    Args:
        loss: as above.
        metrics: metrics by name: instances of `Metric`, or functions of (outputs, batch) that return one value for each
            example, whose mean is reported. "loss" is added where it is missing.
        task: what outputs and targets mean, which evaluation describes: "classes", one of C that exclude each other,
            logits [B, ..., C]; "labels", K answers yes or no, logits [B] or [B, K]; "tokens", one of V at each of T
            steps, logits [B, T, V]; "numbers", [B] or [B, K]; "other", anything else.

    Raises:
        UserError: if an argument is of another kind.

    Example:
        >>> objective = Objective(lambda outputs, batch: jnp.abs(outputs - batch["targets"]))
        >>> batch = {"targets": jnp.array([0.0, 0.0, 0.0]), "mask": jnp.array([True, True, False])}
        >>> mean, states = objective.evaluate(jnp.array([1.0, 2.0, 9.0]), batch)
        >>> float(mean), {name: float(value) for name, value in objective.compute(states).items()}
        (1.5, {'loss': 1.5})
    """

    loss: Callable[..., Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    task: Task = "other"

    def __post_init__(self) -> None:
        function("the loss", self.loss, "a function of (outputs, batch)")
        word("task", self.task, get_args(Task))
        metrics = {}
        for name, metric in check_metrics(self.metrics).items():
            if isinstance(metric, type) or not (isinstance(metric, Metric) or callable(metric)):
                raise UserError(
                    f"metric {name!r} is {shown(metric)}, expected an instance of Metric, as Accuracy(), or a function "
                    "of (outputs, batch) that returns one value for each example"
                )
            metrics[name] = metric if isinstance(metric, Metric) else FunctionMean(metric)
        object.__setattr__(self, "metrics", {"loss": Loss(), **metrics})

    def totals(self, outputs: Any, batch: Batch, **offered: Any) -> tuple[jax.Array, jax.Array, States]:
        """Sum the losses and their weights over a batch: what microbatches add up before they divide.

        Args:
            outputs: what the model returned: an array [B, ...] or a pytree of them.
            batch: "targets" and maybe "mask", bool[B], and "weights", float[B] or float[B, ...].
            **offered: what the loss may ask for beside mask and weights.

        Returns:
            (sum of weights * losses, sum of weights, metric states by name), the sums float32 scalars.

        Raises:
            UserError: a shape or dtype does not suit the loss or a metric.
            UserCodeError: the loss or a metric fails.
        """
        outputs, batch, losses, weights = self.weighed(outputs, batch, offered)
        total, weight = weighted_sum(losses, weights)
        # No gradient goes through a metric: states are carried through loops, where it would cost memory.
        seen = jax.lax.stop_gradient((outputs, batch, losses, weights))
        return total, weight, {name: _measure(name, metric, *seen) for name, metric in self.metrics.items()}

    def weighed(
        self, outputs: Any, batch: Batch, offered: Mapping[str, Any]
    ) -> tuple[Any, Batch, jax.Array, jax.Array]:
        """Return outputs and batch without what is masked, the losses, and their weights: what a metric measures."""
        outputs, batch = _silence(outputs, batch)
        num_examples = len(jax.tree.leaves(outputs)[0])
        losses, own = self.raw(outputs, batch, offered)
        weighs = "weights" in wants(self.loss).names
        if losses.ndim == 0:
            # One number for the whole batch: spread over its examples.
            if batch.get("weights") is not None and not weighs:
                raise UserError(
                    f"the loss, {name_of(self.loss)}, returns one number for a whole batch, and the data has weights, "
                    "which cannot be applied to that: return one loss for each example, or ask for `weights`"
                )
            weights = _weights(batch if weighs else {"mask": batch.get("mask")}, num_examples)
            return outputs, batch, jnp.broadcast_to(losses, weights.shape), weights
        if losses.shape[0] != num_examples or (own is not None and own.shape != losses.shape):
            weighed = "" if own is None else f" and weights of shape {list(own.shape)}"
            raise UserError(
                f"the loss, {name_of(self.loss)}, returned losses of shape {list(losses.shape)}{weighed} for "
                f"{num_examples} examples: expected [{num_examples}, ...], weights of the same shape, or one number"
            )
        if own is not None and weighs:
            return outputs, batch, losses, own
        weights = example_weights(batch, losses.shape)
        return outputs, batch, losses, weights if own is None else jnp.where(weights != 0, weights * own, 0.0)

    def raw(self, outputs: Any, batch: Batch, offered: Mapping[str, Any]) -> tuple[jax.Array, jax.Array | None]:
        """Return what the loss returned, float32: losses of any shape and its own weights, None if it gave none."""
        num_examples, mask = len(jax.tree.leaves(outputs)[0]), batch.get("mask")
        offered = {
            "mask": jnp.ones(num_examples, bool) if mask is None else mask,
            "weights": _weights(batch, num_examples),
            **offered,
        }
        if ([*wants(self.loss).positional, "", ""])[1] in _TARGETS:
            # What is broadcast there compares every example with every other.
            with jax.numpy_rank_promotion("raise"):
                result = call("the loss", self.loss, outputs, batch["targets"], **offered)
        else:
            seen = {name: value for name, value in batch.items() if name != "weights"}
            result = call("the loss", self.loss, outputs, seen, **offered)
        losses, own = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        if not all(one is None or hasattr(one, "shape") or isinstance(one, int | float) for one in (losses, own)):
            raise UserError(
                f"the loss, {name_of(self.loss)}, returned {described([result])}, expected losses of the examples, "
                "(losses, weights), or one number"
            )
        return jnp.asarray(losses, jnp.float32), None if own is None else jnp.asarray(own, jnp.float32)

    def examples(self, outputs: Any, batch: Batch, **offered: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Return what each example adds to the metrics that are means, "loss" among them.

        Args:
            outputs: as for `totals`.
            batch: as for `totals`.
            **offered: as for `totals`.

        Returns:
            (values, weights) by metric, both float32[B, ...]: the metric is
            `metric.compute({"total": sum(weights * values), "weight": sum(weights)})`.

        Example:
            >>> objective = Objective(lambda outputs, batch: outputs**2)
            >>> objective.examples(jnp.array([1.0, 3.0]), {})["loss"][0].tolist()
            [1.0, 9.0]
        """
        seen = self.weighed(outputs, batch, offered)
        means = {name: metric for name, metric in self.metrics.items() if isinstance(metric, Mean)}
        return {name: _measure(name, metric, *seen, of_examples=True) for name, metric in means.items()}

    def evaluate(self, outputs: Any, batch: Batch, **offered: Any) -> tuple[jax.Array, States]:
        """Compute the mean loss of a batch, a float32 scalar (0 if all weights are 0), and the metric states.

        Args:
            outputs: as for `totals`.
            batch: as for `totals`.
            **offered: as for `totals`.

        Returns:
            (mean loss, metric states by name).
        """
        total, weight, states = self.totals(outputs, batch, **offered)
        return safe_ratio(total, weight), states

    def lower_is_better(self, name: str) -> bool:
        """Say whether a metric is the better the lower it is, which only the metric itself knows.

        Args:
            name: name of the metric.

        Raises:
            UserError: if there is no such metric, or it does not say.

        Example:
            >>> Objective(lambda outputs, batch: outputs).lower_is_better("loss")
            True
        """
        if name not in self.metrics:
            raise UserError(f"there is no metric {name!r}, only: {', '.join(self.metrics)}")
        lower = self.metrics[name].lower_is_better
        if lower is None:
            raise UserError(
                f"metric {name!r} does not say whether lower is better: give its class lower_is_better = True or "
                "False; of a function, FunctionMean(function, lower_is_better=...)"
            )
        return lower

    @property
    def directions(self) -> dict[str, bool | None]:
        """Whether lower is better, by metric; None where it was not given."""
        return {name: metric.lower_is_better for name, metric in self.metrics.items()}

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


def _weights(batch: Batch, num_examples: int) -> jax.Array:
    given = batch.get("weights")
    return example_weights(batch, (num_examples,) if given is None else jnp.shape(given))


def _measure(
    name: str, metric: Metric, outputs: Any, batch: Batch, losses: Any, weights: Any, *, of_examples: bool = False
) -> Any:
    if metric.on is not None:
        outputs, targets = _selected(name, metric.on, outputs), _selected(name, metric.on, batch.get("targets"))
        batch = {**batch, "targets": targets}
    function = metric.values if of_examples and isinstance(metric, Mean) else metric.measure
    return measured(f"the metric {name!r}", function, outputs, batch, losses, weights)


def _selected(name: str, on: str, tree: Any) -> Any:
    if not isinstance(tree, Mapping) or on not in tree:
        have = ", ".join(tree) if isinstance(tree, Mapping) else type(tree).__name__
        raise UserError(f"metric {name!r} is on {on!r}, and the outputs or targets are {have}: name one of those")
    return tree[on]


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
