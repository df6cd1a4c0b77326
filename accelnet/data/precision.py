"""Numbers become float32 without losing what tells them apart: Unix times, coordinates, identifiers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from accelnet.data.row_views import FieldRows
from accelnet.data.rows import LazyArray
from accelnet.errors import UserError
from accelnet.wording import shown

# Digits below this are rounding of the computation that made the values: float64 has 2**-52.
_NOISE = 2.0**-44
# Of 4,096 normal values, about one equals another one in float32 by chance.
_LOST = 0.01
_SAMPLED_ROWS = 4096
_SAMPLED_VALUES = 1 << 22  # sorting them takes 0.3 s


def offsets_of(values: np.ndarray, where: str, names: Sequence[str] = ()) -> np.ndarray:
    """Return what to subtract from each channel in float64, so that float32 tells its values apart.

    It is 0 for a channel whose values float32 tells apart as they are, and its median for one such as times within
    an hour in seconds since 1970, of which float32 would leave 29. Of many rows, 4,096 evenly
    spaced ones are looked at.

    Args:
        values: Numbers [N, ..., C], or [N], which counts as one channel.
        where: Name of the values in the message.
        names: Names of the channels, for the message.

    Returns:
        float64 [C] ([1] for [N]).

    Raises:
        UserError: if float32 cannot tell the values apart whatever is subtracted.

    Example:
        >>> offsets_of(np.array([[1.7e9, 1.0], [1.7e9 + 1, 2.0]]), "inputs").tolist()
        [1700000001.0, 0.0]
    """
    channels = values.shape[-1] if values.ndim > 1 else 1
    offsets = np.zeros(channels)
    if values.dtype.kind not in "iuf" or values.dtype.itemsize <= 4 or not values.size:
        return offsets
    sample = _sorted_sample(values, channels)
    _, wanting = _merged(sample, offsets)
    offsets[wanting] = sample[len(sample) // 2, wanting]
    _check_sample(sample, offsets, where, names)
    return offsets


def check_kept_apart(values: np.ndarray, dtype: np.dtype, where: str) -> None:
    """Raise an error if values do not fit into a smaller type, or if values that differ would become equal there.

    Args:
        values: Numbers [N, ...].
        dtype: Type that they are to get. Types as large as theirs are always good.
        where: Name of the values in the message.

    Raises:
        UserError: if so.

    Example:
        >>> check_kept_apart(np.array([1.7e12, 1.7e12 + 1]), np.dtype(np.float32), "inputs")
        Traceback (most recent call last):
        accelnet.errors.UserError: inputs: float32 cannot tell 1700000000000.0 from 1700000000001.0: subtract an...
    """
    if dtype.itemsize >= values.dtype.itemsize or values.dtype.kind not in "iuf" or not values.size:
        return
    low, high = values.min(), values.max()
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    if np.isfinite([low, high]).all() and (low < limits.min or high > limits.max):
        advice = "renumber them, or give quantities as floats" if dtype.kind in "iu" else "rescale them"
        raise UserError(f"{where} range from {low} to {high}, which {dtype.name} cannot hold: {advice}")
    if dtype.kind in "iu":
        return
    channels = values.shape[-1] if values.ndim > 1 else 1
    _check_sample(_sorted_sample(values, channels), np.zeros(channels), where)


def compact_dtype(dtype: np.dtype) -> np.dtype:
    """Return the type of the device for a type of NumPy's: float64 becomes float32, larger integers int32.

    Example:
        >>> compact_dtype(np.dtype(np.uint32)), compact_dtype(np.dtype(np.uint8))
        (dtype('int32'), dtype('uint8'))
    """
    if dtype.kind in "iu" and (dtype.itemsize == 8 or dtype == np.uint32):
        return np.dtype(np.int32)
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def compact(array: Any, where: str) -> Any:
    """Return numbers in the type that `compact_dtype` says; raise UserError unless it tells them apart.

    A lazy array stays one; 4,096 of its rows are looked at.
    """
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} have dtype {array.dtype}, expected numbers or booleans")
    dtype = compact_dtype(array.dtype)
    if isinstance(array, LazyArray):
        if dtype == array.dtype:
            return array
        check_kept_apart(array[np.linspace(0, len(array) - 1, _SAMPLED_ROWS).astype(int)], dtype, where)
        return LazyArray(FieldRows(array, dtype), ("",))
    check_kept_apart(array, dtype, where)
    return array.astype(dtype, copy=False)


def _sorted_sample(values: np.ndarray, channels: int) -> np.ndarray:
    flat = values.reshape(-1, channels)
    most = int(np.clip(_SAMPLED_VALUES // channels, 64, _SAMPLED_ROWS))
    if len(flat) > most:
        flat = flat[np.linspace(0, len(flat) - 1, most).astype(np.int64)]
    return np.sort(flat.astype(np.float64), axis=0)


def _merged(ordered: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which neighbours that differ become equal in float32, and the channels where more do than by chance."""
    size = np.maximum(np.abs(ordered[1:]), np.abs(ordered[:-1]))
    apart = np.diff(ordered, axis=0) > _NOISE * size
    with np.errstate(over="ignore"):
        single = (ordered - offsets[None, :]).astype(np.float32)
    merged = apart & (single[1:] == single[:-1])
    return merged, merged.sum(axis=0) / np.maximum(1, apart.sum(axis=0)) > _LOST


def _check_sample(ordered: np.ndarray, offsets: np.ndarray, where: str, names: Sequence[str] = ()) -> None:
    merged, wanting = _merged(ordered, offsets)
    if not wanting.any():
        return
    channel, channels = int(np.argmax(wanting)), len(wanting)
    column = f", column {channel}" if channels > 1 else ""
    low, high = ordered[int(np.argmax(merged[:, channel])) :, channel][:2].tolist()
    raise UserError(
        f"{where}{f', {shown(names[channel])}' if len(names) == channels else column}: float32 cannot tell {low!r} "
        f"from {high!r}: subtract an offset from them, rescale them, or round them if that does not matter"
    )
