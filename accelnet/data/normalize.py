"""Statistics of training rows, and the `prepare` that uses them."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.data.fills import refilled, refit_fills
from accelnet.data.row_views import first_rows
from accelnet.data.rows import LazyArray
from accelnet.terminal import StatusLine

CHUNK_BYTES = 1 << 24
Fitted = Mapping[str, Any]


def fit(values: np.ndarray, offset: np.ndarray | float = 0.0) -> dict[str, np.ndarray]:
    """Compute mean and standard deviation over all axes but the last (channels, features): what `standardize` needs.

    Args:
        values: Numbers [N, ..., C] of the training rows, as the arrays hold them; [N] counts as one channel.
        offset: float64 [C] that was subtracted from them.

    Returns:
        "mean" (in the units before the subtraction) and "std", float64 [C] ([1] for [N]), rounded to float32 before
        the offset is added. The deviation of a constant channel is given as 1.

    Source: T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979, equation 2.1, for chunks.

    Example:
        >>> fit(np.array([[-1.0, 3.0], [1.0, 3.0]]), offset=np.array([1.7e9, 0.0]))
        {'mean': array([1.7e+09, 3.0e+00]), 'std': array([1., 1.])}
    """
    channels = values.shape[-1] if values.ndim > 1 else 1
    step = max(1, CHUNK_BYTES // max(1, values[:1].size * 8))
    count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
    with closing(StatusLine(show=isinstance(values, LazyArray), after_seconds=2)) as line:
        for start in range(0, len(values), step):
            # One pass, since a file may take minutes to read: squares about each chunk's own mean are put together.
            chunk = np.asarray(values[start : start + step]).reshape(-1, channels)
            own = chunk.sum(axis=0, dtype=np.float64) / len(chunk)
            centred = chunk - own[None, :]
            apart, total = own - mean, count + len(chunk)
            squares += np.einsum("nc,nc->c", centred, centred) + apart**2 * (count * len(chunk) / total)
            mean += apart * (len(chunk) / total)
            count = total
            line(f"computing mean and deviation: {min(start + step, len(values)):,} of {len(values):,} rows")
    std = np.sqrt(squares / count)
    # Rounding leaves a constant channel of large numbers a tiny deviation, and dividing by it would be noise.
    std = np.where(std > 1e-7 * np.maximum(1e-30, np.abs(mean)), std, 1.0)
    mean, std = (one.astype(np.float32).astype(np.float64) for one in (mean, std))
    return {"mean": mean + offset, "std": std}


def standardize(batch: Any, fitted: Fitted, coding: Fitted) -> Any:
    """Prepare a batch: cast inputs to float32 and standardize them, and cast labels to int32.

    inputs <- (inputs + offset - mean) / std

    Args:
        batch: "inputs" [B, ..., C] ([B] for C = 1), and "targets", where there are any: an array or a dict of arrays.
        fitted: "mean" and "std" [C]; and "target", its "mean" and "std", where targets are standardized too.
        coding: What was done to the rows: for "inputs" the "offset" [C] that was subtracted from them, and the "fills"
            of their missing values; for "targets" the "mean" and "std" that they were standardized with.

    Returns:
        The batch; its other entries stay. Where targets are standardized, "units" tells how: "mean", "std" and "log" (1
        for a logarithm), each [B], which is what the mean absolute error needs.

    Example:
        >>> batch = {"inputs": np.array([[5], [1]], np.uint8), "targets": np.array([0, 1])}
        >>> standardize(batch, {"mean": (1.0,), "std": (2.0,)}, {})["inputs"].tolist()
        [[2.0], [0.0]]
    """
    inputs = refilled(jnp.asarray(batch["inputs"]), fitted, coding)
    mean = np.asarray(fitted["mean"], np.float64) - np.asarray(coding.get("inputs", {}).get("offset", 0.0), np.float64)
    # A reshape to the rank of the inputs, because rank promotion may be an error.
    shape = (1,) * (inputs.ndim - 1) + (-1,)
    mean = mean.astype(np.float32).reshape(shape)
    scale = (1 / np.asarray(fitted["std"], np.float32)).astype(np.float32).reshape(shape)
    batch = with_cast_targets({**batch, "inputs": (inputs.astype(jnp.float32) - mean) * scale})
    if "target" in fitted and not isinstance(batch.get("targets", {}), Mapping):
        target = fitted["target"]
        batch["targets"] = _rescaled(batch["targets"], coding["targets"], target)
        ones = jnp.ones(len(batch["targets"]), jnp.float32)
        batch["units"] = {key: ones * np.float32(target[key]) for key in ("mean", "std", "log")}
    return batch


def refit_standardized(data: Any) -> dict[str, Any]:
    """Fit what `standardize` needs to the training rows of a data set; inputs of 0 and 1 for names stay as they are.

    Args:
        data: `Data` whose `prepare` is `standardize`.

    Returns:
        "mean" and "std"; "target" where targets are standardized too, and "columns" where missing values were filled.
    """
    train, own = data.splits["train"], data.fitted
    values, offset = data.arrays["inputs"], np.asarray(data.coding.get("inputs", {}).get("offset", 0.0), np.float64)
    rows, columns = first_rows(values, train.stop), refit_fills(data)
    if columns is not None:
        rows = refilled(rows, {"columns": columns}, data.coding, np)
    found: dict[str, Any] = dict(fit(rows, offset))
    # As inputs of names are left: no other mean and deviation is exactly that.
    kept = (np.asarray(own["mean"]) == 0) & (np.asarray(own["std"]) == 1)
    found = {"mean": np.where(kept, 0.0, found["mean"]), "std": np.where(kept, 1.0, found["std"])}
    if columns is not None:
        found["columns"] = columns
    if "target" in own:
        target, before = fit(data.arrays["targets"][train.start : train.stop]), data.coding["targets"]
        mean = before["mean"] + before["std"] * target["mean"].item()
        found["target"] = {**own["target"], "mean": mean, "std": before["std"] * target["std"].item()}
    return found


def with_cast_targets(batch: Any) -> Any:
    """Return the batch with integer targets as int32, and others as they are.

    Args:
        batch: Batch with "targets" or without: an array of any shape, or a dict of arrays.

    Returns:
        A new dict. Compact labels (uint8) would wrap around in arithmetic.

    Example:
        >>> with_cast_targets({"targets": {"digit": jnp.array([3], jnp.uint8)}})["targets"]["digit"].dtype
        dtype('int32')
    """

    def cast(targets: Any) -> Any:
        targets = jnp.asarray(targets)
        return targets.astype(jnp.int32) if jnp.issubdtype(targets.dtype, jnp.integer) else targets

    return {**batch, "targets": jax.tree.map(cast, batch["targets"])} if "targets" in batch else dict(batch)


def _rescaled(targets: Any, own: Fitted, other: Fitted) -> Any:
    scale, shift = own["std"] / other["std"], (own["mean"] - other["mean"]) / other["std"]
    return targets if (scale, shift) == (1.0, 0.0) else targets * np.float32(scale) + np.float32(shift)
