import numpy as np
import pytest

from accelnet.data.splits import random_order, split_rows
from accelnet.errors import UserError


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
