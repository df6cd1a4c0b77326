"""Statistics of predictions against scikit-learn and scipy, and intervals against what they promise."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as reference

from accelnet.evaluating.bootstrap import LEAST_EXAMPLES, resampled
from accelnet.evaluating.classes import describe_classes, describe_labels
from accelnet.evaluating.numbers import describe_numbers


def predictions(num_examples, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_examples)
    logits = rng.normal(size=(num_examples, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # Ties, as coarse scores make them.
    probabilities = probabilities.round(2) + 1e-3
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def names(num_classes):
    return tuple(map(str, range(num_classes)))


def test_an_interval_is_that_of_scipy():
    values = np.random.default_rng(0).exponential(size=200)
    found = resampled(lambda w: {"mean": w @ values / w.sum(axis=1)}, np.ones(200), num_resamples=4000)["mean"]
    other = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found["value"] == pytest.approx(values.mean())
    # Both ends are quantiles of 4,000 random numbers.
    assert [found["low"], found["high"]] == pytest.approx([other.low, other.high], rel=0.02)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for trial in range(400):
        right = (rng.random(200) < 0.9).astype(float)
        found = resampled(lambda w, r=right: {"x": w @ r / w.sum(axis=1)}, np.ones(200), num_resamples=200, seed=trial)
        held += found["x"]["low"] <= 0.9 <= found["x"]["high"]
    # 95 of 100, and five deviations of a count of 400 trials.
    assert held / 400 == pytest.approx(0.94, abs=0.055)


def test_of_few_examples_there_is_no_interval():
    few = resampled(lambda w: {"x": w.sum(axis=1)}, np.ones(LEAST_EXAMPLES - 1))["x"]
    assert few == {"value": LEAST_EXAMPLES - 1, "low": None, "high": None}


def test_resampling_by_parts_changes_nothing(monkeypatch):
    values = np.arange(50.0)
    whole = resampled(lambda w: {"x": w @ values / w.sum(axis=1)}, np.ones(50))
    monkeypatch.setattr("accelnet.evaluating.bootstrap._CELLS", 50 * 7)
    assert resampled(lambda w: {"x": w @ values / w.sum(axis=1)}, np.ones(50)) == whole


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_of_classes_are_those_of_scikit_learn(num_classes, weighted):
    probabilities, labels = predictions(300, num_classes)
    weights = np.random.default_rng(1).integers(0, 3, 300).astype(float) if weighted else np.ones(300)
    predicted = probabilities.argmax(axis=1)
    found = describe_classes(np.log(probabilities), labels, weights, names(num_classes))
    metrics = {name: one["value"] for name, one in found["metrics"].items()}
    known = {"sample_weight": weights, "labels": np.arange(num_classes)}
    assert metrics["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted, sample_weight=weights))
    assert metrics["f1_macro"] == pytest.approx(reference.f1_score(labels, predicted, average="macro", **known))
    own = -np.log(probabilities[np.arange(300), labels])
    assert metrics["cross_entropy"] == pytest.approx(np.average(own, weights=weights))
    table = reference.precision_recall_fscore_support(labels, predicted, **known)
    for column, name in enumerate(("precision", "recall", "f1")):
        assert [one[name]["value"] for one in found["classes"]] == pytest.approx(table[column])
    # Beside weighted precision, the matrix, the mistakes and the support are weighted too.
    assert found["confusion"] == reference.confusion_matrix(labels, predicted, sample_weight=weights).tolist()
    assert sum(pair["count"] for pair in found["confused"]) == weights[labels != predicted].sum()
    assert [one["support"] for one in found["classes"]] == pytest.approx(table[3])
    if num_classes == 2:
        scores = np.log(probabilities[:, 1]) - np.log(probabilities[:, 0])
        assert metrics["roc_auc"] == pytest.approx(reference.roc_auc_score(labels, scores, sample_weight=weights))
        precision = reference.average_precision_score(labels, scores, sample_weight=weights)
        assert metrics["average_precision"] == pytest.approx(precision)
        assert found["curves"]["roc"][-1] == pytest.approx([1.0, 1.0])
    else:
        # scikit-learn breaks ties from the other end; these have none.
        smooth = probabilities + np.random.default_rng(2).random(probabilities.shape) * 1e-6
        two = describe_classes(np.log(smooth), labels, weights, names(4))["metrics"]["top_2_accuracy"]["value"]
        assert two == pytest.approx(reference.top_k_accuracy_score(labels, smooth, k=2, sample_weight=weights))


def test_the_calibration_error_is_the_gap_of_bins_by_their_share():
    confidence = np.array([0.99, 0.99, 0.99, 0.99, 0.61, 0.61])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 0, 0, 1, 0, 1])
    found = describe_classes(np.log(probabilities), labels, np.ones(6), ("a", "b"))
    assert found["metrics"]["calibration_error"]["value"] == pytest.approx(4 / 6 * 0.24 + 2 / 6 * 0.11)
    assert [one["accuracy"]["value"] for one in found["calibration"]] == pytest.approx([0.5, 0.75])


def test_the_interval_of_the_calibration_error_knows_that_bins_exaggerate():
    # Perfectly calibrated predictions: the error by bins is above 0 all the same.
    rng, held = np.random.default_rng(0), 0
    for _ in range(20):
        yes = rng.random(400)
        found = describe_classes(
            np.log(np.stack([1 - yes, yes], axis=1)), (rng.random(400) < yes).astype(int), np.ones(400), ("a", "b")
        )["metrics"]["calibration_error"]
        assert found["value"] > 0.01
        held += found["low"] <= 0.01
    assert held >= 18


def test_classes_that_never_occur_count_nowhere():
    probabilities, labels = predictions(100, 3)
    logits = np.log(probabilities)
    wider = np.pad(logits, ((0, 0), (0, 5)), constant_values=-np.inf)
    before, after = (describe_classes(p, labels, np.ones(100), names(p.shape[1])) for p in (logits, wider))
    assert after["metrics"]["f1_macro"]["value"] == pytest.approx(before["metrics"]["f1_macro"]["value"])
    assert [after["classes"][7][name]["value"] for name in ("precision", "recall", "f1")] == [None] * 3


def test_a_thousand_classes_have_no_matrix_but_their_mistakes():
    probabilities, labels = predictions(2000, 1000)
    found = describe_classes(np.log(probabilities), labels, np.ones(2000), names(1000))
    assert found["confusion"] is None and found["confused"] and len(found["classes"]) == 1000


def test_one_label_is_two_classes_and_several_are_told_each():
    rng = np.random.default_rng(0)
    yes, truth = rng.random((200, 3)), rng.integers(0, 2, (200, 3))
    yes = np.log(yes / (1 - yes))
    found = describe_labels(yes, truth, np.ones(200), ("a", "b", "c"))
    areas = [one["roc_auc"]["value"] for one in found["classes"]]
    assert areas == pytest.approx([reference.roc_auc_score(truth[:, k], yes[:, k]) for k in range(3)])
    assert found["metrics"]["roc_auc_macro"]["value"] == pytest.approx(np.mean(areas))
    alone = describe_labels(yes[:, :1], truth[:, 0], np.ones(200), ("a",))
    assert alone["metrics"]["roc_auc"]["value"] == pytest.approx(areas[0])
    assert [one["name"] for one in alone["classes"]] == ["no", "yes"]


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_metrics_of_numbers_are_those_of_scikit_learn(num_outputs):
    rng = np.random.default_rng(0)
    targets = 1e4 + rng.normal(size=(200, num_outputs))
    outputs, weights = targets + 0.3 * rng.normal(size=targets.shape), rng.integers(0, 3, 200).astype(float)
    found = describe_numbers(outputs, targets, weights)
    metrics = {name: one["value"] for name, one in found["metrics"].items()}
    known = {"sample_weight": weights}
    assert metrics["r2"] == pytest.approx(reference.r2_score(targets, outputs, **known))
    assert metrics["mean_absolute_error"] == pytest.approx(reference.mean_absolute_error(targets, outputs, **known))
    root = reference.root_mean_squared_error(targets, outputs, **known)
    assert metrics["root_mean_squared_error"] == pytest.approx(root)
    assert len(found["outputs"]) == (num_outputs if num_outputs > 1 else 0)
    assert found["residuals"][0]["quantiles"]["50"] == pytest.approx(np.median(targets[:, 0] - outputs[:, 0]))
    assert sum(found["residuals"][0]["histogram"]["counts"]) == 200


def test_numbers_are_told_in_the_units_of_their_file():
    undo = {"mean": 8.0, "std": 0.5, "log": True}
    found = describe_numbers(np.zeros((30, 1)), np.ones((30, 1)), np.ones(30), undo)["metrics"]
    assert found["mean_absolute_error"]["value"] == pytest.approx(np.exp(8.5) - np.exp(8.0))
    assert found["root_mean_squared_error"]["value"] == pytest.approx(np.exp(8.5) - np.exp(8.0))


def test_targets_that_do_not_vary_are_judged_as_the_metric_does():
    assert describe_numbers(np.ones((30, 1)), np.ones(30), np.ones(30))["metrics"]["r2"]["value"] == 1
    assert describe_numbers(np.zeros((30, 1)), np.ones(30), np.ones(30))["metrics"]["r2"]["value"] == 0


def test_the_variance_of_equal_targets_is_not_their_rounding():
    rng = np.random.default_rng(0)
    for count in range(20, 80):
        targets = np.full(count, np.float32(rng.uniform(-5, 5)))
        outputs = (targets + rng.normal(0, 0.1, count)).astype(np.float32)[:, None]
        found = describe_numbers(outputs, targets, np.ones(count))["metrics"]["r2"]
        assert found == {"value": 0, "low": 0, "high": 0}


def test_resamples_of_equal_targets_alone_say_nothing_of_r2():
    targets = np.where(np.arange(40) == 0, 1.0, 0.3)
    outputs = (targets + np.random.default_rng(0).normal(0, 0.01, 40))[:, None]
    found = describe_numbers(outputs, targets, np.ones(40))["metrics"]["r2"]
    assert 0.9 < found["low"] <= found["value"] == pytest.approx(reference.r2_score(targets, outputs[:, 0]))


# torchmetrics, issue 2819: in float32 the sigmoid of all of these is 1.
SATURATED = np.array([
    98.0950, 98.4612, 98.1145, 98.1506, 97.6037, 98.9425, 99.2644, 99.5014, 99.7280, 99.6595, 99.6931, 99.4667, 99.9623,
    99.8949, 99.8768,
], np.float32)  # fmt: skip


@pytest.mark.parametrize("outputs", [1, 2])
def test_logits_whose_probabilities_are_1_are_still_ranked(outputs):
    truth, scores = (np.arange(15) > 0).astype(int), SATURATED[:, None]
    if outputs == 1:
        found = describe_labels(scores, truth, np.ones(15), ("a",))["metrics"]
    else:
        found = describe_classes(np.pad(scores, ((0, 0), (1, 0))), truth, np.ones(15), ("a", "b"))["metrics"]
    assert found["roc_auc"]["value"] == pytest.approx(0.9286, abs=5e-5)
    assert found["average_precision"]["value"] == pytest.approx(0.9952, abs=5e-5)
    # log(1 + e^98.095) of the one negative example, over 15.
    assert found["cross_entropy"]["value"] == pytest.approx(98.095 / 15, rel=1e-6)


def test_the_cross_entropy_of_sure_mistakes_is_that_of_their_logits():
    rng, truth = np.random.default_rng(1), np.arange(200) % 2
    logit = np.where(truth == 1, 25, -25).astype(np.float32) + rng.normal(0, 1, 200).astype(np.float32)
    logit[:10] *= -1
    found = describe_labels(logit[:, None], truth, np.ones(200), ("a",))["metrics"]
    assert found["cross_entropy"]["value"] == pytest.approx(1.2472, abs=5e-5)


def test_a_label_that_is_never_yes_is_left_out_of_the_means():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(300, 3)), rng.integers(0, 2, (300, 3))
    truth[:, 1] = 0
    found = describe_labels(logits, truth, np.ones(300), ("a", "b", "c"))
    areas = [one["roc_auc"]["value"] for one in found["classes"]]
    assert areas[1] is None and found["classes"][1]["recall"] == {"value": None, "low": None, "high": None}
    known = [reference.roc_auc_score(truth[:, k], logits[:, k]) for k in (0, 2)]
    assert found["metrics"]["roc_auc_macro"]["value"] == pytest.approx(np.mean(known))
    assert found["metrics"]["roc_auc_macro"]["low"] > 0.4
    f1 = reference.f1_score(truth, logits > 0, average="macro")  # predicted, so that 0 is its F1
    assert found["metrics"]["f1_macro"]["value"] == pytest.approx(f1)


def test_ranks_within_one_class_are_undefined():
    rng = np.random.default_rng(0)
    found = describe_classes(rng.normal(size=(40, 2)), np.zeros(40, int), np.ones(40), ("a", "b"))
    for name in ("roc_auc", "average_precision"):
        assert found["metrics"][name] == {"value": None, "low": None, "high": None}
    assert "curves" not in found and found["classes"][1]["recall"]["value"] is None


def test_resamples_without_a_positive_example_say_nothing_of_ranks():
    truth = (np.arange(200) < 2).astype(int)
    found = describe_labels(np.where(truth, 1.0, -1.0)[:, None], truth, np.ones(200), ("a",))["metrics"]["roc_auc"]
    assert found == {"value": 1, "low": 1, "high": 1}


def test_all_of_sixty_right_may_be_94_percent():
    logits = np.array([[1.0, -1.0]]).repeat(60, axis=0)
    found = describe_classes(logits, np.zeros(60, int), np.ones(60), ("a", "b"))
    shares = {"accuracy": found["metrics"]["accuracy"], **{n: found["classes"][0][n] for n in ("precision", "recall")}}
    for one in shares.values():
        assert (one["value"], one["high"]) == (1, 1) and one["low"] == pytest.approx(0.9398, abs=1e-4)
    # A mistake costs F1 half of what it costs the share of those that are of the class and called so.
    assert found["classes"][0]["f1"]["low"] == pytest.approx(2 * 0.9398 / 1.9398, abs=1e-4)


def held(make, truth, trials=1000):
    """Return how often an interval holds the truth, and is not a point."""
    rng, inside, points = np.random.default_rng(0), 0, 0
    for _ in range(trials):
        found = make(rng)
        inside, points = inside + (found["low"] <= truth <= found["high"]), points + (found["low"] == found["high"])
    assert points == 0
    return inside / trials
