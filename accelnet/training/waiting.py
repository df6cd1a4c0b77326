"""What a run waited for: the line that says so, and what helps."""

from accelnet.data.dataset import Data

# Below these nobody would do anything about it.
_LEAST_SHARE = 0.05
_LEAST_SECONDS = 2.0


def waited_for_data(data: Data, *, input_seconds: float, train_seconds: float) -> str | None:
    """Say how long training waited for data, and what helps.

    Args:
        data: Data set of the run.
        input_seconds: Time that the device had nothing to compute because batches were not there.
        train_seconds: Time that it computed.

    Returns:
        One line; None below 2 seconds or 5 % of both.

    Example:
        >>> import accelnet as an
        >>> waited_for_data(an.data.xor(), input_seconds=30.0, train_seconds=60.0)
        "training waited 30 s for data, 33 % of its time: on_device=True keeps all of 'xor' (48 bytes) on the device"
    """
    share = input_seconds / max(1e-9, input_seconds + train_seconds)
    if input_seconds < _LEAST_SECONDS or share < _LEAST_SHARE:
        return None
    return f"training waited {input_seconds:.0f} s for data, {100 * share:.0f} % of its time: {_advice(data)}"


def _advice(data: Data) -> str:
    if data.stream is not None:
        return "the stream is slower than the model: let it prepare batches in processes, or ahead of time"
    if not data.is_lazy:
        return f"on_device=True keeps all of {data.name!r} ({data.nbytes:,} bytes) on the device"
    if data.is_stored:
        return f"copy {data.name!r} to a faster disk, or, if memory has room for {data.nbytes:,} bytes, give arrays"
    return "read rows in processes (workers=), keep what was decoded (cache=True), or make the source faster"
