"""Rows of a source: what it may be, what is read of it, and what is wrong with it."""

import threading

import numpy as np
import pytest

import accelnet as an
from accelnet.errors import UserCodeError, UserError
from tests.data.conftest import experiment
from tests.data.test_rows import Rows, X, Y, source, whole


class Many(Rows):
    """A source that reads many rows at once, as data sets of Hugging Face do."""

    def __getitems__(self, rows):
        return [self[row] for row in rows]


def at(row, **values):
    """Change one row of a source."""
    return lambda index, item: {**item, **values} if index == row else item


@pytest.mark.parametrize("fields", [{"inputs": "x", "targets": "y"}, {"inputs": 0, "targets": 1}, {}])
def test_rows_may_be_dicts_or_tuples(fields):
    names = ("x", "y") if "x" in fields.values() else ("inputs", "targets")
    pairs = list(zip(X, Y, strict=True))
    rows = pairs if fields.get("inputs") == 0 else [dict(zip(names, pair, strict=True)) for pair in pairs]
    data = an.data.from_source(rows, num_classes=3, **fields)
    assert np.array_equal(np.sort(whole(data)["inputs"], axis=0), np.sort(X, axis=0))
    assert data.take(np.array([0]))["targets"].dtype == np.int32


def test_several_fields_become_the_arguments_of_the_model():
    rows = [{"a": x, "b": x[:1], "y": 1.5} for x in X]
    data = an.data.from_source(rows, inputs={"left": "a", "right": "b"}, targets="y")
    assert {key: array.shape for key, array in data.arrays["inputs"].items()} == {"left": (60, 3), "right": (60, 1)}
    assert an.data.from_source(rows, inputs=["a", "b"], targets="y").arrays["inputs"].keys() == {"a", "b"}


def test_numbers_of_every_kind_are_taken_as_they_are():
    """Those of NumPy and of Python, alone and in arrays, against `np.stack`."""
    kinds = [int, np.int64, np.uint8, np.int16, np.array, lambda y: np.array(y, np.int32)]
    floats = [float, np.float64, np.float32, int, lambda x: np.array(x, np.float16)]
    items = [(floats[row % 5](row), x.tolist(), kinds[row % 6](row)) for row, x in enumerate(X)]
    data = an.data.from_source(items, inputs={"a": 0, "b": 1}, targets=2, validation=0, test=0)
    batch, origin = whole(data), data.splits.origin
    assert np.array_equal(batch["inputs"]["a"], origin.astype(np.float32))
    assert np.array_equal(batch["inputs"]["b"], X[origin])
    assert batch["targets"].dtype == np.int32 and np.array_equal(batch["targets"], origin)
    for large in (2**31, -(2**31) - 1, np.int64(2**31), np.uint64(2**63)):
        wrong = [*items[:30], (0.0, X[0], large), *items[31:]]
        with pytest.raises(UserError, match=r"targets of row 30 .* which int32, the type of the first rows, cannot"):
            whole(an.data.from_source(wrong, inputs={"a": 0, "b": 1}, targets=2))


def test_many_rows_are_asked_for_at_once_where_a_source_can_do_that():
    calls = []

    class Batched(Rows):
        def __getitems__(self, indices):
            calls.append(indices)
            return [self[index] for index in indices]

    data = an.data.from_source(Batched(), inputs="x", targets="y", num_classes=3, normalize=False)
    calls.clear()
    data.take(np.array([4, 9, 2]))
    assert [len(one) for one in calls] == [3] and all(type(one) is int for one in calls[0])


def test_one_thread_at_a_time_reads_a_source():
    inside, most = [], []

    class Slow(Rows):
        def __getitem__(self, row):
            inside.append(row)
            most.append(len(inside))
            found = super().__getitem__(row)
            inside.remove(row)
            return found

    data = an.data.from_source(Slow(), inputs="x", targets="y", num_classes=3)
    threads = [threading.Thread(target=data.take, args=(np.arange(50),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_names_of_classes_come_from_the_source_or_the_call():
    class Feature:
        names = ("no", "yes", "maybe")

    rows = Rows()
    rows.features = {"y": Feature()}
    assert an.data.from_source(rows, inputs="x", targets="y").info["class_names"] == ("no", "yes", "maybe")
    named = [{"x": x, "y": "abc"[y]} for x, y in zip(X, Y, strict=True)]
    data = an.data.from_source(named, inputs="x", targets="y", class_names=["c", "b", "a"])
    labels, batch = {tuple(x): 2 - y for x, y in zip(X, Y, strict=True)}, whole(data)
    assert [labels[tuple(x)] for x in batch["inputs"]] == batch["targets"].tolist()
    assert data.decode(np.array([0, 2])).tolist() == ["c", "a"]
    with pytest.raises(UserError, match=r"targets of row 0 .* is the text 'a': give class_names"):
        an.data.from_source(named, inputs="x", targets="y")
    is_last = [(x, y == 2) for x, y in zip(X, Y, strict=True)]
    batch = whole(an.data.from_source(is_last, num_classes=2))
    assert batch["targets"].dtype == np.int32 and batch["targets"].sum() == 20
    assert whole(an.data.from_source(is_last))["targets"].dtype == bool


def test_held_out_rows_may_be_a_source_of_their_own():
    data = source(validation=[{"x": X[0] * 0, "y": 1}] * 4, test=0)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 60, "validation": 4}
    assert not data.take(np.arange(60, 64))["inputs"].any()
    with pytest.raises(UserError, match=r"validation: inputs are float32 \[2\], those to train on float32 \[3\]"):
        source(validation=[{"x": X[0][:2], "y": 1}] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at(41, x=X[0][:2]), r"inputs of row 41 of source 'source' has shape \[2\], those of the first rows \[3\]"),
        (at(41, x=X[0] * np.nan), r"inputs of row 41 of source 'source' is NaN or infinite"),
        (at(41, y=7), r"targets of row 41 .* is no label from 0 to 2"),
        (at(41, y=1.5), r"targets of row 41 .* is .*1.5.* of float64, which int32"),
        (at(41, y=2**40), r"targets of row 41 .* cannot hold"),
        (at(41, y="red"), r"targets of row 41 .* is the text 'red'"),
        (at(41, x=object()), r"inputs of row 41 .*expected numbers"),
        (lambda row, item: {"x": item["x"]} if row == 41 else item, r"row 41 .* is a dict with 'x', and targets"),
        (lambda row, item: None if row == 41 else item, r"row 41 .* is None"),
    ],
)
def test_a_row_unlike_the_first_ones_is_named(change, message):
    with pytest.raises(UserError, match=message):
        whole(source(change, normalize=False))
    with pytest.raises(UserError, match=message):
        an.fit(experiment(source(change, normalize=False, validation=0, test=0), on_device=False))


def test_a_bad_row_is_named_when_statistics_of_the_rows_are_computed():
    with pytest.raises(UserError, match=r"inputs of row 7 of source 'source' is NaN or infinite: remove or fill"):
        source(at(7, x=X[0] * np.nan), validation=0, test=0)
    with pytest.raises(UserError, match=r"inputs of row 50 of source 'source' is NaN or infinite"):
        source(at(50, x=np.full(3, 1e300)), validation=0, test=0)


def test_a_source_may_fill_the_same_buffer_with_every_row():
    class Buffered(Rows):
        def __init__(self):
            super().__init__()
            self.buffer = np.zeros((2, 3), np.float32)

        def __getitem__(self, row):
            self.buffer[0], self.buffer[1] = X[row], Y[row]
            return {"x": self.buffer[0], "y": self.buffer[1, 0]}

    rows = np.array([5, 3, 3, 59])
    data = an.data.from_source(Buffered(), inputs="x", targets="y", validation=0, test=0)
    read, origin = data.take(rows), data.splits.origin[rows]
    assert np.array_equal(read["inputs"], X[origin]) and np.array_equal(read["targets"], Y[origin])
    np.testing.assert_allclose(data.fitted["mean"], X.mean(axis=0), rtol=1e-5)


def test_a_source_whose_length_cannot_be_had_is_named():
    rows = Rows(length=-1)
    with pytest.raises((UserError, UserCodeError), match=r"source 'source', its __len__, failed"):
        an.data.from_source(rows, inputs="x", targets="y")


def test_a_source_that_lies_about_its_length_is_named():
    class Short(Rows):
        def __getitem__(self, row):
            if row >= 50:
                raise IndexError("no such row")
            return super().__getitem__(row)

    with pytest.raises(UserError, match=r"says that it has 60 rows, but has none at .*no such row"):
        whole(an.data.from_source(Short(), inputs="x", targets="y", num_classes=3, normalize=False))


def test_a_source_whose_length_changes_is_named():
    rows = Rows()
    data = an.data.from_source(rows, inputs="x", targets="y", num_classes=3)
    rows.length = 59
    with pytest.raises(UserError, match="had 60 rows when the data was made and has 59 now"):
        data.take(np.array([0]))


def test_an_exception_of_the_source_keeps_the_frames_of_the_user():
    def broken(row, item):
        return 1 / (row - 41)

    with pytest.raises(UserCodeError, match=r"source 'source', asked for row 41, failed(.|\n)*1 / \(row - 41\)"):
        whole(source(lambda row, item: {**item, "y": int(broken(row, item) > 2)}, normalize=False))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ({"x": X}, {}, "expected rows: give columns to accelnet.data.table"),
        (iter([1]), {}, "what can only be iterated over is for accelnet.data.from_batches"),
        (X, {}, "give arrays to from_arrays"),
        (7, {}, "expected an object with __len__ and __getitem__"),
        ([], {}, "has no rows"),
        ([(X[0][:0], 1)], {}, r"inputs of row 0 of source 'source' has shape \[0\], expected values"),
        ([{"x": X[0], "y": 1}], {"inputs": "X", "targets": "y"}, "is a dict with 'x', 'y', and inputs"),
        ([(X[0], 1)], {"inputs": 0, "targets": 2}, "is a tuple of 2, and targets is to be its field 2"),
        ([(X[0], 1)], {"inputs": 1.5}, "inputs is 1.5, expected the name or the position"),
        ([(X[0], 1)] * 9, {"class_names": ["a"], "num_classes": 2}, "num_classes is 2, but the classes are 'a'"),
        ([(X[0], 1)] * 9, {"validation": 1.5}, "validation"),
        ([(X[0], 0.5)] * 9, {"num_classes": 2}, "targets are float32, expected integers for num_classes=2"),
        ({"fit": Many(), "test": Many()}, {}, "holds the splits 'fit', 'test', expected .* give source..fit.., and"),
    ],
)
def test_what_is_no_source_is_refused_with_advice(rows, settings, message):
    with pytest.raises(UserError, match=message):
        an.data.from_source(rows, **settings)
