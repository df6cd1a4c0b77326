"""Claims of a difference: seldom where there is none, surely where there is a clear one."""

import numpy as np
import pytest
import scipy.stats

import accelnet as an
from accelnet.choosing.paired import (
    ALPHA,
    compare_paired,
    holm,
    least_seeds,
    mean_interval,
    median_interval,
    sign_flip_p,
)
from accelnet.choosing.target import steps_to

NOISES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed": lambda rng, size: rng.exponential(size=size),
    "heavy": lambda rng, size: rng.standard_t(2, size=size),
    "coarse": lambda rng, size: rng.binomial(180, 0.97, size=size) / 180,
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("num_candidates", [2, 4])
def test_identical_twins_show_no_difference_in_95_of_100_repetitions(noise, num_candidates):
    rng, quiet = np.random.default_rng(0), 0
    for _ in range(100):
        values = NOISES[noise](rng, (num_candidates, 12))
        ps = [sign_flip_p(values[a] - values[b]) for a in range(num_candidates) for b in range(a)]
        quiet += min(holm(ps)) > ALPHA
    assert quiet >= 95


def test_a_difference_of_one_percent_is_found_with_20_seeds():
    # Differences vary by 1.0 points from seed to seed; scripts/check_compare.py asks the same of real trainings.
    rng, found = np.random.default_rng(0), 0
    for _ in range(30):
        seeds = rng.normal(0.97, 0.004, 20)
        good, bad = seeds + rng.normal(0, 0.007, 20), seeds - 0.01 + rng.normal(0, 0.007, 20)
        (one,) = compare_paired({"bad": bad, "good": good}, lower_is_better=False)
        found += one.shown and one.first == "good"
    assert found >= 24


def test_equal_values_show_nothing_and_have_an_interval_of_no_width():
    values = np.random.default_rng(0).normal(size=12)
    (one,) = compare_paired({"a": values, "b": values.copy()}, lower_is_better=True)
    assert (one.difference, one.low, one.high, one.p, one.words) == (0, 0, 0, 1, "no difference shown")


def test_the_test_is_that_of_scipy_exact_and_drawn():
    for count, tolerance in ((10, 1e-12), (18, 0.1)):
        differences = np.random.default_rng(count).normal(0.5, 1.0, count)
        reference = scipy.stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=1 << 18, vectorized=True, rng=0
        ).pvalue
        assert sign_flip_p(differences) == pytest.approx(reference, rel=tolerance)


def test_pairing_sees_through_what_seeds_do_to_all():
    rng = np.random.default_rng(0)
    seeds, noise = rng.normal(size=12), 0.01 * rng.normal(size=12)
    (one,) = compare_paired({"a": seeds, "b": seeds + 0.05 + noise}, lower_is_better=True)
    assert one.shown and one.first == "a" and one.low < -0.05 < one.high < 0


def test_several_comparisons_need_more_than_one():
    assert holm([0.004, 0.004, 0.004]) == pytest.approx([0.012] * 3)
    assert holm([0.2, 0.001]) == pytest.approx([0.2, 0.002])
    assert least_seeds(2) == 7 and 2 / 2**7 <= ALPHA < 2 / 2**6
    with pytest.raises(an.UserError, match="6 seeds cannot show any difference between 2 candidates: give at least 7"):
        compare_paired({"a": np.zeros(6), "b": np.ones(6)}, lower_is_better=True)
    with pytest.raises(an.UserError, match="expected at least two"):
        compare_paired({"a": np.zeros(12)}, lower_is_better=True)


@pytest.mark.parametrize("num_seeds", [2, 5, 7, 10, 20])
def test_intervals_of_means_hold_the_truth_as_often_as_they_say(num_seeds):
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        low, high = mean_interval(rng.normal(size=num_seeds))
        held += low <= 0 <= high
    assert held / 1000 == pytest.approx(0.95, abs=0.025)  # BCa: 0.79 of 5, 0.91 of 20


def test_the_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(0).exponential(size=9)
    other = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.98)
    assert mean_interval(values, 0.98) == pytest.approx((other.low, other.high))
    assert mean_interval([0.1] * 7) == (pytest.approx(0.1),) * 2
    assert mean_interval([1.0]) == (-np.inf, np.inf)


@pytest.mark.parametrize("num_seeds", [6, 7, 10, 12, 20])
def test_intervals_of_medians_hold_the_truth_at_least_as_often_as_they_say(num_seeds):
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        low, high = median_interval(rng.exponential(size=num_seeds))
        held += low <= np.log(2) <= high
    assert 0.935 <= held / 1000 <= 0.995  # ends are values: the next ones further in would be below 0.95
    reference = scipy.stats.quantile_test(np.arange(num_seeds), p=0.5).confidence_interval(0.95)
    assert median_interval(np.arange(num_seeds)) == (reference.low, reference.high)


def test_a_median_that_may_never_be_reached_has_an_end_at_infinity():
    assert median_interval(np.array([1.0, 2.0, np.inf, np.inf, 3.0]))[1] == np.inf


def test_the_step_at_which_a_target_is_reached_lies_in_proportion_between_evaluations():
    steps, values = (
        np.array([0, 10, 20]),
        np.array([[0.0, 0.9, 0.0, -np.inf], [0.5, 1.0, 0.1, 0.6], [1.0, 1.0, 0.2, 1]]),
    )
    assert steps_to(steps, values, 0.75, lower=False).tolist() == [15.0, 0.0, np.inf, 10 + 10 * 0.15 / 0.4]
    assert steps_to(steps, values, 0.55, lower=False)[3] == 10  # from an infinite value there is no proportion
