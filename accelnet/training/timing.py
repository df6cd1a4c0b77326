"""The clock of a run: what its time was spent on, over all processes that it took."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# What is measured, and what it is called; "lost" is what a crashed process did after its last checkpoint.
SPENT_ON = {
    "train": "training", "compile": "compiling", "input": "waiting for data", "eval": "evaluating",
    "checkpoint": "saving", "lost": "lost to restarts",
}  # fmt: skip
TIMING_FIELDS = ("total_seconds", *(f"{name}_seconds" for name in (*SPENT_ON, "other")), "examples_per_second")


@dataclass
class Timing:
    """Where the time of a run went, in seconds. What is measured does not overlap.

    Attributes:
        seconds: Time by what it was spent on, over all processes if the run was resumed.
        before: Total of the earlier processes.
        started: Clock's reading at the start of this process.

    Example:
        >>> timing = Timing()
        >>> timing.measure("compile", sum, [1, 2])
        3
        >>> account = timing.account()
        >>> abs(sum(account.values()) - timing.total) < 0.1
        True
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT_ON, 0.0))
    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def measure(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function and add its time."""
        start = time.perf_counter()
        result = function(*args)
        self.seconds[name] += time.perf_counter() - start
        return result

    def go_on(self, earlier: Mapping[str, float], lost: float) -> None:
        """Add the time of earlier processes.

        Args:
            earlier: `seconds` of the checkpoint that the run goes on from, and their "total"; empty without one.
            lost: Seconds that were recorded after it.
        """
        for name in self.seconds:
            self.seconds[name] += earlier.get(name, 0.0)
        self.seconds["lost"] += lost
        self.before += earlier.get("total", 0.0) + lost

    @property
    def total(self) -> float:
        """Seconds since the start, those of earlier processes included."""
        return self.before + time.perf_counter() - self.started

    def account(self) -> dict[str, float]:
        """Return the seconds by what they were spent on, with the rest as "other": together they are the total."""
        return {**self.seconds, "other": self.total - sum(self.seconds.values())}


def account_line(timing: Mapping[str, float]) -> str:
    """Say in one line where the time of a run went, the largest part first.

    Args:
        timing: "timing" of a result, with `TIMING_FIELDS`.

    Example:
        >>> timing = dict.fromkeys(TIMING_FIELDS, 0.0) | {"total_seconds": 80.0, "train_seconds": 60.0}
        >>> account_line(timing | {"compile_seconds": 15.0, "other_seconds": 5.0})
        'time 80.0 s: 75 % training, 19 % compiling, 6 % other'
    """
    total = timing["total_seconds"]
    parts = [
        (timing[f"{name}_seconds"] / max(total, 1e-9), words) for name, words in (SPENT_ON | {"other": "other"}).items()
    ]
    told = [f"{100 * share:.0f} % {told}" for share, told in sorted(parts, reverse=True) if share >= 0.005]
    return f"time {total:.1f} s: {', '.join(told)}"
