"""What is being done now, for whoever waits."""

import time

from accelnet.terminal import Stream, visible

# Back to the start of the line, and wipe it.
_RENEW = "\r\033[K"


class Progress:
    """One line on standard error that is renewed; where that is no terminal, a line at most every 2 seconds."""

    def __init__(self, show: bool) -> None:
        self._show = show
        self._stream = Stream("stderr")
        self._is_terminal = show and self._stream.isatty()
        self._start = self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        line = f"{now - self._start:4.0f} s  {visible(text)}"
        if self._is_terminal:
            self._write(_RENEW + line.replace("\n", " ")[: self._stream.columns])
        elif self._show and now - self._last >= 2:
            self._last = now
            self._write(line + "\n")

    def close(self) -> None:
        """Wipe the line."""
        if self._is_terminal:
            self._write(_RENEW)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
