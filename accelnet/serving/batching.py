"""The queue: whatever came while the last batch was computed is the next batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from accelnet.serving.limits import Limits, Refused
from accelnet.serving.sizes import Answers, Encoded
from accelnet.serving.tables import TableRows, Tables

_FULL = "as many rows wait as the server takes on: try again in a moment"


@dataclass(eq=False)
class _Piece:
    """Rows of one request that are computed in one batch."""

    rows: TableRows | Encoded
    answers: asyncio.Future[Answers]


class Batches:
    """Compute the rows of many requests in batches, in one thread of its own.

    Everything but the computing happens in the event loop, so that nothing needs a lock.

    Args:
        sizes: What computes a batch.
        limits: Limits of the server.
        told: Function that is called with the number of rows of each batch.
    """

    def __init__(self, sizes: Tables, limits: Limits, told: Callable[[int], object]) -> None:
        self._sizes, self._limits, self._told = sizes, limits, told
        self._queue: deque[_Piece] = deque()
        self._running = False
        self.thread = ThreadPoolExecutor(1, "accelnet-predictions")
        self.waiting_rows = 0

    async def answer(self, rows: TableRows | Encoded) -> Answers:
        """Compute rows.

        Args:
            rows: The rows, as of `Sizes.padded`, or `TableRows`.

        Returns:
            Arrays [B, ...] by name.

        Raises:
            Refused: with 413 if there are more rows than may ever wait, with 503 if too many wait now, with 504 if the
                time ends before there is an answer, and with 422 if rows of a table are not what the model takes.
        """
        count, most = len(rows), self._limits.queue_rows
        if count > most:
            raise Refused(413, f"the request has {count} rows, expected {most} at most: send them in parts")
        if self.waiting_rows + count > most:
            raise Refused(503, _FULL, {"retry-after": "1"})
        loop, size = asyncio.get_running_loop(), self._sizes.rows[-1]
        pieces = [_Piece(rows.part(at, at + size), loop.create_future()) for at in range(0, count, size)]
        self._queue.extend(pieces)
        self.waiting_rows += count
        if not self._running:
            self._running = True
            loop.call_soon(self._start)  # after the requests that are at hand already
        try:
            async with asyncio.timeout(self._limits.seconds):
                if len(pieces) == 1:
                    return await pieces[0].answers
                found = await asyncio.gather(*(piece.answers for piece in pieces))
        except TimeoutError:
            self._give_up(pieces)
            raise Refused(504, f"there was no answer within {self._limits.seconds:g} seconds: try again") from None
        except BaseException:
            self._give_up(pieces)
            raise
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _give_up(self, pieces: list[_Piece]) -> None:
        for piece in pieces:
            piece.answers.cancel()
            if piece in self._queue:
                self._queue.remove(piece)
                self.waiting_rows -= len(piece.rows)

    def _start(self) -> None:
        batch = self._take()
        self._running = bool(batch)
        if batch:
            self._told(sum(len(piece.rows) for piece in batch))
            loop = asyncio.get_running_loop()
            loop.run_in_executor(self.thread, self._computed, batch).add_done_callback(
                lambda done: self._deliver(batch, done.result())
            )

    def _take(self) -> list[_Piece]:
        """Take the first piece, and those that can be computed with it."""
        batch: list[_Piece] = []
        rest: deque[_Piece] = deque()
        free = self._sizes.rows[-1]
        for piece in self._queue:
            if len(piece.rows) <= free and (not batch or piece.rows.padded == batch[0].rows.padded):
                batch.append(piece)
                free -= len(piece.rows)
                self.waiting_rows -= len(piece.rows)
            else:
                rest.append(piece)
        self._queue = rest
        return batch

    def _computed(self, batch: list[_Piece]) -> Sequence[Answers | Exception]:
        """Compute a batch; if that fails, each piece alone, so that none suffers from another one."""
        try:
            return self._sizes.compute([piece.rows for piece in batch])
        except Exception as error:  # noqa: BLE001, whatever a model or a device does
            if len(batch) == 1:
                return [error]
            return [found for piece in batch for found in self._computed([piece])]

    def _deliver(self, batch: list[_Piece], found: Sequence[Answers | Exception]) -> None:
        for piece, answers in zip(batch, found, strict=True):
            if piece.answers.done():
                continue
            if isinstance(answers, Exception):
                piece.answers.set_exception(answers)
            else:
                piece.answers.set_result(answers)
        self._start()
