"""Several objectives as one, each on its own output and target."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.arguments import instance, word
from accelnet.errors import UserError
from accelnet.objectives.metric import Mean, Metric
from accelnet.objectives.objective import Objective, check_metrics
from accelnet.objectives.weights import Batch, example_weights
from accelnet.wording import shown


def combine(
    parts: Mapping[str, Objective | tuple[Objective, float]], *, metrics: Mapping[str, Metric | Any] | None = None
) -> Objective:
    """Descend a weighted sum of losses, each of one output: `loss = sum_k factor_k * loss_k(outputs[k], targets[k])`.

    Outputs and targets are dicts with the names of `parts`. An example's loss in a part is the mean over its further
    axes, such as steps or pixels, by the part's own weights; class weights are factors of an example's loss.

    Args:
        parts: objectives, or pairs (objective, factor), by name; the factor is 1 where it is not given.
        metrics: further metrics, by name. Those of the parts are called after their part: "digit_accuracy".

    Returns:
        The objective.

    Raises:
        UserError: if there are no parts, a factor is no finite number, or, when used, an output or target is missing.

    Example:
        >>> from accelnet.objectives import softmax_cross_entropy, squared_error
        >>> objective = combine({"digit": softmax_cross_entropy(), "size": (squared_error(), 0.5)})
        >>> outputs = {"digit": jnp.zeros((1, 4)), "size": jnp.zeros(1)}
        >>> mean, _ = objective.evaluate(outputs, {"targets": {"digit": jnp.array([1]), "size": jnp.array([2.0])}})
        >>> abs(float(mean) - (math.log(4) + 0.5 * 2.0**2)) < 1e-6
        True
    """
    instance("parts", parts, Mapping, "a dict of objectives by name, as {'digit': softmax_cross_entropy()}")
    pairs = {name: part if isinstance(part, tuple) else (part, 1.0) for name, part in parts.items()}
    if not pairs:
        raise UserError("combine was given no parts: give at least one, as {'digit': softmax_cross_entropy()}")
    for name, pair in pairs.items():
        word("the name of a part", name)
        if len(pair) != 2 or not isinstance(pair[0], Objective) or not _is_number(pair[1]):
            raise UserError(f"part {name!r} is {shown(pair)}, expected an Objective, or (Objective, factor)")

    def loss(
        outputs: Any, batch: Batch, *, mask: Any = None, model: Any = None, params: Any = None, key: Any = None,
        step: Any = None, progress: Any = None, train: Any = None, sown: Any = None,
    ) -> jax.Array:  # fmt: skip
        offered = {
            "mask": mask, "model": model, "params": params, "key": key, "step": step, "progress": progress,
            "train": train, "sown": sown,
        }  # fmt: skip
        every = [
            factor * _of_examples(part, *_part(name, pairs, outputs, batch), offered)
            for name, (part, factor) in pairs.items()
        ]
        return sum(every[1:], every[0])

    found: dict[str, Any] = {}
    for name, (part, _) in pairs.items():
        found[f"{name}_loss"] = _PartLoss(part, on=name)
        for metric_name, metric in part.metrics.items():
            if metric_name != "loss":
                found[f"{name}_{metric_name}"] = _OnPart(part, metric, metric.lower_is_better, on=name)
    return Objective(loss, {**found, **({} if metrics is None else check_metrics(metrics))})


def _is_number(factor: Any) -> bool:
    return isinstance(factor, int | float) and not isinstance(factor, bool) and math.isfinite(factor)


def _part(name: str, names: Mapping[str, Any], outputs: Any, batch: Batch) -> tuple[Any, Batch]:
    targets = batch.get("targets")
    for what, tree in (("outputs", outputs), ("targets", targets)):
        if not isinstance(tree, Mapping) or name not in tree:
            have = ", ".join(tree) if isinstance(tree, Mapping) else type(tree).__name__
            raise UserError(f"the parts are {', '.join(names)}, and the {what} are {have}: expected a dict with these")
    return outputs[name], {**batch, "targets": targets[name]}  # type: ignore[index]


def _of_examples(part: Objective, outputs: Any, batch: Batch, offered: Mapping[str, Any]) -> jax.Array:
    losses, own = part.raw(outputs, batch, {name: value for name, value in offered.items() if value is not None})
    if losses.ndim == 0:
        return jnp.broadcast_to(losses, (len(jax.tree.leaves(outputs)[0]),))
    rest = tuple(range(1, losses.ndim))
    if own is None:
        return losses.mean(axis=rest)
    weight = own.sum(axis=rest)
    return (losses * own).sum(axis=rest) / jnp.where(weight != 0, weight, 1.0) if rest else losses * own


@dataclass(frozen=True)
class _PartLoss(Mean):
    part: Objective
    on: str | None = None
    lower_is_better = True

    def values(self, outputs: Any, batch: Batch, losses: Any = None, weights: Any = None) -> Any:
        values = _of_examples(self.part, outputs, batch, {"train": False})
        return values, example_weights(batch, values.shape)


@dataclass(frozen=True)
class _OnPart(Metric):
    """A part's metric, measured on its output, its target and its loss."""

    part: Objective
    metric: Metric
    lower_is_better: bool | None = None
    on: str | None = None

    def empty(self) -> Any:
        return self.metric.empty()

    def measure(self, outputs: Any, batch: Batch, losses: Any, weights: Any) -> Any:
        return self.metric.measure(*self.part.weighed(outputs, batch, {"train": False}))

    def merge(self, a: Any, b: Any) -> Any:
        return self.metric.merge(a, b)

    def compute(self, state: Any) -> Any:
        return self.metric.compute(state)
