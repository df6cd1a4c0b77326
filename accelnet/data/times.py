"""Dates, times and durations to seconds."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def seconds_of(array: Any) -> np.ndarray:
    """Return the values of an Arrow array of dates, times, times of the day or durations in seconds.

    Args:
        array: Arrow array [N] of such a type. Times with a zone are taken in UTC, and times without one for UTC.

    Returns:
        float64 [N]: seconds since 1970, since midnight, or of the duration; NaN where missing.

    Example:
        >>> import pyarrow as pa
        >>> seconds_of(pa.array([1500, None], pa.timestamp("ms")))
        array([1.5, nan])
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_date(array.type):
        array = array.cast(pa.timestamp("ms"))
    counts = (array.cast(pa.int32()) if types.is_time32(array.type) else array).cast(pa.int64())
    missing = counts.is_null().to_numpy(zero_copy_only=False)
    counts = counts.fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(missing, np.nan, counts / _PER_SECOND[array.type.unit])


def parse_times(texts: Sequence[str]) -> np.ndarray | None:
    """Return times that are written as ISO 8601 says in seconds since 1970.

    Args:
        texts: Dates, or dates and times; without a zone they are taken for UTC.

    Returns:
        float64 [N], or None unless all are such times, all with a zone or all without.

    Example:
        >>> parse_times(["1970-01-02", "1970-01-01 00:00:01.5"])
        array([8.64e+04, 1.50e+00])
    """
    import pyarrow as pa

    for zone in (None, "UTC"):
        with contextlib.suppress(pa.ArrowInvalid):
            return seconds_of(pa.array(texts, pa.string()).cast(pa.timestamp("us", zone)))
    return None
