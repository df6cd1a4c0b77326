"""What a metric is: a state that starts empty, merges, and computes to one number."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from accelnet.arguments import flag, function, word
from accelnet.errors import UserError
from accelnet.objectives.weights import Batch, metric_weights, safe_ratio, weighted_sum
from accelnet.signature import call, described, name_of, wants

State = dict[str, jax.Array]


def measured(role: str, function: Callable[..., Any], outputs: Any, batch: Any, losses: Any, weights: Any) -> Any:
    """Call what measures a batch: a function of (outputs, batch) that may ask for `losses` and `weights`.

    One of four positional arguments gets these in this order, whatever they are called.

    Example:
        >>> measured("the metric", lambda o, b, l, w: l * w, None, {}, 2.0, 3.0)
        6.0
        >>> measured("the metric", lambda outputs, batch, weights: weights, None, {}, 2.0, 3.0)
        3.0
    """
    if len(wants(function).positional) == 4:
        return call(role, function, outputs, batch, losses, weights)
    return call(role, function, outputs, batch, losses=losses, weights=weights)


class Metric(ABC):
    """Measure a model over any number of batches, exactly, however they are cut.

    A metric holds settings only; what it has seen is in the state, a flat dict of small float32 arrays whose
    shapes never change. `merge` is associative and `empty` is its neutral element, so that states of batches,
    devices and hosts can be combined in any grouping.

    Attributes:
        lower_is_better: Direction of the metric, None if none was given. What orders values (the best checkpoint,
            early stopping, `tune`, `compare`) refuses a metric without a direction; its name decides nothing.
        on: Name of the output and the target that it measures, where both are dicts. None: all of them.

    Example:
        >>> metric = Loss()
        >>> losses, weights = jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])
        >>> state = metric.merge(metric.empty(), metric.measure(None, {}, losses, weights))
        >>> float(metric.compute(state))
        2.0
    """

    lower_is_better: bool | None = None
    on: str | None = None

    @abstractmethod
    def empty(self) -> State:
        """Return the state that has seen nothing."""

    @abstractmethod
    def measure(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> State:
        """Return the state of one batch.

        Args:
            outputs: what the model returned. Where the weight is 0 it holds zeros.
            batch: "targets" (zeros where the weight is 0), and maybe "mask" and "weights".
            losses: float32[B] or float32[B, T].
            weights: weights of the losses, the same shape; they include the mask and the loss's class weights.
        """

    def merge(self, a: State, b: State) -> State:
        """Return the state that has seen what both have: their sum, unless a metric says otherwise."""
        return {name: a[name] + b[name] for name in a}

    @abstractmethod
    def compute(self, state: State) -> jax.Array:
        """Return the metric, a float32 scalar; 0 (a perplexity of 1) where nothing was seen."""


class Mean(Metric):
    """Average one value per example or step: `sum(w v) / sum(w)`. A base class: subclasses define `values`.

    Attributes:
        is_share: Whether the values lie between 0 and 1, so that their mean has the interval of a share.

    Example:
        >>> class FirstOutput(Mean):
        ...     def values(self, outputs, batch, losses, weights):
        ...         return outputs[:, 0], weights
        >>> metric = FirstOutput()
        >>> state = metric.measure(jnp.array([[1.0], [2.0]]), {}, jnp.zeros(2), jnp.ones(2))
        >>> float(metric.compute(state))
        1.5
    """

    is_share: ClassVar[bool] = False

    @abstractmethod
    def values(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the values and their weights, both of shape [B] or [B, T]."""

    def empty(self) -> State:
        """Return sums of nothing."""
        return {"total": jnp.zeros((), jnp.float32), "weight": jnp.zeros((), jnp.float32)}

    def measure(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> State:
        """Return the sums of one batch."""
        total, weight = weighted_sum(*measured("the metric", self.values, outputs, batch, losses, weights))
        return {"total": total, "weight": weight}

    def compute(self, state: State) -> jax.Array:
        """Return the weighted mean, float32; 0 where nothing was seen."""
        return safe_ratio(state["total"], state["weight"])


def _check_settings(metric: Any) -> None:
    flag("weighted of a metric", metric.weighted)
    if metric.on is not None:
        word("on of a metric", metric.on)


@dataclass(frozen=True)
class ExampleMetric(Metric):
    """Measure examples. A base class.

    Args:
        weighted: weigh examples by `batch["weights"]`. False: each counts once.
        on: name of the output and the target, as of `Metric`.
    """

    weighted: bool = field(default=False, kw_only=True)
    on: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_settings(self)

    def weigh(self, batch: Batch, shape: tuple[int, ...]) -> jax.Array:
        """Return the weights of examples (or steps), float32 of this shape."""
        return metric_weights(batch, shape, weighted=self.weighted)


@dataclass(frozen=True)
class ExampleMean(ExampleMetric, Mean):
    """Average one value per example or step. A base class: it lacks `of_examples`."""

    @abstractmethod
    def of_examples(self, outputs: Any, targets: Any) -> jax.Array:
        """Return the values, [B] or [B, T]."""

    def values(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the values, float32, and the weights of the examples."""
        del losses, weights
        values = self.of_examples(outputs, batch["targets"]).astype(jnp.float32)
        return values, self.weigh(batch, values.shape)


@dataclass(frozen=True)
class Loss(Mean):
    """Average the losses by their own weights, as training does.

    Example:
        >>> metric = Loss()
        >>> float(metric.compute(metric.measure(None, {}, jnp.array([1.0, 4.0]), jnp.array([2.0, 1.0]))))
        2.0
    """

    lower_is_better = True

    def values(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the losses and weights as they are."""
        del outputs, batch
        return losses, weights


@dataclass(frozen=True)
class FunctionMean(Mean):
    """Average what a function returns for each example, by the mask.

    Args:
        function: function of (outputs, batch) that returns values, [B] or [B, ...]. It may ask for `losses` and
            `weights`.
        lower_is_better: direction of the metric.
        on: name of the output and the target, as of `Metric`.
        weighted: weigh examples by `batch["weights"]`. False: each counts once.

    Raises:
        UserError: when used, if it does not return one value for each example.

    Example:
        >>> metric = FunctionMean(lambda outputs, batch: jnp.abs(outputs - batch["targets"]))
        >>> batch = {"targets": jnp.zeros(2), "mask": jnp.array([True, False])}
        >>> float(metric.compute(metric.measure(jnp.array([3.0, 9.0]), batch, jnp.zeros(2), jnp.ones(2))))
        3.0
    """

    function: Callable[..., Any]
    lower_is_better: bool | None = None
    on: str | None = None
    weighted: bool = False

    def __post_init__(self) -> None:
        function("the metric", self.function, "a function of (outputs, batch)")
        if self.lower_is_better is not None:
            flag("lower_is_better of the metric", self.lower_is_better)
        _check_settings(self)

    def values(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the function's values, and the weights of the examples."""
        values = measured("the metric", self.function, outputs, batch, losses, weights)
        num_examples = len(jax.tree.leaves(outputs)[0])
        if jnp.shape(values)[:1] != (num_examples,):
            raise UserError(
                f"the metric, {name_of(self.function)}, returned {described([values])} for {num_examples} examples: "
                "expected one value for each"
            )
        return jnp.asarray(values, jnp.float32), metric_weights(batch, jnp.shape(values), weighted=self.weighted)
