"""The metrics of classes and tokens: accuracies, perplexity, bits per character.

Accuracies weigh examples by the mask and by `batch["weights"]`, not by a loss's class weights: an accuracy
stays the share of examples that are right. Perplexity and bits per character follow the loss.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.errors import UserError
from accelnet.objectives.metric import Batch, Loss, Mean, State, example_weights


@dataclass(frozen=True)
class Accuracy(Mean):
    """Count how often the largest output is the target's; the first of equals wins.

    Outputs are [B, C] or [B, T, C], targets int[B] or int[B, T].

    Example:
        >>> metric = Accuracy()
        >>> outputs, batch = jnp.array([[0.1, 0.9], [0.8, 0.2]]), {"targets": jnp.array([1, 1])}
        >>> float(metric.compute(metric.measure(outputs, batch, jnp.zeros(2), jnp.ones(2))))
        0.5

    Source: original.
    """

    lower_is_better = False

    def values(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return 1 where the largest output is the target's, else 0."""
        del losses, weights
        targets = batch["targets"].astype(jnp.int32)
        right = jnp.argmax(outputs, axis=-1).astype(jnp.int32) == targets
        return right.astype(jnp.float32), example_weights(batch, targets.shape)


@dataclass(frozen=True)
class TopKAccuracy(Mean):
    """Count how often the target is among the k largest outputs; of equals the first rank higher.

    Outputs are [B, C] or [B, T, C], targets int[B] or int[B, T]. A target whose output is NaN is not found.

    Args:
        k: at least 1 and at most C; 1 is `Accuracy`.

    Raises:
        UserError: k is out of that range.

    Example:
        >>> metric = TopKAccuracy(2)
        >>> outputs, batch = jnp.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]]), {"targets": jnp.array([1, 0])}
        >>> float(metric.compute(metric.measure(outputs, batch, jnp.zeros(2), jnp.ones(2))))
        0.5

    Source: original.
    """

    lower_is_better = False

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"TopKAccuracy: k is {self.k}, expected at least 1")

    def values(self, outputs: Any, batch: Batch, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return 1 where fewer than k outputs rank above the target's, else 0."""
        del losses, weights
        num_classes = outputs.shape[-1]
        if self.k > num_classes:
            raise UserError(f"TopKAccuracy: k is {self.k}, but the outputs have only {num_classes} classes")
        # Ranks need one comparison per class; a sort of every row costs more on all platforms.
        targets = batch["targets"].astype(jnp.int32)[..., None]
        outputs = outputs.astype(jnp.float32)
        index = jax.lax.broadcasted_iota(jnp.int32, outputs.shape, outputs.ndim - 1)
        own = jnp.sum(jnp.where(index == targets, outputs, 0.0), axis=-1, keepdims=True)
        ahead = (outputs > own) | ((outputs == own) & (index < targets))
        found = (jnp.sum(ahead, axis=-1) < self.k) & ~jnp.isnan(own[..., 0])
        return found.astype(jnp.float32), example_weights(batch, found.shape)


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
