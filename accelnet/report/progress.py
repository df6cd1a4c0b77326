"""What is being done now, for whoever waits."""

import os
import sys
import time


class Progress:
    """One line on standard error that is renewed; where that is no terminal, a line at most every 2 seconds."""

    def __init__(self, show: bool) -> None:
        self._show = show
        self._is_terminal = show and sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self._is_terminal:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 80
            print(f"\r\033[K{now - self._start:4.0f} s  {text}"[: columns + 4], end="", file=sys.stderr, flush=True)
        elif self._show and now - self._last >= 2:
            self._last = now
            print(f"{now - self._start:4.0f} s  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Wipe the line."""
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
