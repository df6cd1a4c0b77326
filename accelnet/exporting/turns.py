"""Latency of several runtimes, measured in turns: other work on the machine slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_ROUNDS = 5
_SECONDS = 0.05  # of each runtime in a round
_MOST_CALLS = 200


def in_turns(timed: Mapping[str, Callable[[int], list[float]]]) -> dict[str, float]:
    """Measure the median time of a call of each runtime.

    Args:
        timed: By name, functions of a number of calls that return the seconds of each.

    Returns:
        Seconds by name, from arrays on the host to arrays on the host.

    Example:
        >>> found = in_turns({"nothing": timer(lambda: None)})
        >>> found["nothing"] < 1
        True
    """
    calls = {}
    for name, run in timed.items():
        run(2)  # warm
        calls[name] = int(np.clip(_SECONDS / max(np.median(run(3)), 1e-9), 1, _MOST_CALLS))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(_ROUNDS):
        for name, run in timed.items():
            seconds[name] += run(calls[name])
    return {name: float(np.median(found)) for name, found in seconds.items()}


def timer(call: Callable[[], Any]) -> Callable[[int], list[float]]:
    """Return the function of a number of calls that makes them and returns the seconds of each.

    Example:
        >>> len(timer(lambda: None)(3))
        3
    """

    def run(calls: int) -> list[float]:
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds

    return run
