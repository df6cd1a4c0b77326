"""Metrics are those of scikit-learn, and refuse what does not fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, r2_score, top_k_accuracy_score

from accelnet import objectives
from accelnet.errors import UserError


def compute(metric, outputs, batch):
    """Return a metric of one batch, as one program."""
    none = np.zeros(len(outputs), np.float32)
    return float(
        jax.jit(lambda outputs, batch: metric.compute(metric.measure(outputs, batch, none, none)))(outputs, batch)
    )


def test_top_k_accuracy_is_scikit_learns():
    generator = np.random.default_rng(0)
    scores, targets = generator.normal(size=(50, 6)), generator.integers(0, 6, 50)
    for k in (1, 2, 3, 6):
        metric = objectives.TopKAccuracy(k)
        expected = top_k_accuracy_score(targets, scores, k=k) if k < 6 else 1.0
        assert compute(metric, jnp.asarray(scores), {"targets": jnp.asarray(targets)}) == pytest.approx(
            expected, rel=1e-6
        )


def test_of_equal_outputs_the_first_ranks_higher_in_both_accuracies():
    batch = {"targets": jnp.array([0, 1, 2])}
    for metric, expected in (
        (objectives.Accuracy(), 1 / 3),
        (objectives.TopKAccuracy(1), 1 / 3),
        (objectives.TopKAccuracy(2), 2 / 3),
    ):
        assert compute(metric, jnp.zeros((3, 3)), batch) == pytest.approx(expected)


def test_outputs_that_are_nan_are_not_among_the_top_k():
    assert compute(objectives.TopKAccuracy(2), jnp.full((2, 3), jnp.nan), {"targets": jnp.array([0, 1])}) == 0.0


R2 = objectives.R2(weighted=True)


@jax.jit
def add_to_r2(state, outputs, targets, weights):
    batch, none = {"targets": targets, "weights": weights}, jnp.zeros(len(targets))
    return R2.merge(state, R2.measure(outputs, batch, none, none))


def r2_in_batches(outputs, targets, weights, size):
    state = R2.empty()
    for start in range(0, len(targets), size):
        rows = [array[start : start + size] for array in (outputs, targets, weights)]
        # The last batch is filled with rows of weight 0.
        state = add_to_r2(state, *(np.pad(row, (0, size - len(row))) for row in rows))
    return float(R2.compute(state))


def test_r2_is_scikit_learns_with_weights_and_far_from_zero():
    generator = np.random.default_rng(0)
    targets = (1000.0 + generator.normal(size=200)).astype(np.float32)
    outputs = (targets + 0.3 * generator.normal(size=200)).astype(np.float32)
    weights = generator.uniform(0.0, 2.0, 200).astype(np.float32)
    expected = r2_score(targets, outputs, sample_weight=weights)
    # Sums of squares would be off by more than 1: 10^6 in float32 has steps of 0.06, 200 of them are added.
    assert r2_in_batches(outputs, targets, weights, 7) == pytest.approx(expected, rel=1e-4)
    assert r2_in_batches(outputs, targets, weights, 200) == pytest.approx(expected, rel=1e-4)


def test_r2_of_targets_that_do_not_vary_is_one_if_exact_else_zero_as_in_scikit_learn():
    ones = np.ones(4, np.float32)
    assert r2_in_batches(ones, ones, ones, 2) == r2_score(ones, ones) == 1.0
    assert r2_in_batches(2 * ones, ones, ones, 2) == r2_score(ones, 2 * ones) == 0.0


@pytest.mark.parametrize(("constant", "count"), [(0.3, 37), (0.1, 7), (1e6 / 3, 1001), (-0.0471, 53)])
def test_r2_of_equal_targets_does_not_divide_by_the_rounding_of_their_mean(constant, count):
    targets = np.full(count, constant, np.float32)
    ones, outputs = np.ones(count, np.float32), np.linspace(0, 1, count, dtype=np.float32)
    assert r2_in_batches(outputs, targets, ones, 5) == r2_in_batches(outputs, targets, ones, count) == 0.0
    assert r2_in_batches(targets, targets, ones, 5) == 1.0


def test_r2_of_targets_far_from_zero_that_hardly_vary_is_scikit_learns():
    # torchmetrics, issue 1573. Means of 5.16 are rounded to 5e-7, a two-hundredth of the deviations of 1e-4.
    outputs = np.array([-3.9865, -5.4648, -5.0238, -4.3899, -5.6672, -4.7336], np.float32)
    targets = np.array([-5.1608, -5.1609, -5.1608, -5.1608, -5.1608, -5.1608], np.float32)
    expected = r2_score(targets.astype(float), outputs.astype(float))
    assert r2_in_batches(outputs, targets, np.ones(6, np.float32), 2) == pytest.approx(expected, rel=5e-3)


def value_of(metric, outputs, targets, weights=None):
    batch = {"targets": jnp.asarray(targets)} | ({} if weights is None else {"weights": jnp.asarray(weights)})
    return compute(metric, jnp.asarray(outputs, jnp.float32), batch)


@pytest.mark.parametrize("metric", [objectives.Accuracy(), objectives.TopKAccuracy(1), objectives.F1()], ids=repr)
def test_classes_of_nan_are_wrong(metric):
    assert value_of(metric, np.full((2, 2), np.nan), [0, 1]) == 0.0
    assert value_of(metric, [[np.nan, 1.0], [0.0, 1.0]], [1, 1]) == pytest.approx({"F1": 2 / 3}.get(
        type(metric).__name__, 0.5
    ))  # fmt: skip


def test_labels_of_nan_are_wrong():
    assert value_of(objectives.BinaryAccuracy(), [np.nan, np.nan], [0, 1]) == 0.0


SCORES = {
    "accuracy": (objectives.Accuracy, accuracy_score), "f1": (objectives.F1, f1_score),
    "macro f1": (partial(objectives.F1, average="macro"), partial(f1_score, average="macro")),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_a_metric_counts_examples_once_unless_it_is_told_to_weigh_them(name):
    ours, reference = SCORES[name]
    generator = np.random.default_rng(0)
    targets = (generator.random(400) < 0.1).astype(np.int32)
    logits = generator.normal(size=(400, 2)) + 1.2 * np.eye(2)[targets]
    weights = np.where(targets == 1, 19.0, 1.0) * (np.arange(400) < 390)  # the last ten are not there
    known = {"y_true": targets[:390], "y_pred": logits[:390].argmax(1)}
    alike, weighed = reference(**known), reference(**known, sample_weight=weights[:390])
    assert value_of(ours(), logits, targets, weights) == pytest.approx(alike, rel=1e-6)
    assert value_of(ours(weighted=True), logits, targets, weights) == pytest.approx(weighed, rel=1e-6)
    assert abs(alike - weighed) > 0.005


def test_f1_of_several_classes_is_scikit_learns_however_batches_are_cut():
    generator, metric = np.random.default_rng(1), objectives.F1(5, "macro")
    targets = generator.integers(0, 4, 50)  # class 4 never occurs; it is predicted
    logits = generator.normal(size=(50, 5)) + np.eye(5)[targets]
    state, none = metric.empty(), jnp.zeros(1)
    merge = jax.jit(metric.merge)
    measure = jax.jit(lambda outputs, targets: metric.measure(outputs, {"targets": targets}, none, none))
    for rows in (slice(0, 7), slice(7, 50)):
        state = merge(state, measure(logits[rows], targets[rows]))
    assert float(metric.compute(state)) == pytest.approx(f1_score(targets, logits.argmax(1), average="macro"), rel=1e-6)


def test_f1_says_what_does_not_fit():
    with pytest.raises(UserError, match="expected 2, or more with average='macro'"):
        objectives.F1(3)
    with pytest.raises(UserError, match=r"F1 of 3 classes: outputs have shape \(2, 2\)"):
        value_of(objectives.F1(3, "macro"), np.zeros((2, 2)), [0, 1])


def test_counts_of_whole_examples_are_exact():
    metric = objectives.Accuracy()
    state = metric.empty()
    outputs, batch = jnp.array([[0.0, 1.0]] * 3), {"targets": jnp.array([1, 1, 0])}
    one = metric.measure(outputs, batch, jnp.zeros(3), jnp.ones(3))
    state = jax.lax.fori_loop(0, 20_000, lambda _, state: metric.merge(state, one), state)
    assert (float(state["total"]), float(state["weight"])) == (40_000.0, 60_000.0)


def test_metrics_of_classes_count_the_largest_share_of_soft_targets():
    generator = np.random.default_rng(2)
    outputs, shares = generator.normal(size=(40, 4)), generator.dirichlet(np.ones(4), 40)
    for metric in (objectives.Accuracy(), objectives.TopKAccuracy(2), objectives.F1(4, "macro")):
        assert value_of(metric, outputs, shares) == value_of(metric, outputs, shares.argmax(1))
