"""Statistics of training rows, and the `prepare` that uses them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

CHUNK_BYTES = 1 << 24


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation over all axes but the last (channels, features).

    Args:
        values: number [N, ..., C], or [N], which counts as one channel. The training rows.

    Returns:
        Two float32 [C] ([1] for [N]). The standard deviation of a constant channel is given as 1.

    Example:
        >>> moments(np.array([[0.0, 3.0], [2.0, 3.0]]))
        (array([1., 3.], dtype=float32), array([1., 1.], dtype=float32))
    """
    channels = values.shape[-1] if values.ndim > 1 else 1
    count = values.size // channels
    step = max(1, CHUNK_BYTES // max(1, values[:1].size * 8))
    chunks = [slice(start, start + step) for start in range(0, len(values), step)]
    total = np.zeros(channels)
    for chunk in chunks:
        total += np.asarray(values[chunk]).reshape(-1, channels).sum(axis=0, dtype=np.float64)
    mean = total / count
    total = np.zeros(channels)
    for chunk in chunks:
        centred = np.asarray(values[chunk]).reshape(-1, channels) - mean[None, :]
        total += np.einsum("nc,nc->c", centred, centred)
    std = np.sqrt(total / count)
    # Rounding leaves a constant channel of large numbers a tiny deviation, and dividing by it would be noise.
    std = np.where(std > 1e-7 * np.maximum(1e-30, np.abs(mean)), std, 1.0)
    return mean.astype(np.float32), std.astype(np.float32)


def cast_targets(targets: Any) -> Any:
    """Return integer targets as int32 and others as they are.

    Args:
        targets: array of any shape.

    Returns:
        The same shape. Compact labels (uint8) would wrap around in arithmetic.

    Example:
        >>> cast_targets(jnp.array([3], jnp.uint8)).dtype
        dtype('int32')
    """
    return targets.astype(jnp.int32) if jnp.issubdtype(targets.dtype, jnp.integer) else targets


def make_standardize(mean: np.ndarray, std: np.ndarray) -> Callable[[Any], Any]:
    """Make a `prepare` that casts inputs to float32 and standardizes them, and casts labels to int32.

    inputs <- (inputs - mean) / std

    Args:
        mean: float32 [C], broadcast over the leading axes.
        std: float32 [C], above 0.

    Returns:
        batch -> batch, for inputs [B, ..., C] ([B] for C = 1); other entries of the batch stay.

    Example:
        >>> prepare = make_standardize(np.array([1.0], np.float32), np.array([2.0], np.float32))
        >>> batch = {"inputs": np.array([[5], [1]], np.uint8), "targets": np.array([0, 1])}
        >>> prepare(batch)["inputs"].tolist()
        [[2.0], [0.0]]
    """
    scale = (1 / std).astype(np.float32)

    def prepare(batch: Any) -> Any:
        inputs = jnp.asarray(batch["inputs"])
        # A reshape to the rank of the inputs, because rank promotion may be an error.
        shape = (1,) * (inputs.ndim - 1) + (-1,)
        inputs = (inputs.astype(jnp.float32) - mean.reshape(shape)) * scale.reshape(shape)
        return {**batch, "inputs": inputs, "targets": cast_targets(jnp.asarray(batch["targets"]))}

    return prepare
