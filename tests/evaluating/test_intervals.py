"""Intervals hold the truth as often as they say."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as reference

from accelnet.evaluating.classes import describe_classes
from accelnet.evaluating.pixels import describe_pixels
from accelnet.evaluating.shares import mean_share, wilson
from tests.evaluating.test_statistics import held, names


def test_the_interval_of_a_recall_near_1_holds_the_truth_as_often_as_it_says():
    share = held(lambda rng: mean_share((rng.random(36) < 0.98).astype(float), np.ones(36)), 0.98)
    assert share == pytest.approx(0.965, abs=0.02)  # 49 % by a bootstrap; a share of 36 cannot meet 95 % exactly


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_the_interval_of_a_weighted_share_holds_the_truth(p):
    def make(rng):
        return mean_share((rng.random(100) < p).astype(float), rng.choice([0.5, 1.0, 2.0], 100))

    assert held(make, p) == pytest.approx(0.95, abs=0.03)


def test_the_interval_of_shares_of_shares_knows_that_they_spread_less():
    # 40 windows of 50 symbols each, all independent: as good as 2,000 examples.
    def make(rng):
        return mean_share((rng.random((40, 50)) < 0.9).mean(axis=1), np.ones(40))

    assert held(make, 0.9) == pytest.approx(0.95, abs=0.03)
    found = make(np.random.default_rng(0))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.9 * 0.1 / 2000), rel=0.35)


@pytest.mark.parametrize(("num_examples", "right"), [(60, 0.97), (200, 0.9)])
def test_the_interval_of_macro_f1_holds_the_truth(num_examples, right):
    def make(rng):
        labels = rng.integers(0, 3, num_examples)
        taken = np.where(rng.random(num_examples) < right, labels, (labels + rng.integers(1, 3, num_examples)) % 3)
        found = describe_classes(np.eye(3)[taken], labels, np.ones(num_examples), names(3))
        return found["metrics"]["f1_macro"]

    # Classes are alike, and so are mistakes: F1 of many examples is the share that is right.
    assert held(make, right, trials=100) >= 0.9


@pytest.mark.parametrize(("right", "count"), [(0, 5), (41, 50), (35, 36), (36, 36)])
def test_wilsons_interval_is_that_of_scipy(right, count):
    other = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    low, high = wilson(np.array(right / count), np.array(float(count)))
    assert (float(low), float(high)) == pytest.approx((other.low, other.high), abs=1e-12)


def test_pixels_are_told_by_class_with_intervals_over_examples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (50, 4, 5))
    predicted = np.where(rng.random(labels.shape) < 0.8, labels, rng.integers(0, 3, labels.shape))
    counted = rng.random(labels.shape) < 0.9
    found = describe_pixels(predicted, labels, counted, np.ones(50), names(3))
    true, called = labels[counted], predicted[counted]
    assert found["confusion"] == reference.confusion_matrix(true, called).tolist()
    expected = {"f1_macro": reference.f1_score, "iou_macro": reference.jaccard_score}
    for name, function in expected.items():
        one = found["metrics"][name]
        assert one["value"] == pytest.approx(function(true, called, average="macro"))
        assert one["low"] < one["value"] < one["high"]
    assert found["classes"][2]["recall"]["value"] == pytest.approx(
        reference.recall_score(true, called, average=None)[2]
    )
