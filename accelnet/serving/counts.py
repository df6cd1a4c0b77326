"""What a server counts, as Prometheus reads it. All of it happens in the event loop."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = tuple(1 << power for power in range(11))


class Histogram:
    """Count values by size.

    Args:
        bounds: Upper bounds of the buckets, rising.

    Example:
        >>> found = Histogram((1.0, 2.0))
        >>> found.add(1.5)
        >>> found.lines("seconds", "Time")[-4:]
        ['seconds_bucket{le="2"} 1', 'seconds_bucket{le="+Inf"} 1', 'seconds_sum 1.5', 'seconds_count 1']
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, text: str) -> list[str]:
        """Return the lines of the exposition format."""
        found, total = [f"# HELP {name} {text}", f"# TYPE {name} histogram"], 0
        for bound, count in zip((*(f"{one:g}" for one in self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self._sum:.9g}", f"{name}_count {total}"]


class Counts:
    """Count requests, batches and times.

    Args:
        waiting_rows: Function that returns the number of rows that wait.

    Example:
        >>> counts = Counts(lambda: 0)
        >>> counts.request("/predict", 200, 0.003)
        >>> 'accelnet_requests_total{route="/predict",status="200"} 1' in counts.text(True)
        True
    """

    def __init__(self, waiting_rows: Callable[[], int]) -> None:
        self._waiting_rows = waiting_rows
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds, self._batches = Histogram(_SECONDS), Histogram(_ROWS)

    def request(self, route: str, status: int, seconds: float | None) -> None:
        """Count a request.

        Args:
            route: Its path, or "other".
            status: Status code of the answer; 499 where the client has gone.
            seconds: Time that a prediction took; None of other requests.
        """
        self._requests[route, status] += 1
        if seconds is not None:
            self._seconds.add(seconds)

    def batch(self, rows: int) -> None:
        """Count a batch."""
        self._batches.add(rows)

    def text(self, ready: bool) -> str:
        """Return all counts in Prometheus's text format."""
        requests = (
            f'accelnet_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self._requests.items())
        )
        lines = [
            "# HELP accelnet_ready Whether all shapes are compiled",
            "# TYPE accelnet_ready gauge",
            f"accelnet_ready {int(ready)}",
            "# HELP accelnet_queue_rows Rows that wait for a batch",
            "# TYPE accelnet_queue_rows gauge",
            f"accelnet_queue_rows {self._waiting_rows()}",
            "# HELP accelnet_requests_total Requests by route and status; 499: the client has gone",
            "# TYPE accelnet_requests_total counter",
            *requests,
            *self._seconds.lines("accelnet_request_seconds", "Time from the request to its prediction"),
            *self._batches.lines("accelnet_batch_rows", "Rows of each batch"),
        ]
        return "\n".join(lines) + "\n"
