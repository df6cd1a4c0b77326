"""Data that is read by rows: stored arrays, views of rows, sources of users."""

import os
import threading

import numpy as np
import pytest

import accelnet as an
from accelnet.data.row_views import FieldRows, JoinedRows, ReorderedRows, first_rows, joined, reordered
from accelnet.data.rows import LazyArray, lazy_arrays, read
from accelnet.data.stored import StoredRows
from accelnet.errors import UserCodeError, UserError
from tests.data.conftest import experiment, params

pytestmark = pytest.mark.usefixtures("no_pictures")

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
Y = np.arange(60) % 3


class OnDisk:
    """An array that counts what is read, and cannot be read whole."""

    def __init__(self, values, by_list=True):
        self.values, self.by_list, self.rows_read = values, by_list, 0
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, index):
        if not self.by_list and not isinstance(index, int):
            raise TypeError("only whole numbers")
        part = self.values[index]
        self.rows_read = max(self.rows_read, len(np.atleast_2d(part)))
        return part

    def __array__(self, *_):
        raise AssertionError("read whole")


class Rows:
    """A user's source of dicts."""

    def __init__(self, length=60, change=lambda row, item: item):
        self.length, self.change = length, change

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        return self.change(row, {"x": X[row], "y": int(Y[row])})


class Many(Rows):
    """A source that reads many rows at once, as data sets of Hugging Face do."""

    def __getitems__(self, rows):
        return [self[row] for row in rows]


def source(change=lambda row, item: item, **settings):
    settings = {"inputs": "x", "targets": "y", "num_classes": 3, **settings}
    return an.data.from_source(Rows(change=change), **settings)


def at(row, **values):
    """Change one row of a source."""
    return lambda index, item: {**item, **values} if index == row else item


def whole(data):
    return data.take(np.arange(data.num_rows))


def mapped(tmp_path, values, name="x"):
    np.save(tmp_path / f"{name}.npy", values)
    return np.load(tmp_path / f"{name}.npy", mmap_mode="r")


@pytest.mark.parametrize("by_list", [True, False])
def test_a_stored_array_is_read_by_the_rows_that_are_wanted(by_list):
    array = OnDisk(X, by_list)
    data = an.data.from_arrays(array, Y, num_classes=3, normalize=False)
    array.rows_read = 0
    batch = data.take(np.array([7, 0, 7]))
    memory = an.data.from_arrays(X, Y, num_classes=3, normalize=False)
    assert np.array_equal(batch["inputs"], memory.arrays["inputs"][[7, 0, 7]])
    assert array.rows_read <= 2


@pytest.mark.parametrize("kind", ["memmap", "array", "float64", "bytes swapped"])
def test_rows_of_the_disk_are_those_of_memory_with_the_same_statistics(tmp_path, kind):
    values = {"float64": X.astype(np.float64), "bytes swapped": X.astype(">f4")}.get(kind, X)
    stored = OnDisk(values) if kind == "array" else mapped(tmp_path, values)
    memory, disk = (
        an.data.from_arrays(x, Y, num_classes=3, seed=4, validation=(x[:5], Y[:5])) for x in (values, stored)
    )
    assert isinstance(disk.arrays["inputs"], LazyArray) and disk.is_lazy and not memory.is_lazy
    assert disk.fitted == memory.fitted and disk.splits == memory.splits
    for key, array in whole(memory).items():
        assert np.array_equal(array, whole(disk)[key]) and array.dtype == whole(disk)[key].dtype
    assert disk.fingerprint() == memory.fingerprint()


@pytest.mark.slow
def test_training_from_the_disk_and_from_a_source_is_that_from_memory_to_the_bit(tmp_path):
    stored = an.data.from_arrays(mapped(tmp_path, X), mapped(tmp_path, Y, "y"), num_classes=3)
    memory = an.data.from_arrays(X, Y, num_classes=3)
    first, second = (an.fit(experiment(data)) for data in (memory, stored))
    assert all(np.array_equal(a, b) for a, b in zip(params(first), params(second), strict=True))
    # A source is not stratified: the rows of from_arrays without classes.
    rows = [(x, y) for x, y in zip(X, Y, strict=True)]
    plain = an.data.from_arrays(X, Y)
    plain = an.data.Data("arrays", plain.arrays, plain.splits, plain.prepare, fitted=plain.fitted, coding=plain.coding)
    first, second = (an.fit(experiment(data)) for data in (plain, an.data.from_source(rows)))
    assert all(np.array_equal(a, b) for a, b in zip(params(first), params(second), strict=True))


def test_a_lazy_array_cannot_be_read_whole_by_accident():
    array = lazy_arrays(StoredRows({"a": X}))["a"]
    with pytest.raises(UserError, match="was to be read whole: take some rows"):
        np.asarray(array)
    assert np.array_equal(array[:], X) and np.array_equal(array[-1:], X[-1:]) and np.array_equal(array[5], X[5])


def test_an_array_whose_rows_are_not_as_its_shape_says_is_named():
    array = OnDisk(X)
    array.shape = (60, 4)
    with pytest.raises(UserError, match=r"read as float32 \[60, 3\], expected float32 \[60, 4\]"):
        an.data.Data("d", {"inputs": array, "targets": Y}, {"train": range(60)})


def test_an_array_that_cannot_be_read_is_one_message_and_its_text_is_classes():
    class Closed(OnDisk):
        def __getitem__(self, index):
            if self.rows_read is None:
                raise OSError("identifier is not of specified type")  # as h5py does
            return super().__getitem__(index)

    array = Closed(X)
    names = OnDisk(np.array([b"no", b"yes", b"no"] * 20, object))  # of variable length, as h5py reads it
    data = an.data.from_arrays(array, names)
    assert data.info["class_names"] == ("no", "yes")
    array.rows_read = None
    with pytest.raises(UserError, match=r"inputs: rows \[\d+\] cannot be read: identifier .* is their file open"):
        data.take(np.array([3]))


def test_fields_of_the_same_rows_are_read_once():
    calls = []

    class Counted(StoredRows):
        def read(self, rows):
            calls.append(len(rows))
            return super().read(rows)

    arrays = reordered(lazy_arrays(Counted({"a": X, "b": Y})), np.arange(60)[::-1])
    batch = read({"x": arrays["a"], "y": {"z": arrays["b"]}}, np.array([0, 59]))
    assert calls == [2] and np.array_equal(batch["x"], X[[59, 0]]) and np.array_equal(batch["y"]["z"], Y[[59, 0]])


def test_views_of_rows_read_what_indexing_would():
    rows, rng = StoredRows({"a": X}), np.random.default_rng(1)
    order = rng.permutation(60)[:40]
    view = ReorderedRows(ReorderedRows(rows, order), np.arange(40)[::2])
    some = rng.integers(0, 20, 9)
    assert np.array_equal(view.read(some)["a"], X[order[::2]][some])
    three = JoinedRows([rows, view, rows])
    some = rng.integers(0, len(three), 50)
    assert np.array_equal(three.read(some)["a"], np.concatenate([X, X[order[::2]], X])[some])
    assert three.read(np.arange(0))["a"].shape == (0, 3)
    assert three.place(61) == rows.place(int(order[2]))
    assert np.array_equal(joined([X, LazyArray(rows, ("a",))])[59:61], X[[59, 0]])
    assert FieldRows(LazyArray(rows, ("a",)), np.dtype(np.float64)).read(np.array([3]))[""].dtype == np.float64


def test_statistics_of_what_takes_computing_read_a_bounded_part(monkeypatch):
    monkeypatch.setattr("accelnet.data.row_views.SAMPLED_BYTES", 5 * X[0].nbytes)
    array = source().arrays["inputs"]
    assert np.array_equal(first_rows(array, 41), array[np.array([0, 10, 20, 30, 40])])
    monkeypatch.setattr("accelnet.data.row_views.SAMPLED_ROWS", 3)
    assert np.array_equal(first_rows(array, 41), array[np.array([0, 20, 40])])
    stored = first_rows(LazyArray(StoredRows({"a": X}), ("a",)), 41)
    assert isinstance(stored, LazyArray) and np.array_equal(stored[:], X[:41])


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


@pytest.mark.parametrize("view", ["whole", "part", "every other", "backwards", "transposed", "copy on write", "2-D"])
def test_rows_of_a_memory_map_are_those_of_its_view(tmp_path, view):
    np.save(tmp_path / "v.npy", np.arange(480.0).reshape(60, 4, 2))
    array = np.load(tmp_path / "v.npy", mmap_mode="c" if view == "copy on write" else "r")
    array = {
        "part": array[7:50],
        "every other": array[1::2],
        "backwards": array[::-1],
        "transposed": array.transpose(1, 0, 2),
        "2-D": array[:, 1],
    }.get(view, array)
    if view == "copy on write":
        array[3] = 7
    rows = np.random.default_rng(0).integers(0, len(array), 40)
    assert np.array_equal(StoredRows({"a": array}).read(rows)["a"], np.asarray(array)[rows])


def test_a_file_that_is_replaced_or_cut_short_is_not_misread(tmp_path):
    array = mapped(tmp_path, X)
    (tmp_path / "x.npy").rename(tmp_path / "moved.npy")
    np.save(tmp_path / "x.npy", X + 1)
    rows = StoredRows({"a": array})
    assert np.array_equal(rows.read(np.arange(5))["a"], X[:5])
    rows = StoredRows({"a": mapped(tmp_path, X, "y")})
    os.truncate(tmp_path / "y.npy", 500)
    with pytest.raises(UserError, match=r"y\.npy has become shorter: it ends before row"):
        rows.read(np.arange(60))


def test_a_source_is_divided_as_arrays_are():
    rows = list(zip(X, Y.tolist(), strict=True))
    by_class = an.data.from_source(rows, num_classes=3, stratify="targets")
    arrays = an.data.from_arrays(X, Y, num_classes=3)
    assert by_class.splits == arrays.splits
    assert np.array_equal(whole(by_class)["inputs"], arrays.arrays["inputs"])
    named = an.data.from_source(rows, splits={"train": range(10, 60), "ood": [3, 1]}, normalize=False)
    assert named.splits == {"train": range(50), "ood": range(50, 52)}
    assert np.array_equal(whole(named)["inputs"][50:], X[[3, 1]])
    grouped = an.data.from_source(rows, groups=np.arange(60) // 6, normalize=False)
    owners = {tuple(x): n // 6 for n, x in enumerate(X)}
    parts = [whole(grouped)["inputs"][span.start : span.stop] for span in grouped.splits.values()]
    found = [{owners[tuple(x)] for x in part} for part in parts]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])


def lazy(kind, tmp_path):
    """Data of one kind that is read by rows."""
    if kind == "memory map":
        return an.data.from_arrays(mapped(tmp_path, X), Y, num_classes=3)
    return source()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory map", "source"])
def test_eight_devices_read_what_one_reads(kind, tmp_path):
    one, eight = (
        an.fit(experiment(lazy(kind, tmp_path), optimizer=an.optim.sgd(0.1)), mesh=mesh, progress=False)
        for mesh in (None, "data=8")
    )
    for a, b in zip(params(one), params(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_source_is_read_in_processes_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = list(zip(X, Y.tolist(), strict=True))
    plain = whole(an.data.from_source(rows, num_classes=3))
    data = an.data.from_source(rows, num_classes=3, workers=2, cache=True)
    for _ in range(2):
        for key, values in whole(data).items():
            assert np.array_equal(values, plain[key])
    assert list(tmp_path.rglob("*.rows"))
    # What was kept is not asked for again.
    counted = Rows()
    data = an.data.from_source(counted, inputs="x", targets="y", num_classes=3, cache=10**6)
    whole(data)
    counted.change = lambda row, item: pytest.fail("read again")
    assert np.array_equal(np.sort(whole(data)["inputs"], axis=0), np.sort(X, axis=0))
