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
    # Ties, as float32 makes them.
    return probabilities.round(2) + 1e-3, labels


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
    found = describe_classes(probabilities, labels, weights, names(num_classes))
    metrics = {name: one["value"] for name, one in found["metrics"].items()}
    known = {"sample_weight": weights, "labels": np.arange(num_classes)}
    assert metrics["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted, sample_weight=weights))
    assert metrics["f1_macro"] == pytest.approx(reference.f1_score(labels, predicted, average="macro", **known))
    own = -np.log(probabilities[np.arange(300), labels])
    assert metrics["cross_entropy"] == pytest.approx(np.average(own, weights=weights))
    table = reference.precision_recall_fscore_support(labels, predicted, **known)
    for column, name in enumerate(("precision", "recall", "f1")):
        assert [one[name]["value"] for one in found["classes"]] == pytest.approx(table[column])
    assert found["confusion"] == reference.confusion_matrix(labels, predicted).tolist()
    assert sum(pair["count"] for pair in found["confused"]) == (labels != predicted).sum()
    if num_classes == 2:
        scores = probabilities[:, 1]
        assert metrics["roc_auc"] == pytest.approx(reference.roc_auc_score(labels, scores, sample_weight=weights))
        precision = reference.average_precision_score(labels, scores, sample_weight=weights)
        assert metrics["average_precision"] == pytest.approx(precision)
        assert found["curves"]["roc"][-1] == pytest.approx([1.0, 1.0])
    else:
        # scikit-learn breaks ties from the other end; these have none.
        smooth = probabilities + np.random.default_rng(2).random(probabilities.shape) * 1e-6
        two = describe_classes(smooth, labels, weights, names(4))["metrics"]["top_2_accuracy"]["value"]
        assert two == pytest.approx(reference.top_k_accuracy_score(labels, smooth, k=2, sample_weight=weights))


def test_the_calibration_error_is_the_gap_of_bins_by_their_share():
    confidence = np.array([0.99, 0.99, 0.99, 0.99, 0.61, 0.61])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 0, 0, 1, 0, 1])
    found = describe_classes(probabilities, labels, np.ones(6), ("a", "b"))
    assert found["metrics"]["calibration_error"]["value"] == pytest.approx(4 / 6 * 0.24 + 2 / 6 * 0.11)
    assert [one["accuracy"]["value"] for one in found["calibration"]] == pytest.approx([0.5, 0.75])


def test_the_interval_of_the_calibration_error_knows_that_bins_exaggerate():
    # Perfectly calibrated predictions: the error by bins is above 0 all the same.
    rng, held = np.random.default_rng(0), 0
    for _ in range(20):
        yes = rng.random(400)
        found = describe_classes(
            np.stack([1 - yes, yes], axis=1), (rng.random(400) < yes).astype(int), np.ones(400), ("a", "b")
        )["metrics"]["calibration_error"]
        assert found["value"] > 0.01
        held += found["low"] <= 0.01
    assert held >= 18


def test_classes_that_never_occur_count_nowhere():
    probabilities, labels = predictions(100, 3)
    wider = np.pad(probabilities, ((0, 0), (0, 5)))
    before, after = (describe_classes(p, labels, np.ones(100), names(p.shape[1])) for p in (probabilities, wider))
    assert after["metrics"]["f1_macro"]["value"] == pytest.approx(before["metrics"]["f1_macro"]["value"])
    assert after["classes"][7]["f1"]["value"] == 0


def test_a_thousand_classes_have_no_matrix_but_their_mistakes():
    probabilities, labels = predictions(2000, 1000)
    found = describe_classes(probabilities, labels, np.ones(2000), names(1000))
    assert found["confusion"] is None and found["confused"] and len(found["classes"]) == 1000


def test_one_label_is_two_classes_and_several_are_told_each():
    rng = np.random.default_rng(0)
    yes, truth = rng.random((200, 3)), rng.integers(0, 2, (200, 3))
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
    assert found["mean_absolute_error_in_own_units"]["value"] == pytest.approx(np.exp(8.5) - np.exp(8.0))


def test_targets_that_do_not_vary_are_judged_as_the_metric_does():
    assert describe_numbers(np.ones((30, 1)), np.ones(30), np.ones(30))["metrics"]["r2"]["value"] == 1
    assert describe_numbers(np.zeros((30, 1)), np.ones(30), np.ones(30))["metrics"]["r2"]["value"] == 0
