"""The metrics of numbers: outputs and targets of one shape, compared element by element, in float32.

Each example counts once; `weighted=True` weighs it by `batch["weights"]`. One of weight 0, or outside the mask, counts
nowhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.arguments import integer
from accelnet.errors import UserError
from accelnet.objectives.metric import ExampleMean, ExampleMetric, Mean, State
from accelnet.objectives.weights import Batch, safe_ratio


def paired(outputs: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    """Bring outputs and targets of a regression to one shape, float32[B, K], or say why they do not fit.

    A column [B, 1] and a vector [B] mean the same; any further axes are flattened into K. Nothing is
    broadcast: [B] against [B, 1] by NumPy's rule would compare every example with every other.

    Args:
        outputs: [B], [B, K] or [B, ...].
        targets: the same shape, up to a last axis of 1.

    Returns:
        The two, as float32[B, K].

    Raises:
        UserError: the shapes differ.

    Example:
        >>> [array.shape for array in paired(jnp.zeros((5, 1)), jnp.zeros(5))]
        [(5, 1), (5, 1)]
    """
    outputs, targets = jnp.asarray(outputs, jnp.float32), jnp.asarray(targets, jnp.float32)
    shapes = [(*array.shape, 1) if array.ndim == 1 else array.shape for array in (outputs, targets)]
    if shapes[0] != shapes[1] or len(shapes[0]) < 2:
        raise UserError(
            f"the model's outputs have shape {outputs.shape} and the targets {targets.shape}: "
            "expected the same shape, or [B] and [B, 1]"
        )
    return outputs.reshape(outputs.shape[0], -1), targets.reshape(targets.shape[0], -1)


@dataclass(frozen=True)
class BinaryAccuracy(ExampleMean):
    """Count how often a logit's sign is right: `(logit > 0) = target`, as a mean over an example's labels.

    Outputs and targets are [B] or [B, K] (one of them may be [B, 1] where the other is [B]). NaN is wrong.

    Args:
        weighted, on: as of `ExampleMetric`.

    Example:
        >>> metric = BinaryAccuracy()
        >>> batch = {"targets": jnp.array([1, 1])}
        >>> float(metric.compute(metric.measure(jnp.array([2.0, -1.0]), batch, jnp.zeros(2), jnp.ones(2))))
        0.5
    """

    lower_is_better = False
    is_share = True

    def of_examples(self, outputs: Any, targets: Any) -> jax.Array:
        """Return the share of an example's labels that are right."""
        logits, targets = paired(outputs, targets)
        right = ((logits > 0) == (targets > 0.5)) & ~jnp.isnan(logits)
        return jnp.mean(right.astype(jnp.float32), axis=1)


@dataclass(frozen=True)
class RoundedAccuracy(ExampleMean):
    """Count how often all of an example's outputs, rounded, equal its targets (halves round to even).

    Outputs and targets are [B] or [B, K].

    Args:
        weighted, on: as of `ExampleMetric`.

    Example:
        >>> metric = RoundedAccuracy()
        >>> batch = {"targets": jnp.array([1.0, 0.0])}
        >>> float(metric.compute(metric.measure(jnp.array([[0.8], [0.6]]), batch, jnp.zeros(2), jnp.ones(2))))
        0.5
    """

    lower_is_better = False
    is_share = True

    def of_examples(self, outputs: Any, targets: Any) -> jax.Array:
        """Return whether all rounded outputs equal the targets."""
        outputs, targets = paired(outputs, targets)
        return jnp.all(jnp.round(outputs) == targets, axis=1)


@dataclass(frozen=True)
class MeanAbsoluteError(ExampleMetric, Mean):
    """Average `|output - target|`, over an example's outputs and then over examples, in the units of the user's data.

    Outputs and targets are [B] or [B, K]. Where `batch["units"]` tells how targets were standardized, as it does for
    tables, that is undone before.

    Args:
        weighted, on: as of `ExampleMetric`.

    Example:
        >>> metric = MeanAbsoluteError()
        >>> batch = {"targets": jnp.array([1.0, 0.0])}
        >>> float(metric.compute(metric.measure(jnp.array([2.0, 2.0]), batch, jnp.zeros(2), jnp.ones(2))))
        1.5
    """

    lower_is_better = True

    def values(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the mean absolute difference per example, and the weights of the examples."""
        del losses, weights
        outputs, targets = paired(outputs, batch["targets"])
        if batch.get("units") is not None:
            outputs, targets = (_in_units(values, batch["units"]) for values in (outputs, targets))
        values = jnp.mean(jnp.abs(outputs - targets), axis=1)
        return values, self.weigh(batch, values.shape)


def _in_units(values: jax.Array, units: Mapping[str, jax.Array]) -> jax.Array:
    """Undo the standardization of values [B, K]."""
    mean, std, log = (units[name][:, None] for name in ("mean", "std", "log"))
    values = values * std + mean
    # Of outputs that are far off, as before training, the exponential would be infinite.
    return jnp.where(log > 0, jnp.exp(jnp.minimum(values, _LARGEST_LOG)), values)


# Of float32 numbers.
_LARGEST_LOG = 88.0

# Of no targets: what no target changes when both have been seen.
_NO_ENDS = {"low": jnp.inf, "high": -jnp.inf}


@dataclass(frozen=True)
class R2(ExampleMetric):
    """Compute the coefficient of determination, `1 - sum(w (t - o)^2) / sum(w (t - mean(t))^2)`.

    With several outputs it is the plain average of each one's. Targets that are all equal give 1 if every
    output is exact, else 0. Means and squared deviations are merged, not sums of squares: in float32 those
    cancel for targets far from zero.

    Args:
        num_outputs: K of outputs and targets [B, K]; 1 for [B].
        weighted, on: as of `ExampleMetric`.

    Raises:
        UserError: num_outputs is below 1, or the outputs have another number.

    Example:
        >>> metric = R2()
        >>> batch = {"targets": jnp.array([1.0, 2.0, 3.0])}
        >>> float(metric.compute(metric.measure(jnp.array([1.0, 2.0, 4.0]), batch, jnp.zeros(3), jnp.ones(3))))
        0.5

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979, equation 2.1, with weights for counts.
    """

    lower_is_better = False

    num_outputs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("R2: num_outputs", self.num_outputs, 1)

    def empty(self) -> State:
        """Return the state that has seen nothing."""
        # One array each: the same array under three names could not be donated.
        sums = {name: jnp.zeros((self.num_outputs,), jnp.float32) for name in ("mean", "deviation", "residual")}
        ends = {end: jnp.full((self.num_outputs,), fill, jnp.float32) for end, fill in _NO_ENDS.items()}
        return {"weight": jnp.zeros((), jnp.float32), **sums, **ends}

    def measure(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> State:
        """Return one batch's mean, least and largest target, and sums of squared deviations and residuals."""
        del losses, weights
        outputs, targets = paired(outputs, batch["targets"])
        if outputs.shape[1] != self.num_outputs:
            raise UserError(
                f"R2 was made for num_outputs={self.num_outputs}, but the outputs have {outputs.shape[1]}: "
                f"give num_outputs={outputs.shape[1]} to the objective, or leave the metric out "
                'with metrics={"r2": None}'
            )
        weights = self.weigh(batch, outputs.shape[:1])[:, None]
        weight = jnp.sum(weights)
        live = weights != 0
        targets, errors = jnp.where(live, targets, 0.0), jnp.where(live, outputs - targets, 0.0)
        mean = safe_ratio(jnp.sum(weights * targets, axis=0), jnp.broadcast_to(weight, (self.num_outputs,)))
        return {
            "weight": weight,
            "mean": mean,
            "deviation": jnp.sum(weights * (targets - mean[None, :]) ** 2, axis=0),
            "residual": jnp.sum(weights * errors**2, axis=0),
            "low": jnp.min(targets, axis=0, where=live, initial=_NO_ENDS["low"]),
            "high": jnp.max(targets, axis=0, where=live, initial=_NO_ENDS["high"]),
        }

    def merge(self, a: State, b: State) -> State:
        """Return the state that has seen what both have."""
        weight = a["weight"] + b["weight"]
        share = safe_ratio(b["weight"], weight)
        delta = b["mean"] - a["mean"]
        return {
            "weight": weight,
            "mean": a["mean"] + share * delta,
            "deviation": a["deviation"] + b["deviation"] + a["weight"] * share * delta**2,
            "residual": a["residual"] + b["residual"],
            "low": jnp.minimum(a["low"], b["low"]),
            "high": jnp.maximum(a["high"], b["high"]),
        }

    def compute(self, state: State) -> jax.Array:
        """Return R2, float32, averaged over the outputs."""
        deviation, residual = state["deviation"], state["residual"]
        # The deviation of equal targets from their mean is rounding, and not 0.
        varies = (state["high"] > state["low"]) & (deviation > 0)
        ratio = residual / jnp.where(varies, deviation, 1.0)
        fixed = jnp.where((residual == 0) & (state["weight"] != 0), 1.0, 0.0)
        return jnp.mean(jnp.where(varies, 1.0 - ratio, fixed))
