"""Comparisons with the best: what Hsu's theorem promises, on noise whose truth is known."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

import accelnet as an
from accelnet.choosing.statistics import compete, dunnett


@pytest.mark.parametrize(("comparisons", "freedom"), [(1, 10), (3, 10), (9, 20), (15, 60)])
def test_the_critical_points_are_those_of_the_multivariate_t(comparisons, freedom):
    correlation: Any = 0.5 * (np.eye(comparisons) + 1.0)
    t = stats.multivariate_t(shape=correlation, df=freedom, seed=0)
    # Of 100,000 draws: a standard error of 0.0007.
    assert t.cdf(np.full(comparisons, dunnett(comparisons, freedom))) == pytest.approx(0.95, abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.5, 3.0])
def test_the_best_setting_is_among_the_contenders_in_95_of_100_repetitions(gap):
    rng, hits, num = np.random.default_rng(1), 0, 300
    truth = np.array([0.0, gap, gap, 2 * gap, 2 * gap, 4 * gap])
    for _ in range(num):
        seeds = rng.normal(size=4)  # a seed does the same to all settings: no noise for the comparison
        hits += compete(truth[:, None] + seeds + rng.normal(size=(6, 4))).contenders[0]
    assert hits / num > 0.93  # 95 % less two standard errors of 300 repetitions


def test_clearly_worse_settings_are_told_from_the_best():
    rng = np.random.default_rng(2)
    values = np.array([0.0, 0.1, 5.0, 6.0])[:, None] + rng.normal(size=(4, 4)) + 100 * rng.normal(size=4)
    assert compete(values).contenders.tolist() == [True, True, False, False]


def test_settings_that_are_not_finite_lose():
    values = np.array([[1.0, 1.1], [np.nan, 0.1], [np.inf, np.inf], [1.2, 1.0]])
    contest = compete(values)
    assert contest.contenders.tolist() == [True, False, False, True] and contest.best == 0


def test_one_seed_and_no_finite_setting_are_refused():
    with pytest.raises(an.UserError, match="needs at least 2"):
        compete(np.zeros((3, 1)))
    with pytest.raises(an.UserError, match="no setting has finite values"):
        compete(np.full((3, 2), np.nan))


@pytest.mark.slow
def test_with_different_numbers_of_seeds_the_best_is_kept_as_often():
    rng, hits, num = np.random.default_rng(3), 0, 300
    truth = np.array([0.0, 0.5, 0.5, 1.0, 4.0, 4.0])
    for _ in range(num):
        hits += compete(
            [mean + rng.normal(size=size) for mean, size in zip(truth, (3, 3, 2, 1, 1, 1), strict=True)]
        ).contenders[0]
    assert hits / num > 0.93


def test_a_single_seed_is_told_from_the_best_by_the_spread_of_others():
    contest = compete([np.array([0.0, 0.1, -0.1]), np.array([0.1, 0.2]), np.array([0.15]), np.array([9.0])])
    assert contest.contenders.tolist() == [True, True, True, False]
    assert contest.high[3] - contest.means[3] == pytest.approx((contest.high[0] - contest.means[0]) * np.sqrt(3))


def test_without_a_second_seed_of_any_finite_setting_nothing_is_told():
    contest = compete([np.array([0.0]), np.array([9.0]), np.array([np.nan, np.nan])])
    assert contest.contenders.tolist() == [True, True, False] and contest.high[0] == np.inf
