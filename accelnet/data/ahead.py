"""Reading an iterator ahead of time, in a thread."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from accelnet.errors import UserError, user_code

_END = object()


class Ahead:
    """Iterate in a thread, at most `size` items ahead. The iterator's exceptions are raised by `next`.

    Args:
        iterator: The user's iterator.
        what: Role of it in messages.
        size: Number of items that wait, at least 1.
        timeout_seconds: Time that an item may take.
        of: Function of the number of an item and the item, whose answer waits in its place; it is called before the
            iterator is asked for the next item, which may overwrite this one.

    Raises:
        UserError: by `next`, if an item takes longer.

    Example:
        >>> list(Ahead(iter("abc"), "the stream", size=1, timeout_seconds=60, of=lambda number, item: item * number))
        ['', 'b', 'cc']
    """

    def __init__(
        self,
        iterator: Iterator[Any],
        what: str,
        *,
        size: int,
        timeout_seconds: float,
        of: Callable[[int, Any], Any],
    ) -> None:
        self._what, self._timeout, self._of = what, timeout_seconds, of
        self._items: queue.Queue[Any] = queue.Queue(size)
        self._stopped = threading.Event()
        # A daemon, so that an iterator that never answers does not keep the process.
        threading.Thread(target=self._run, args=(iterator,), name="accelnet-stream", daemon=True).start()

    def _run(self, iterator: Iterator[Any]) -> None:
        try:
            with user_code(self._what):
                for number, item in enumerate(iterator):
                    if not self._put(self._of(number, item)):
                        break
                else:
                    self._put(_END)
        except BaseException as error:  # noqa: BLE001, it is raised where the item was wanted
            self._put(error)
        finally:
            # A generator frees what it holds; one that fails at that has given all it had.
            with contextlib.suppress(Exception):
                getattr(iterator, "close", lambda: None)()

    def _put(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> "Ahead":
        return self

    def __next__(self) -> Any:
        try:
            item = self._items.get(timeout=self._timeout)
        except queue.Empty:
            raise UserError(
                f"{self._what} gave no batch for {self._timeout:g} s: see what it waits for, or allow more "
                "timeout_seconds"
            ) from None
        if item is _END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop reading."""
        self._stopped.set()
