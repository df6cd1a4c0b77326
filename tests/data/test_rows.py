"""Data that is read by rows: stored arrays, views of rows, sources of users."""

import os

import chex
import numpy as np
import pytest

import accelnet as an
from accelnet.data.row_views import FieldRows, JoinedRows, ReorderedRows, first_rows, joined, reordered
from accelnet.data.rows import LazyArray, lazy_arrays, read
from accelnet.data.stored import StoredRows
from accelnet.errors import UserError
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


def source(change=lambda row, item: item, **settings):
    settings = {"inputs": "x", "targets": "y", "num_classes": 3, **settings}
    return an.data.from_source(Rows(change=change), **settings)


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
    chex.assert_shape(three.read(np.arange(0))["a"], (0, 3))
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
