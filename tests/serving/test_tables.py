"""Rows of tables that several clients sent are encoded together, and nobody's row changes what another one gets."""

import asyncio
import random

import numpy as np
import pytest

from accelnet.artifact.schema import encode
from accelnet.serving.batching import Batches
from accelnet.serving.limits import Limits, Refused
from accelnet.serving.sizes import Encoded
from accelnet.serving.tables import TableRows, Tables
from tests.serving.test_queue import Slow, until

COLUMNS = (
    {"name": "size", "kind": "number", "names": (), "fill": 2.0, "flag": True},
    {"name": "hue", "kind": "categories", "names": ("1", "1.5", "False", "True", "red"), "ignore": True},
    {"name": "rank", "kind": "positions", "names": ("1", "low", "high"), "fill": 0.0, "flag": True},
    {"name": "left", "kind": "boolean", "names": (), "fill": 0.5, "flag": True},
    {"name": "when", "kind": "time", "names": (), "fill": 0.0, "flag": True},
)
SCHEMA = {
    "inputs": {"dtype": "float64", "shape": ["batch", 13]}, "fitted": {"columns": COLUMNS}, "coding": {},
    "tokenizer": None,
}  # fmt: skip
GOOD = {"size": 4.5, "hue": "red", "rank": "low", "left": True, "when": "2024-03-31"}
VALUES = {
    "size": (1, 2.5, "3.5", "NA", None, float("nan"), 2**60, "much", True, float("inf")),
    "hue": (1, 1.0, 1.5, "1.0", " red ", "blue", True, None, "", "NA"),
    "rank": (1, 1.0, "low", "high", "1.0", None, "middle", False),
    "left": (True, 1, 0.0, "true", "0", None, 2, "yes"),
    "when": ("2024-03-31 12:00:00", 5, "7.5", None, "never", True),
}


class Squares(Slow):
    """Compute a sum of each encoded row in which every input has another weight."""

    def compute(self, parts):
        self.batches.append([len(part) for part in parts])
        return [{"sum": (part.arrays[0] * 2.0 ** np.arange(part.arrays[0].shape[1])).sum(axis=1)} for part in parts]


class Counted:
    """Encode rows, once they may be; -1 is an error of NumPy's."""

    def __init__(self):
        self.passes, self.begun, self.may = [], False, None

    def __call__(self, rows):
        self.begun = True
        if self.may is not None:
            self.may.wait(10)
        self.passes.append(len(rows))
        if any(row["size"] == -1 for row in rows):
            raise OverflowError("of NumPy")
        return encode(rows, SCHEMA)


def alone(rows):
    return Tables(Squares(), lambda rows: encode(rows, SCHEMA)).compute([TableRows(rows)])[0]


def test_rows_that_wait_are_encoded_in_one_pass_and_a_bad_one_is_refused_alone():
    async def play():
        sizes, counted = Squares(), Counted()
        counted.may = sizes.may
        batches = Batches(Tables(sizes, counted), Limits(queue_rows=40), lambda count: None)
        first = asyncio.create_task(batches.answer(TableRows([GOOD])))
        await until(lambda: counted.begun)
        good = [[GOOD | {"size": size}] for size in (1, 2)]
        tasks = [asyncio.create_task(batches.answer(TableRows(rows))) for rows in (*good, [GOOD, GOOD])]
        await until(lambda: batches.waiting_rows == 4)
        sizes.may.set()
        found = [(await task)["sum"].tolist() for task in (first, *tasks)]
        passes = counted.passes.copy()
        sizes.may.clear()
        second = asyncio.create_task(batches.answer(TableRows([GOOD])))
        await asyncio.sleep(0.05)
        bad = [[GOOD | {"size": -1}], [{"size": 1}]]
        tasks = [asyncio.create_task(batches.answer(TableRows(rows))) for rows in (good[0], *bad, good[1])]
        await until(lambda: batches.waiting_rows == 4)
        sizes.may.set()
        mixed = await asyncio.gather(second, *tasks, return_exceptions=True)
        return found, passes, sizes.batches, mixed

    found, passes, batches, mixed = asyncio.run(play())
    assert found == [
        alone(rows)["sum"].tolist() for rows in ([GOOD], [GOOD | {"size": 1}], [GOOD | {"size": 2}], [GOOD] * 2)
    ]
    assert passes == [1, 4]
    # The good ones of a batch with bad ones are still computed together.
    assert batches == [[1], [1, 1, 2], [1], [1, 1]]
    assert [type(one) for one in mixed] == [dict, dict, Refused, Refused, dict]
    assert (
        mixed[1]["sum"] == alone([GOOD | {"size": 1}])["sum"] and mixed[4]["sum"] == alone([GOOD | {"size": 2}])["sum"]
    )
    assert [one.status for one in mixed[2:4]] == [422, 422]
    assert "of NumPy" in str(mixed[2]) and "'hue'" in str(mixed[3])


@pytest.mark.parametrize("seed", range(20))
def test_what_a_row_becomes_does_not_depend_on_the_rows_that_others_send(seed):
    """Values of every type that JSON has, good and bad, in one batch: answers and messages are those of each alone."""
    rng = random.Random(seed)
    parts = [
        TableRows([
            {name: rng.choice([GOOD[name], rng.choice(values)]) for name, values in VALUES.items()}
            for _ in range(rng.choice([1, 1, 2]))
        ])
        for _ in range(12)
    ]  # fmt: skip
    together = Tables(Squares(), lambda rows: encode(rows, SCHEMA)).compute(parts)
    for part, found in zip(parts, together, strict=True):
        expected = alone(part.rows)
        if isinstance(expected, Refused):
            assert str(found) == str(expected)
        else:
            np.testing.assert_array_equal(found["sum"], expected["sum"])


def test_rows_that_are_encoded_already_stay_as_they_are():
    (found,) = Tables(Squares(), Counted()).compute([Encoded([np.ones((2, 3))], 0, 0)])
    assert found["sum"].tolist() == [7, 7]
