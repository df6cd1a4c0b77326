"""The metrics of classes and tokens: accuracies, F1, perplexity, bits per character.

Sample weights and class weights say what training is to learn. Accuracies and F1 count each example once, so that they
are shares of examples; `weighted=True` weighs them by `batch["weights"]`. An example of weight 0, or outside the mask,
counts nowhere. Perplexity and bits per character follow the loss.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from accelnet.arguments import integer, word
from accelnet.errors import UserError
from accelnet.objectives.metric import ExampleMean, ExampleMetric, Loss, State
from accelnet.objectives.regression import paired
from accelnet.objectives.weights import Batch, safe_ratio


def _class_numbers(outputs: Any, targets: Any) -> jax.Array:
    """Return the classes of targets, int32[B, ...]: their numbers, or, of shares [B, ..., C], the largest share's."""
    return (jnp.argmax(targets, axis=-1) if targets.shape == outputs.shape else targets).astype(jnp.int32)


@dataclass(frozen=True)
class Accuracy(ExampleMean):
    """Count how often the largest output is the target's; the first of equals wins.

    Outputs are [B, C] or [B, ..., C], targets int[B] or int[B, ...], or shares of the outputs' shape, whose largest
    counts. Outputs with a NaN are wrong.

    Args:
        weighted, on: as of `ExampleMetric`.

    Example:
        >>> metric = Accuracy()
        >>> outputs, batch = jnp.array([[0.1, 0.9], [0.8, 0.2]]), {"targets": jnp.array([1, 1])}
        >>> float(metric.compute(metric.measure(outputs, batch, jnp.zeros(2), jnp.ones(2))))
        0.5
    """

    lower_is_better = False
    is_share = True

    def of_examples(self, outputs: Any, targets: Any) -> jax.Array:
        """Return whether the largest output is the target's."""
        targets = _class_numbers(outputs, targets)
        return (jnp.argmax(outputs, axis=-1).astype(jnp.int32) == targets) & ~jnp.isnan(jnp.max(outputs, axis=-1))


@dataclass(frozen=True)
class TopKAccuracy(ExampleMean):
    """Count how often the target is among the k largest outputs; of equals the first rank higher.

    Outputs and targets are as for `Accuracy`. Outputs with a NaN are wrong.

    Args:
        k: number from 1 to C; 1 is `Accuracy`.
        weighted, on: as of `ExampleMetric`.

    Raises:
        UserError: k is out of that range.

    Example:
        >>> metric = TopKAccuracy(2)
        >>> outputs, batch = jnp.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]]), {"targets": jnp.array([1, 0])}
        >>> float(metric.compute(metric.measure(outputs, batch, jnp.zeros(2), jnp.ones(2))))
        0.5
    """

    lower_is_better = False
    is_share = True

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("TopKAccuracy: k", self.k, 1)

    def of_examples(self, outputs: Any, targets: Any) -> jax.Array:
        """Return whether fewer than k outputs rank above the target's."""
        num_classes = outputs.shape[-1]
        if self.k > num_classes:
            raise UserError(f"TopKAccuracy: k is {self.k}, but the outputs have only {num_classes} classes")
        # Ranks need one comparison per class; a sort of every row costs more on all platforms.
        targets = _class_numbers(outputs, targets)[..., None]
        outputs = outputs.astype(jnp.float32)
        index = jax.lax.broadcasted_iota(jnp.int32, outputs.shape, outputs.ndim - 1)
        own = jnp.sum(jnp.where(index == targets, outputs, 0.0), axis=-1, keepdims=True)
        ahead = (outputs > own) | ((outputs == own) & (index < targets))
        return (jnp.sum(ahead, axis=-1) < self.k) & ~jnp.isnan(jnp.max(outputs, axis=-1))


@dataclass(frozen=True)
class F1(ExampleMetric):
    """Balance precision and recall: `F1_c = 2 hits_c / (targets_c + predictions_c)`, class by class.

    Outputs are logits [B, C] or [B, ..., C], targets int[B] or int[B, ...], or shares of the outputs' shape, whose
    largest counts; of two classes also one logit, [B] or [B, 1], and targets of that shape, 0 or 1. Outputs with a NaN
    predict no class.

    Args:
        num_classes: C, at least 2.
        average: "binary", of two classes: the F1 of class 1; "macro": the mean over the classes that occur or are
            predicted.
        weighted, on: as of `ExampleMetric`.

    Raises:
        UserError: an argument is out of its range, or, when used, shapes do not fit.

    Example:
        >>> metric = F1()
        >>> outputs, batch = jnp.array([2.0, 1.0, -1.0]), {"targets": jnp.array([1, 0, 0])}
        >>> round(float(metric.compute(metric.measure(outputs, batch, jnp.zeros(3), jnp.ones(3)))), 4)
        0.6667

    Source: van Rijsbergen, "Information retrieval", 1979, chapter 7.
    """

    lower_is_better = False

    num_classes: int = 2
    average: Literal["binary", "macro"] = "binary"

    def __post_init__(self) -> None:
        super().__post_init__()
        word("F1: average", self.average, ("binary", "macro"))
        integer("F1: num_classes", self.num_classes)
        if self.num_classes < 2 or (self.average == "binary" and self.num_classes != 2):
            raise UserError(f"F1: num_classes is {self.num_classes}, expected 2, or more with average='macro'")

    def empty(self) -> State:
        """Return counts of nothing."""
        return {name: jnp.zeros(self.num_classes, jnp.float32) for name in ("hits", "targets", "predictions")}

    def measure(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> State:
        """Return one batch's counts by class."""
        del losses, weights
        targets = batch["targets"]
        if self.num_classes == 2 and (outputs.ndim == 1 or outputs.shape[-1] == 1):
            logit, targets = (array[:, 0] for array in paired(outputs, targets))
            outputs, targets = jnp.stack([jnp.zeros_like(logit), logit], axis=-1), targets > 0.5
        targets = _class_numbers(outputs, targets)
        if outputs.shape != (*targets.shape, self.num_classes):
            raise UserError(
                f"F1 of {self.num_classes} classes: outputs have shape {outputs.shape} and targets {targets.shape}, "
                f"expected [B, {self.num_classes}] and [B]"
            )
        weights = self.weigh(batch, targets.shape)[..., None]
        classes = jax.lax.broadcasted_iota(jnp.int32, outputs.shape, outputs.ndim - 1)
        true = classes == targets[..., None]
        known = ~jnp.isnan(jnp.max(outputs, axis=-1, keepdims=True))
        predicted = (classes == jnp.argmax(outputs, axis=-1, keepdims=True).astype(jnp.int32)) & known
        counted = {"hits": true & predicted, "targets": true, "predictions": predicted}
        axes = tuple(range(targets.ndim))
        return {name: jnp.sum(weights * here, axis=axes) for name, here in counted.items()}

    def compute(self, state: State) -> jax.Array:
        """Return F1, a float32 scalar; 0 where no class occurs or is predicted."""
        size = state["targets"] + state["predictions"]
        each = safe_ratio(2 * state["hits"], size)
        if self.average == "binary":
            return each[1]
        return safe_ratio(jnp.sum(each), jnp.sum((size > 0).astype(jnp.float32)))


@dataclass(frozen=True)
class Perplexity(Loss):
    """Exponentiate the mean loss in nats: `exp(sum(w l) / sum(w))`; 1 where nothing was seen.

    Example:
        >>> metric = Perplexity()
        >>> losses = jnp.log(jnp.array([4.0, 4.0]))
        >>> round(float(metric.compute(metric.measure(None, {}, losses, jnp.ones(2)))), 4)
        4.0

    Source: Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition tasks", 1977.
    """

    def compute(self, state: State) -> jax.Array:
        """Return the exponential of the mean loss, float32."""
        return jnp.exp(super().compute(state))


@dataclass(frozen=True)
class BitsPerCharacter(Loss):
    """Express the mean loss, in nats per token, in bits: `sum(w l) / sum(w) / ln 2`.

    Example:
        >>> metric = BitsPerCharacter()
        >>> losses = jnp.log(jnp.array([4.0, 4.0]))
        >>> round(float(metric.compute(metric.measure(None, {}, losses, jnp.ones(2)))), 4)
        2.0

    Source: Graves, "Generating sequences with recurrent neural networks", 2013, section 3.
    """

    def compute(self, state: State) -> jax.Array:
        """Return the mean loss in bits, float32."""
        return super().compute(state) / math.log(2)
