"""Statistics of training rows, and the `prepare` that uses them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CHUNK_BYTES = 1 << 24
Fitted = Mapping[str, Any]


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


def fit(values: np.ndarray, offset: np.ndarray | float = 0.0) -> dict[str, np.ndarray]:
    """Compute what `standardize` needs of the training rows.

    Args:
        values: number [N, ..., C] or [N], as the arrays hold them.
        offset: float64 [C], what was subtracted from them.

    Returns:
        "mean" (in the units before the subtraction) and "std", float64 [C] ([1] for [N]).

    Example:
        >>> fit(np.array([[-1.0], [1.0]]), offset=np.array([1.7e9]))
        {'mean': array([1.7e+09]), 'std': array([1.])}
    """
    mean, std = moments(values)
    return {"mean": mean.astype(np.float64) + offset, "std": std.astype(np.float64)}


def standardize(batch: Any, fitted: Fitted, coding: Fitted) -> Any:
    """Prepare a batch: cast inputs to float32 and standardize them, and cast labels to int32.

    inputs <- (inputs + offset - mean) / std

    Args:
        batch: "inputs" [B, ..., C] ([B] for C = 1), and "targets", where there are any: an array or a dict of arrays.
        fitted: "mean" and "std" [C]; and "target", its "mean" and "std", where targets are standardized too.
        coding: of the rows: for "inputs" the "offset" [C] that was subtracted from them, for "targets" the "mean" and
            "std" that they were standardized with.

    Returns:
        The batch; its other entries stay.

    Example:
        >>> batch = {"inputs": np.array([[5], [1]], np.uint8), "targets": np.array([0, 1])}
        >>> standardize(batch, {"mean": (1.0,), "std": (2.0,)}, {})["inputs"].tolist()
        [[2.0], [0.0]]
    """
    inputs = jnp.asarray(batch["inputs"])
    mean, scale = centre_and_scale(fitted, coding.get("inputs", {}).get("offset", 0.0))
    # A reshape to the rank of the inputs, because rank promotion may be an error.
    shape = (1,) * (inputs.ndim - 1) + (-1,)
    inputs = (inputs.astype(jnp.float32) - mean.reshape(shape)) * scale.reshape(shape)
    batch = with_cast_targets({**batch, "inputs": inputs})
    if "target" in fitted and not isinstance(batch.get("targets", {}), Mapping):
        batch["targets"] = _rescaled(batch["targets"], coding["targets"], fitted["target"])
    return batch


def centre_and_scale(fitted: Fitted, offset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what to subtract from values that lack an offset, and what to multiply them with.

    Args:
        fitted: "mean" and "std" [C].
        offset: float64 [C] or a number.

    Returns:
        Two float32 [C]: mean - offset, rounded from float64, and 1 / std.

    Example:
        >>> centre_and_scale({"mean": (1.7e9 + 1,), "std": (2.0,)}, (1.7e9,))
        (array([1.], dtype=float32), array([0.5], dtype=float32))
    """
    mean = np.asarray(fitted["mean"], np.float64) - np.asarray(offset, np.float64)
    return mean.astype(np.float32), (1 / np.asarray(fitted["std"], np.float32)).astype(np.float32)


def with_cast_targets(batch: Any) -> Any:
    """Return the batch with integer targets as int32, and others as they are.

    Args:
        batch: with "targets" or without: an array of any shape, or a dict of arrays.

    Returns:
        A new dict. Compact labels (uint8) would wrap around in arithmetic.

    Example:
        >>> with_cast_targets({"targets": {"digit": jnp.array([3], jnp.uint8)}})["targets"]["digit"].dtype
        dtype('int32')
    """
    return {**batch, "targets": jax.tree.map(_cast, batch["targets"])} if "targets" in batch else dict(batch)


def _cast(targets: Any) -> Any:
    targets = jnp.asarray(targets)
    return targets.astype(jnp.int32) if jnp.issubdtype(targets.dtype, jnp.integer) else targets


def _rescaled(targets: Any, own: Fitted, other: Fitted) -> Any:
    scale, shift = own["std"] / other["std"], (own["mean"] - other["mean"]) / other["std"]
    return targets if (scale, shift) == (1.0, 0.0) else targets * np.float32(scale) + np.float32(shift)
