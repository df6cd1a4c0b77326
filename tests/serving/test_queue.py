"""The queue alone, with a model that is slow, fails, and can be looked at."""

import asyncio
import threading

import numpy as np
import pytest

from accelnet.serving.batching import Batches
from accelnet.serving.limits import Limits, Refused
from accelnet.serving.sizes import Encoded


class Slow:
    """Compute the square of each row, once it may; -1 is an error."""

    rows = (1, 2, 4)

    def __init__(self):
        self.may, self.batches = threading.Event(), []

    def compute(self, parts):
        self.batches.append([part.arrays[0].tolist() for part in parts])
        self.may.wait(10)
        values = np.concatenate([part.arrays[0] for part in parts])
        if -1 in values:
            raise ZeroDivisionError("of this row")
        return [{"square": part.arrays[0] ** 2} for part in parts]


def rows(*values, steps=0):
    return Encoded([np.array(values)], steps, steps)


def queued(seconds=10.0):
    sizes, told = Slow(), []
    return sizes, Batches(sizes, Limits(batch_rows=4, queue_rows=9, seconds=seconds), told.append), told


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError


def test_what_came_while_a_batch_was_computed_is_the_next_batch():
    async def play():
        sizes, batches, told = queued()
        first = asyncio.create_task(batches.answer(rows(1)))
        await until(lambda: sizes.batches)
        others = [rows(2), rows(3, steps=8), rows(4, 5), rows(6, steps=8), rows(7)]
        tasks = [asyncio.create_task(batches.answer(one)) for one in others]
        await until(lambda: batches.waiting_rows == 6)
        sizes.may.set()
        found = [(await task)["square"].tolist() for task in (first, *tasks)]
        whole = (await batches.answer(rows(*range(9))))["square"]
        return sizes.batches, found, whole.tolist(), told, batches.waiting_rows

    batches, found, whole, told, waiting = asyncio.run(play())
    # In the order in which they came, and those of other numbers of steps after that.
    assert batches == [[[1]], [[2], [4, 5], [7]], [[3], [6]], [[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8]]]
    assert found == [[1], [4], [9], [16, 25], [36], [49]] and whole == [one**2 for one in range(9)]
    assert told == [1, 4, 2, 4, 4, 1] and waiting == 0


def test_a_row_that_fails_leaves_the_others_of_its_batch_unharmed():
    async def play():
        sizes, batches, _ = queued()
        first = asyncio.create_task(batches.answer(rows(1)))
        await until(lambda: sizes.batches)
        tasks = [asyncio.create_task(batches.answer(rows(value))) for value in (2, -1, 3)]
        await until(lambda: batches.waiting_rows == 3)
        sizes.may.set()
        return await asyncio.gather(first, *tasks, return_exceptions=True)

    found = asyncio.run(play())
    assert isinstance(found[2], ZeroDivisionError)
    assert [one["square"].tolist() for one in (found[0], found[1], found[3])] == [[1], [4], [9]]


def test_a_full_queue_and_a_late_answer_are_refused_and_their_rows_are_not_computed():
    async def play():
        sizes, batches, _ = queued(seconds=0.3)
        tasks = [asyncio.create_task(batches.answer(rows(1)))]
        await until(lambda: sizes.batches)
        tasks += [asyncio.create_task(batches.answer(rows(2, 3, 4))) for _ in range(3)]
        await until(lambda: batches.waiting_rows == 9)
        for refused, status in ((rows(5), 503), (rows(*range(10)), 413)):
            with pytest.raises(Refused) as error:
                await batches.answer(refused)
            assert error.value.status == status
        late = await asyncio.gather(*tasks, return_exceptions=True)
        assert [one.status for one in late] == [504] * 4
        sizes.may.set()
        found = (await batches.answer(rows(6)))["square"].tolist()
        return found, sizes.batches, batches.waiting_rows

    # After the wait nobody waits any more but the last.
    assert asyncio.run(play()) == ([36], [[[1]], [[6]]], 0)
