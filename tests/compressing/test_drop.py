"""How much worse a network is: intervals that hold as often as they say, and how many examples would decide."""

import numpy as np
import pytest

from accelnet import objectives
from accelnet.compressing.drop import mean_metric, paired_drop, resolution, tail_of
from accelnet.errors import UserError
from accelnet.objectives.metric import Loss
from accelnet.objectives.metrics import Accuracy

REPETITIONS = 400


def right_and_wrong(rng, examples, lost, gained):
    """Return of two models whether they are right: with these chances only the first, or only the second one is."""
    kind = rng.choice(4, examples, p=[lost, gained, 0.8 - lost, 0.2 - gained])
    return (kind == 0) | (kind == 2), (kind == 1) | (kind == 2)


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.01), (0.004, 0.0), (0.05, 0.05)])
def test_the_bounds_of_shares_are_too_low_as_seldom_as_they_say(lost, gained):
    rng, ones, low, failures = np.random.default_rng(0), np.ones(500), 0, 0
    for _ in range(REPETITIONS):
        first, second = right_and_wrong(rng, 500, lost, gained)
        found = paired_drop(Accuracy(), (first, ones), (second, ones), num_compared=5)
        low += found.high < lost - gained
        failures += found.bound < lost - gained
    # Of 400 repetitions a chance of 2.5 % gives 17 or fewer with 98 %, one of 1 % 8 or fewer.
    assert low <= 17 and failures <= 8 and tail_of(5) == 0.01


def test_the_bound_of_losses_is_a_share_of_the_originals_and_holds():
    rng, ones, low = np.random.default_rng(1), np.ones(300), 0
    for _ in range(30):
        hardness = rng.exponential(1.0, 300)
        first, second = 0.5 * hardness, 0.52 * hardness + 0.05 * rng.normal(size=300)
        found = paired_drop(Loss(), (first, ones), (second, ones))
        low += found.high < 0.04
    assert found.low < found.value < found.high <= found.bound
    assert abs(found.value - 0.04) < 0.04 and low <= 3  # 0.75 of 30 expected, at most 3 with 99 %


def test_so_many_examples_as_are_needed_decide_in_most_cases():
    rng, ones = np.random.default_rng(2), np.ones(400)
    first = np.arange(400) < 360
    second = first ^ (np.arange(400) >= 395) ^ (np.arange(400) < 7)  # 7 lost, 5 gained
    found = paired_drop(Accuracy(), (first, ones), (second, ones), num_compared=3)
    assert found.value == 0.005 and not found.is_within(0.02) and found.examples_needed(0.005) is None
    needed, shown = found.examples_needed(0.02), 0
    for _ in range(200):
        pair = right_and_wrong(rng, needed, 7 / 400, 5 / 400)
        shown += paired_drop(Accuracy(), *[(one, np.ones(needed)) for one in pair], num_compared=3).is_within(0.02)
    assert 0.72 <= shown / 200 <= 0.88  # 80 %, within three deviations of 200 draws


def test_equal_answers_show_no_less_than_the_resolution():
    right, ones = np.arange(250) < 200, np.ones(250)
    found = paired_drop(Accuracy(), (right, ones), (right, ones), num_compared=9)
    assert found.value == 0 and found.bound == pytest.approx(resolution(Accuracy(), 250, 9))
    needed = found.examples_needed(0.005)
    assert resolution(Accuracy(), needed, 9) == pytest.approx(0.005, rel=0.01)


def test_metrics_without_a_part_for_each_example_or_without_a_direction_are_refused():
    objective = objectives.softmax_cross_entropy(metrics={"margin": lambda outputs, batch: outputs[:, 0]})
    assert isinstance(mean_metric(objective, "accuracy"), Accuracy)
    for name in ("margin", "f1"):
        with pytest.raises(UserError, match=r"mean over examples with a direction: .*loss"):
            mean_metric(objective, name)
