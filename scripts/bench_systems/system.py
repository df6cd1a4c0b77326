"""What a system of the benchmark offers, and the loops that most of them share."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class System(NamedTuple):
    """Do a case's work.

    Attributes:
        losses: number of steps -> the loss of each, before its update, from the initial weights on. Of a population
            each is a list.
        run: number of steps -> (seconds, steps taken), from wherever the weights are.
    """

    losses: Callable[[int], list[Any]]
    run: Callable[[int], tuple[float, int]]


def timed(step: Callable[[int], Any], wait: Callable[[Any], Any] = lambda _: None) -> Callable[..., tuple[float, int]]:
    """Return the `run` of a system that does one step per call.

    Args:
        step: number of the step -> whatever `wait` takes. The first call's number is 0, and it counts on.
        wait: returns when the last step is done.
    """
    done = 0

    def run(num_steps: int) -> tuple[float, int]:
        nonlocal done
        start, result = time.perf_counter(), None
        for number in range(done, done + num_steps):
            result = step(number)
        wait(result)
        done += num_steps
        return time.perf_counter() - start, num_steps

    return run
