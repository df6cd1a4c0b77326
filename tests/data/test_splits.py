import datetime as dt
import re

import numpy as np
import pytest

import accelnet as an
from accelnet.data import from_arrays
from accelnet.data.row_order import random_order
from accelnet.data.splits import split_rows
from accelnet.errors import UserError

pytestmark = pytest.mark.usefixtures("no_pictures")


def stratified_order(labels, seed):
    parts = {"train": {"targets": labels, "row": np.arange(len(labels))}}
    arrays, _ = split_rows(parts, seed, name="toy", stratify=True, validation=0, test=0)
    assert np.array_equal(arrays["targets"], labels[arrays["row"]])
    return arrays["row"]


def cut(num_rows, **fractions):
    parts = {"train": {"targets": np.zeros(num_rows)}}
    return split_rows(parts, 0, name="toy", stratify=False, **fractions)[1]


def test_random_order_is_a_permutation_that_only_the_seed_decides():
    orders = [random_order(1000, seed) for seed in range(4)]
    for seed, order in enumerate(orders):
        assert np.array_equal(np.sort(order), np.arange(1000))
        assert np.array_equal(order, random_order(1000, seed))
    assert len({order.tobytes() for order in orders}) == 4


def test_random_order_is_the_same_with_every_numpy():
    assert random_order(8, seed=7).tolist() == [6, 3, 4, 0, 2, 7, 5, 1]


def test_every_first_row_is_about_equally_frequent():
    counts = np.bincount([random_order(5, seed)[0] for seed in range(1000)], minlength=5)
    # 200 expected, with a standard deviation of 13.
    assert counts.min() > 140
    assert counts.max() < 260


@pytest.mark.parametrize("seed", range(3))
def test_every_stretch_of_a_stratified_order_has_the_classes_in_proportion(seed):
    labels = np.repeat([0, 1, 5], [600, 300, 100])
    order = stratified_order(labels, seed)
    assert np.array_equal(np.sort(order), np.arange(1000))
    for start, stop in [(0, 700), (700, 800), (800, 1000), (123, 456)]:
        counts = np.bincount(labels[order[start:stop]], minlength=6)[[0, 1, 5]]
        assert np.abs(counts - (stop - start) * np.array([0.6, 0.3, 0.1])).max() <= 1


def test_one_large_class_keeps_its_share_beside_many_small_ones():
    labels = np.concatenate([np.zeros(100, int), np.repeat(np.arange(1, 51), 2)])
    order = stratified_order(labels, 0)
    assert np.array_equal(np.sort(order), np.arange(200))
    assert np.count_nonzero(labels[order[160:]] == 0) == 20
    assert not np.array_equal(order, stratified_order(labels, 1))


@pytest.mark.parametrize("seed", range(20))
def test_no_number_of_first_rows_is_off_by_more_than_a_row_in_any_class(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, rng.integers(3, 200), rng.integers(2, 60))
    counts[0] = 500
    labels = np.repeat(np.arange(len(counts)), counts)
    order = stratified_order(labels, seed)
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    first = np.cumsum(labels[order][:, None] == np.arange(len(counts)), axis=0)
    due = np.arange(1, len(labels) + 1)[:, None] * counts / len(labels)
    assert np.abs(first - due).max() <= 1 + 1e-9  # rounding of the shares


def test_stratified_order_is_random_within_the_classes():
    labels = np.zeros(100, int)
    assert not np.array_equal(stratified_order(labels, 0), stratified_order(labels, 1))
    assert not np.array_equal(stratified_order(labels, 0), np.arange(100))


@pytest.mark.parametrize(("rows", "validation", "test"), [(10, 0.1, 0.2), (7, 0.3, 0.3), (3, 0.01, 0.01), (5, 0, 0)])
def test_cut_covers_every_row_once(rows, validation, test):
    splits = cut(rows, validation=validation, test=test)
    assert sorted(row for split in splits.values() for row in split) == list(range(rows))
    assert ("validation" in splits, "test" in splits) == (validation > 0, test > 0)
    assert all(len(split) > 0 for split in splits.values())


@pytest.mark.parametrize(
    ("rows", "validation", "test", "message"),
    [
        (10, -0.1, 0, "validation is -0.1"),
        (10, 0, 1.5, "test is 1.5"),
        (2, 0.1, 0.1, "leave none"),
        (9, 0.5, 0.6, "none"),
    ],
)
def test_impossible_fractions_are_refused(rows, validation, test, message):
    with pytest.raises(UserError, match=message):
        cut(rows, validation=validation, test=test)


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="seed is -1"):
        random_order(3, -1)


def named(data, split):
    rows = data.splits[split]
    return data.arrays["inputs"][rows.start : rows.stop].ravel().astype(int).tolist()


def make(num_rows, targets=None, **settings):
    """Return data whose inputs are the numbers of the rows."""
    targets = np.zeros(num_rows) if targets is None else targets
    return from_arrays(np.arange(num_rows)[:, None], targets, **settings)


@pytest.mark.parametrize("seed", range(3))
def test_no_group_is_in_two_splits_and_shares_are_as_near_as_groups_allow(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 600)
    data = make(600, groups=[f"patient {group}" for group in groups], validation=0.2, test=0.1, seed=seed)
    found = {split: set(groups[named(data, split)]) for split in data.splits}
    assert sum(map(len, found.values())) == len(set(groups)) == len(set.union(*found.values()))
    # A group has 10 rows or so; the greedy choice ends within half a group of each share.
    for split, due in (("train", 420), ("validation", 120), ("test", 60)):
        assert abs(len(data.splits[split]) - due) <= 10, split
    other = make(600, groups=groups, validation=0.2, test=0.1, seed=seed + 10)
    assert set(groups[named(other, "test")]) != found["test"]


def test_every_split_gets_a_group_even_where_groups_are_larger_than_its_share():
    groups = np.repeat(np.arange(4), [50, 30, 15, 5])
    data = make(100, groups=groups, validation=0.1, test=0.01)
    assert {split: len(set(groups[named(data, split)])) for split in data.splits} == {
        "train": 2, "validation": 1, "test": 1
    }  # fmt: skip
    with pytest.raises(UserError, match="2 groups cannot make 3 splits"):
        make(100, groups=np.arange(100) % 2)


def test_groups_may_be_stratified():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 5)
    labels = np.repeat(rng.random(80) < 0.25, 5).astype(int)
    data = make(400, labels, groups=groups, num_classes=2, validation=0.25, test=0)
    share = data.arrays["targets"][data.splits["validation"].start :].mean()
    # A group more or less of 20 is 5 %.
    assert abs(share - labels.mean()) <= 0.05
    assert not set(groups[named(data, "train")]) & set(groups[named(data, "validation")])


def test_the_latest_rows_are_the_test_and_rows_of_one_time_stay_together():
    days = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5))
    for time in (
        days,
        days + 0.5,
        np.datetime64("2020-01-01") + days.astype("timedelta64[D]"),
        [days_to_date(day) for day in days.tolist()],
    ):
        data = make(200, time=time, validation=0.19, test=0.11)
        train, validation, test = (set(days[named(data, split)]) for split in ("train", "validation", "test"))
        assert max(train) < min(validation) and max(validation) < min(test)
        assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [140, 40, 20]


def days_to_date(day):
    return dt.date(2020, 1, 1) + dt.timedelta(days=day)


def test_few_times_leave_every_split_a_row_or_are_refused():
    assert sorted(map(len, make(30, time=np.arange(30) // 10).splits.values())) == [10, 10, 10]
    with pytest.raises(UserError, match="time has 2 different values, expected at least one for each of train"):
        make(30, time=np.arange(30) // 15)


def test_rows_are_split_by_indices_masks_ranges_slices_and_names():
    mask = np.zeros(10, bool)
    mask[[7, 3]] = True
    data = make(10, splits={"ood": mask, "train": [9, 0, 1], "validation": range(4, 6), "far": slice(8, 9)})
    found = {split: named(data, split) for split in data.splits}
    assert found == {"train": [9, 0, 1], "ood": [3, 7], "validation": [4, 5], "far": [8]}
    names = np.array(["", "train", "train", "test", "", "train", "ood", "train", "train", "test"])
    for given in (names, names.tolist(), names.astype(object)):
        data = make(10, splits=given)
        assert {split: named(data, split) for split in data.splits} == {
            "train": [1, 2, 5, 7, 8], "test": [3, 9], "ood": [6]
        }  # fmt: skip


def test_splits_of_other_names_are_evaluated_at_the_end_and_by_evaluate(tmp_path):
    data = make(40, np.arange(40) % 2, num_classes=2, splits={"train": range(20), "ood": range(20, 40)})
    experiment = an.Experiment(
        data=data, model=lambda rngs: an.models.MLP(1, (), 2, rngs=rngs), optimizer=an.optim.sgd(0.1), batch_size=10,
        objective=an.objectives.softmax_cross_entropy(), steps=2,
    )  # fmt: skip
    run = an.fit(experiment, workdir=tmp_path, progress=False)
    assert set(run.metrics["ood"]) == {"loss", "accuracy"}
    assert an.evaluate(experiment, tmp_path).metrics["ood"] == run.metrics["ood"]


def test_stratify_takes_any_classes():
    kind = np.repeat(["a", "b", "c"], [60, 30, 10])
    for data in (make(100, stratify=kind), make(100, np.repeat([2, 0, 1], [60, 30, 10]), stratify="targets")):
        for split in ("validation", "test"):
            assert sorted(kind[named(data, split)]) == ["a"] * 6 + ["b"] * 3 + ["c"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": {"train": [0, 1], "test": [1, 2]}}, "row 1 is in the splits 'train' and 'test'"),
        ({"splits": {"train": [0, 0]}}, "splits['train'] has the row 0 twice"),
        ({"splits": {"train": [0, 10]}}, "splits['train'] has the row 10, expected 0 to 9"),
        ({"splits": {"train": [0, -1]}}, "splits['train'] has the row -1, expected 0 to 9"),
        ({"splits": {"train": [0], "test": []}}, "splits['test'] has no rows"),
        ({"splits": {"train": [0.5]}}, "splits['train'] is an array of float64 [1], expected indices"),
        ({"splits": {"train": np.ones(9, bool)}}, "is a mask of 9 rows, expected one of the 10 rows"),
        ({"splits": {"train": 3}}, "splits['train'] is 3, expected indices"),
        ({"splits": {"test": [0]}}, "splits name 'test', expected 'train' among them"),
        ({"splits": {"train": [0], "val": [1]}}, "has a split 'val'; did you mean 'validation'?"),
        ({"splits": ["train"] * 9}, "splits has 9 values, expected one for each of the 10 rows"),
        ({"splits": [1] * 10}, "splits holds int64 values, expected a name of a split"),
        ({"splits": {"train": [0]}, "validation": 0.1}, "validation is 0.1, but splits name the rows"),
        ({"splits": {"train": [0]}, "time": range(10)}, "splits decides about the rows, and time would too"),
        ({"splits": {"train": [0]}, "stratify": range(10)}, "splits decides about the rows, and stratify would too"),
        ({"time": range(10), "groups": range(10)}, "time decides about the rows, and groups would too"),
        (
            {"splits": {"train": [0, 1], "test": [2]}, "groups": ["a", "b", "a"] + ["c"] * 7},
            "group 'a' has rows in the splits 'train' and 'test' (row 2)",
        ),
        ({"groups": np.arange(9)}, "groups has 9 values, expected one for each of the 10 rows"),
        ({"groups": [1.0] * 9 + [np.nan]}, "groups is nan in row 9: give every row a value"),
        ({"groups": ["a"] * 9 + [None]}, "groups is None in row 9, and 'a' in row 0"),
        ({"groups": "patient"}, "groups is 'patient', expected one value for each of the 10 rows"),
        ({"groups": np.zeros((10, 2))}, "groups has shape [10, 2], expected one for each"),
        ({"time": ["2020"] * 10}, "time holds text, such as '2020', expected numbers or times"),
        ({"time": [np.datetime64("NaT", "s")] * 10}, "time is NaT in row 0: give every row a value"),
        ({"time": [dt.datetime(2020, 1, 1, tzinfo=dt.UTC)] * 10}, "time holds times with a time zone"),
        ({"stratify": np.arange(10) / 3}, "stratify holds float64 values that are no classes"),
        ({"splits": {"train": [0], "test": [1]}, "test": (np.zeros((1, 1)), np.zeros(1))}, "given as arrays too"),
    ],
)
def test_splits_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make(10, **settings)


def test_rows_named_and_rows_given_go_together():
    data = make(10, splits={"train": range(5), "ood": [9]}, test=(np.array([[50], [51]]), np.zeros(2)))
    assert {split: named(data, split) for split in data.splits} == {
        "train": [0, 1, 2, 3, 4], "ood": [9], "test": [50, 51]
    }  # fmt: skip


def test_an_array_of_a_file_may_say_how_it_is_split(tmp_path):
    where = np.repeat(["train", "test", "ood"], [6, 2, 2])
    arrays = {"inputs": np.arange(10)[:, None], "targets": np.zeros(10), "where": where, "who": np.arange(10) % 5}
    np.savez(tmp_path / "a.npz", **arrays)
    data = an.data.npz(tmp_path / "a.npz", splits="where")
    assert named(data, "ood") == [8, 9]
    data = an.data.npz(tmp_path / "a.npz", groups="who", test=0.2, validation=0)
    assert len({row % 5 for row in named(data, "test")}) == 1
    with pytest.raises(UserError, match="expected one 'wo'; did you mean 'who'"):
        an.data.npz(tmp_path / "a.npz", groups="wo")


def test_rows_of_a_file_are_split_without_being_read_whole(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60.0, dtype=np.float32)[:, None])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = from_arrays(mapped, np.zeros(60), groups=np.arange(60) // 10, validation=0.2, test=0.2)
    assert data.is_lazy
    test = data.take(np.arange(data.splits["test"].start, data.splits["test"].stop))["inputs"]
    assert len({int(row) // 10 for row in test.ravel()}) == 1 and len(test) == 10


def test_what_claims_more_rows_than_can_be_put_in_order_is_refused_at_once():
    class Claims:
        def __len__(self):
            return 10**9

        def __getitem__(self, row):
            return {"x": np.zeros(2, np.float32), "y": row % 2}

    with pytest.raises(an.UserError, match=r"1,000,000,000 rows: a random order.*as ranges"):
        an.data.from_source(Claims(), inputs="x", targets="y", num_classes=2)
