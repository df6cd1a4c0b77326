"""The losses against scikit-learn and NumPy in float64, and what they do with bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, r2_score

from accelnet import objectives
from accelnet.errors import UserError

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(12, 5)).astype(np.float32)
CLASSES = GENERATOR.integers(0, 5, 12)
NUMBERS = GENERATOR.normal(size=12).astype(np.float32)


def log_softmax(logits):
    logits = np.asarray(logits, float)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def mean_of(objective, outputs, targets, **batch):
    return float(evaluated(objective, outputs, {"targets": jnp.asarray(targets), **batch})[0])


def evaluated(objective, outputs, batch):
    """Return what the objective says of a batch, as one program: op by op, each is dozens of small ones."""
    return jax.jit(objective.evaluate)(jnp.asarray(outputs), batch)


def test_softmax_cross_entropy_is_scikit_learns_log_loss():
    expected = log_loss(CLASSES, np.exp(log_softmax(LOGITS)), labels=range(5))
    assert mean_of(objectives.softmax_cross_entropy(), LOGITS, CLASSES) == pytest.approx(expected, rel=1e-6)


def test_class_weights_weigh_the_mean_as_scikit_learns_sample_weights_do():
    table = np.array([1.0, 0.0, 2.0, 0.5, 3.0])
    expected = log_loss(CLASSES, np.exp(log_softmax(LOGITS)), labels=range(5), sample_weight=table[CLASSES])
    objective = objectives.softmax_cross_entropy(class_weights=table)
    assert mean_of(objective, LOGITS, CLASSES) == pytest.approx(expected, rel=1e-6)


def test_class_weights_multiply_the_batchs_own_and_leave_the_accuracy_alone():
    table, own = np.array([1.0, 0.0, 2.0, 0.5, 3.0]), GENERATOR.uniform(size=12)
    expected = log_loss(CLASSES, np.exp(log_softmax(LOGITS)), labels=range(5), sample_weight=own * table[CLASSES])
    objective = objectives.softmax_cross_entropy(class_weights=tuple(table))
    batch = {"targets": jnp.asarray(CLASSES), "weights": jnp.asarray(own)}
    mean, states = evaluated(objective, LOGITS, batch)
    assert float(mean) == pytest.approx(expected, rel=1e-6)
    right = np.mean(LOGITS.argmax(-1) == CLASSES)
    assert float(objective.compute(states)["accuracy"]) == pytest.approx(right, rel=1e-6)


def test_label_smoothing_mixes_the_target_with_the_uniform_distribution():
    mixed = 0.8 * np.eye(5)[CLASSES] + 0.2 / 5
    expected = -np.mean(np.sum(mixed * log_softmax(LOGITS), -1))
    objective = objectives.softmax_cross_entropy(label_smoothing=0.2)
    assert mean_of(objective, LOGITS, CLASSES) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("smoothing", "focal"), [(0.0, 0.0), (0.2, 0.0), (0.1, 2.0)])
def test_an_example_of_soft_targets_counts_as_one_of_each_class_in_parts(smoothing, focal):
    rng, table = np.random.default_rng(5), np.array([0.5, 2.0, 1.0, 0.0, 3.0])
    shares = rng.dirichlet(np.ones(5), len(CLASSES)).astype(np.float32)
    objective = objectives.softmax_cross_entropy(label_smoothing=smoothing, class_weights=table, focal=focal)
    # The same as 5 examples with the weights of the shares, one of each class.
    batch = {"targets": np.tile(np.arange(5), len(CLASSES)), "weights": shares.ravel()}
    expected, _ = evaluated(objective, np.repeat(LOGITS, 5, axis=0), batch)
    assert mean_of(objective, LOGITS, shares) == pytest.approx(float(expected), rel=1e-5)
    assert mean_of(objective, LOGITS, np.eye(5, dtype=np.float32)[CLASSES]) == pytest.approx(
        mean_of(objective, LOGITS, CLASSES), rel=1e-5
    )


def test_soft_labels_of_a_sigmoid_are_mixtures_with_a_focal_exponent_too():
    logits, targets = np.array([[2.0, -1.0], [0.3, 4.0]]), np.array([[0.25, 0.5], [1.0, 0.0]])
    p = 1 / (1 + np.exp(-logits))
    for focal in (0.0, 2.0):
        expected = -targets * (1 - p) ** focal * np.log(p) - (1 - targets) * p**focal * np.log(1 - p)
        assert mean_of(objectives.sigmoid_cross_entropy(focal=focal), logits, targets) == pytest.approx(
            expected.mean(), rel=1e-5
        )


def test_softmax_cross_entropy_is_exact_for_large_logits():
    assert mean_of(objectives.softmax_cross_entropy(), [[1e4, 0.0]], [1]) == 1e4
    assert mean_of(objectives.softmax_cross_entropy(), [[1e4, -np.inf]], [0]) == 0.0


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_that_is_no_class_gives_nan_and_not_some_other_class(target):
    targets = CLASSES.copy()
    targets[3] = target
    assert np.isnan(mean_of(objectives.softmax_cross_entropy(), LOGITS, targets))


def test_sigmoid_cross_entropy_is_scikit_learns_log_loss_of_each_label():
    labels = GENERATOR.integers(0, 2, (12, 5))
    probabilities = 1 / (1 + np.exp(-LOGITS.astype(float)))
    expected = np.mean([log_loss(labels[:, k], probabilities[:, k]) for k in range(5)])
    assert mean_of(objectives.sigmoid_cross_entropy(), LOGITS, labels) == pytest.approx(expected, rel=1e-6)


def test_sigmoid_cross_entropy_takes_one_binary_label_in_a_column_or_a_vector():
    labels = NUMBERS > 0
    expected = log_loss(labels, 1 / (1 + np.exp(-LOGITS[:, 0].astype(float))))
    for outputs in (LOGITS[:, 0], LOGITS[:, :1]):
        for targets in (labels, labels[:, None]):
            mean = mean_of(objectives.sigmoid_cross_entropy(), outputs, targets)
            assert mean == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("outputs", [LOGITS[:, 0], LOGITS[:, :1]], ids=["vector", "column"])
@pytest.mark.parametrize("targets", [NUMBERS, NUMBERS[:, None]], ids=["vector", "column"])
def test_regression_metrics_are_scikit_learns(outputs, targets):
    objective = objectives.squared_error()
    mean, states = evaluated(objective, outputs, {"targets": jnp.asarray(targets)})
    metrics = objective.compute(states)
    true, predicted = np.ravel(targets), np.ravel(outputs)
    assert float(mean) == float(metrics["loss"]) == pytest.approx(mean_squared_error(true, predicted), rel=1e-6)
    assert float(metrics["r2"]) == pytest.approx(r2_score(true, predicted), rel=1e-5)
    expected = mean_absolute_error(true, predicted)
    assert float(metrics["mean_absolute_error"]) == pytest.approx(expected, rel=1e-6)


def test_several_outputs_are_averaged_as_in_scikit_learn():
    targets = GENERATOR.normal(size=(12, 5))
    objective = objectives.squared_error(num_outputs=5)
    _, states = evaluated(objective, LOGITS, {"targets": jnp.asarray(targets)})
    metrics = objective.compute(states)
    assert float(metrics["loss"]) == pytest.approx(mean_squared_error(targets, LOGITS), rel=1e-6)
    assert float(metrics["r2"]) == pytest.approx(r2_score(targets, LOGITS), rel=1e-5)


def test_huber_is_quadratic_near_zero_and_linear_beyond_delta():
    errors = np.array([-3.0, -0.5, 0.0, 0.4, 2.0])
    expected = np.mean(np.where(abs(errors) <= 0.5, errors**2 / 2, 0.5 * (abs(errors) - 0.25)))
    assert mean_of(objectives.huber(delta=0.5), errors, 0 * errors) == pytest.approx(expected, rel=1e-6)


def test_token_cross_entropy_averages_over_tokens_that_count():
    logits = GENERATOR.normal(size=(3, 4, 6))
    tokens = GENERATOR.integers(0, 6, (3, 4))
    counts = np.arange(4)[None, :] < np.array([4, 1, 2])[:, None]
    expected = log_loss(tokens[counts], np.exp(log_softmax(logits))[counts], labels=range(6))
    objective = objectives.token_cross_entropy()
    batch = {"targets": jnp.asarray(tokens), "weights": jnp.asarray(counts)}
    mean, states = evaluated(objective, logits, batch)
    metrics = objective.compute(states)
    assert float(mean) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["perplexity"]) == pytest.approx(np.exp(expected), rel=1e-6)
    assert float(metrics["bits_per_character"]) == pytest.approx(expected / np.log(2), rel=1e-6)
    right = np.mean((logits.argmax(-1) == tokens)[counts])
    assert float(metrics["accuracy"]) == pytest.approx(right, rel=1e-6)


def test_weights_of_whole_series_count_for_each_of_their_tokens():
    logits, tokens = GENERATOR.normal(size=(2, 3, 4)), GENERATOR.integers(0, 4, (2, 3))
    objective = objectives.token_cross_entropy()
    per_series = mean_of(objective, logits, tokens, weights=jnp.array([1.0, 3.0]))
    per_token = mean_of(objective, logits, tokens, weights=jnp.array([[1.0] * 3, [3.0] * 3]))
    assert per_series == per_token


def test_xor_reports_rounded_accuracy_by_the_name_of_accuracy():
    objective = objectives.squared_error(metrics={"accuracy": objectives.RoundedAccuracy(), "r2": None})
    outputs = jnp.array([[0.2], [0.9], [0.7], [0.6]])
    _, states = evaluated(objective, outputs, {"targets": jnp.array([0, 1, 1, 0])})
    metrics = objective.compute(states)
    assert set(metrics) == {"loss", "mean_absolute_error", "accuracy"}
    assert metrics["accuracy"] == 0.75


@pytest.mark.parametrize(
    "objective",
    [objectives.softmax_cross_entropy(label_smoothing=0.1), objectives.token_cross_entropy()],
    ids=["softmax", "token"],
)
def test_narrow_outputs_are_computed_in_float32(objective):
    logits, targets = LOGITS.reshape(1, 12, 5), CLASSES.reshape(1, 12)
    if "perplexity" not in objective.metrics:
        logits, targets = logits[0], targets[0]
    narrow = jnp.asarray(logits, jnp.bfloat16)
    mean, states = evaluated(objective, narrow, {"targets": jnp.asarray(targets)})
    wide, _ = evaluated(objective, narrow.astype(jnp.float32), {"targets": jnp.asarray(targets)})
    assert mean == wide
    assert {leaf.dtype for leaf in jax.tree.leaves((mean, states, objective.compute(states)))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32])
def test_targets_of_any_integer_type_mean_the_same(dtype):
    mean = mean_of(objectives.softmax_cross_entropy(), LOGITS, CLASSES)
    assert mean_of(objectives.softmax_cross_entropy(), LOGITS, jnp.asarray(CLASSES, dtype)) == mean


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.softmax_cross_entropy(label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: objectives.softmax_cross_entropy(class_weights=(1.0, -1.0)), "class_weights is"),
        (lambda: objectives.softmax_cross_entropy(class_weights=(0.0, 0.0)), "not all 0"),
        (lambda: objectives.huber(delta=0.0), "delta is 0.0, expected a finite number above 0"),
        (lambda: objectives.squared_error(num_outputs=0), "num_outputs is 0"),
        (lambda: objectives.TopKAccuracy(0), "k is 0, expected a whole number of at least 1"),
        (lambda: objectives.softmax_cross_entropy(metrics={"top": objectives.Accuracy}), "metric 'top' is"),
    ],
)
def test_an_argument_out_of_range_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "outputs", "targets", "message"),
    [
        (objectives.softmax_cross_entropy(), (4, 3), jnp.zeros(5, int), r"shape \(4, 3\) and targets \(5,\)"),
        (objectives.softmax_cross_entropy(), (4, 3), jnp.zeros((4, 1), int), r"expected outputs \[B, \.\.\., C\]"),
        (objectives.softmax_cross_entropy(), (4, 3), jnp.zeros(4), "dtype float32, expected integers"),
        (
            objectives.softmax_cross_entropy(class_weights=(1, 2)),
            (4, 3),
            jnp.zeros(4, int),
            "2 class_weights",
        ),
        (objectives.token_cross_entropy(), (4, 3), jnp.zeros(4, int), r"expected outputs \[B, T, V\]"),
        (objectives.squared_error(), (4, 3), jnp.zeros(4), r"shape \(4, 3\) and the targets \(4,\)"),
        (objectives.squared_error(), (4, 1), jnp.zeros((4, 3)), "expected the same shape"),
        (objectives.squared_error(), (4, 3), jnp.zeros((4, 3)), "give num_outputs=3"),
        (objectives.sigmoid_cross_entropy(), (4, 3), jnp.zeros(4), "expected the same shape"),
        (
            objectives.softmax_cross_entropy(metrics={"top": objectives.TopKAccuracy(4)}),
            (4, 3),
            jnp.zeros(4, int),
            "k is 4, but the outputs have only 3 classes",
        ),
    ],
)
def test_what_does_not_fit_is_named(objective, outputs, targets, message):
    with pytest.raises(UserError, match=message):
        objective.evaluate(jnp.zeros(outputs), {"targets": targets})


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r'batch\["weights"\] has shape \(4, 2\), but the losses .* \(4,\)'):
        mean_of(objectives.squared_error(), jnp.zeros(4), jnp.zeros(4), weights=jnp.ones((4, 2)))
