"""Weights of examples: what the mask and the data's weights say, and sums by them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.errors import UserError

Batch = Mapping[str, Any]


def example_weights(batch: Batch, shape: tuple[int, ...]) -> jax.Array:
    """Weigh every example (or step) of a batch by its mask and its own weights.

    Args:
        batch: may hold "mask", bool[B], and "weights", float[B] or float[B, T].
        shape: the shape of the losses, (B,) or (B, T).

    Returns:
        float32 of that shape: 1 where nothing is said, 0 where the mask is False.

    Raises:
        UserError: the batch's weights have more axes than the losses, or other lengths.

    Example:
        >>> batch = {"mask": jnp.array([True, False]), "weights": jnp.array([0.5, 3.0])}
        >>> example_weights(batch, (2,)).tolist()
        [0.5, 0.0]
    """
    weights = jnp.ones(shape, jnp.float32)
    if batch.get("weights") is not None:
        weights = _spread("weights", jnp.asarray(batch["weights"], jnp.float32), shape)
    if batch.get("mask") is not None:
        # A selection, not a product: a padding row's weight may be NaN.
        weights = jnp.where(_spread("mask", jnp.asarray(batch["mask"], bool), shape), weights, 0.0)
    return weights


def metric_weights(batch: Batch, shape: tuple[int, ...], *, weighted: bool) -> jax.Array:
    """Weigh examples (or steps) for a metric: once each, or by the batch's own weights.

    Args:
        batch: as for `example_weights`.
        shape: (B,) or (B, T).
        weighted: take the weights as they are. False: 1 for each, but 0 where the mask is False or the weight 0, which
            says that nothing is there.

    Returns:
        float32 of that shape.

    Example:
        >>> batch = {"weights": jnp.array([0.5, 3.0, 0.0])}
        >>> metric_weights(batch, (3,), weighted=False).tolist(), metric_weights(batch, (3,), weighted=True).tolist()
        ([1.0, 1.0, 0.0], [0.5, 3.0, 0.0])
    """
    if not weighted and batch.get("weights") is not None:
        batch = {**batch, "weights": jnp.asarray(batch["weights"]) != 0}
    return example_weights(batch, shape)


def _spread(name: str, array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if array.ndim > len(shape) or array.shape != shape[: array.ndim]:
        raise UserError(
            f'batch["{name}"] has shape {array.shape}, but the losses have shape {shape}: '
            f"give {name} of shape {shape[:1]}" + (f" or {shape}" if len(shape) > 1 else "")
        )
    return jnp.broadcast_to(array.reshape(array.shape + (1,) * (len(shape) - array.ndim)), shape)


def weighted_sum(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum values times weights, and the weights; what has weight 0 does not count, NaN or not.

    Args:
        values: array of any float dtype, [B] or [B, T].
        weights: the same shape.

    Returns:
        (sum of weights * values, sum of weights), float32 scalars.

    Example:
        >>> total, weight = weighted_sum(jnp.array([2.0, jnp.nan]), jnp.array([3.0, 0.0]))
        >>> float(total), float(weight)
        (6.0, 3.0)
    """
    values, weights = values.astype(jnp.float32), weights.astype(jnp.float32)
    return jnp.sum(weights * jnp.where(weights != 0, values, 0.0)), jnp.sum(weights)


def safe_ratio(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Divide, giving 0 (and gradients of 0) where the divisor is 0.

    Example:
        >>> zero = jnp.array(0.0)
        >>> float(safe_ratio(jnp.array(3.0), jnp.array(2.0))), float(safe_ratio(zero, zero))
        (1.5, 0.0)
    """
    return jnp.where(weight != 0, total / jnp.where(weight != 0, weight, 1.0), 0.0)
