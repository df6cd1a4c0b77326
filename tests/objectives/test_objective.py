"""What holds for every objective and metric: masks, merging, types."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, r2_score, top_k_accuracy_score

from accelnet import objectives
from accelnet.errors import UserError

TOP = {"top": objectives.TopKAccuracy(2)}
OBJECTIVES = {
    "softmax": objectives.softmax_cross_entropy(label_smoothing=0.1, class_weights=(1, 2, 3, 0), metrics=TOP),
    "sigmoid": objectives.sigmoid_cross_entropy(),
    "squared": objectives.squared_error(metrics={"accuracy": objectives.RoundedAccuracy()}),
    "squared of several": objectives.squared_error(num_outputs=4),
    "huber": objectives.huber(),
    "token": objectives.token_cross_entropy(metrics=TOP),
}
SIZE, ROWS = 5, 8  # Examples of a batch, and its rows where it is padded: two programs for each objective.


def everything(objective):
    """Return all that an objective computes of a batch, as one function."""

    def compute(outputs, batch):
        (mean, states), gradient = jax.value_and_grad(objective.evaluate, has_aux=True)(outputs, batch)
        total, weight, _ = objective.totals(outputs, batch)
        return {
            "mean": mean, "states": states, "gradient": gradient, "metrics": objective.compute(states), "total": total,
            "weight": weight,
        }  # fmt: skip

    return compute


# Compiled once for all tests: op by op, each new shape compiles dozens of small programs.
COMPUTE = {name: jax.jit(everything(objective)) for name, objective in OBJECTIVES.items()}
MERGE = {name: jax.jit(objective.merge) for name, objective in OBJECTIVES.items()}
METRICS = {name: jax.jit(objective.compute) for name, objective in OBJECTIVES.items()}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def make_batch(name, size, seed=0):
    generator = np.random.default_rng(seed)
    if name == "softmax":
        outputs, targets = generator.normal(size=(size, 4)), generator.integers(0, 4, size)
    elif name == "token":
        outputs, targets = generator.normal(size=(size, 3, 4)), generator.integers(0, 4, (size, 3))
    elif name == "sigmoid":
        outputs, targets = generator.normal(size=(size, 2)), generator.integers(0, 2, (size, 2))
    else:
        shape = (size, 4) if name == "squared of several" else (size, 1)
        outputs, targets = generator.normal(size=shape), generator.normal(size=shape)
    weights = generator.uniform(0.5, 2.0, (size, 3) if name == "token" else size)
    kind = np.int32 if targets.dtype.kind == "i" else np.float32
    batch = {"targets": targets.astype(kind), "weights": weights.astype(np.float32), "mask": np.ones(size, bool)}
    return outputs.astype(np.float32), batch


def pad(outputs, batch, garbage=np.nan):
    """Append rows of garbage with mask False."""
    more = ROWS - len(outputs)

    def extend(leaf):
        value = garbage if np.issubdtype(leaf.dtype, np.inexact) else 99
        return np.concatenate([leaf, np.full((more, *leaf.shape[1:]), value, leaf.dtype)])

    padded = jax.tree.map(extend, {key: value for key, value in batch.items() if key != "mask"})
    return extend(outputs), {**padded, "mask": np.arange(ROWS) < len(outputs)}


def changed(array, where, value):
    array = array.copy()
    array[where] = value
    return array


def cut(outputs, batch, *bounds):
    """Return what an objective computes of parts of a batch, each padded to the same number of rows."""
    return [
        pad(outputs[start:stop], {key: value[start:stop] for key, value in batch.items()})
        for start, stop in itertools.pairwise(bounds)
    ]


def assert_close(actual, expected, tolerance=2e-6):
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


@every_objective
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_masked_examples_count_nowhere_whatever_they_hold(name, garbage):
    outputs, batch = make_batch(name, SIZE)
    plain, padded = COMPUTE[name](outputs, batch), COMPUTE[name](*pad(outputs, batch, garbage))
    assert_close(padded["mean"], plain["mean"])
    assert_close(padded["gradient"][:SIZE], plain["gradient"])
    assert np.all(padded["gradient"][SIZE:] == 0)
    assert_close(padded["metrics"], plain["metrics"])


@every_objective
def test_weight_zero_counts_nowhere_whatever_is_there(name):
    outputs, batch = make_batch(name, SIZE)
    padded_outputs, padded = pad(outputs, batch)
    weights = padded["weights"]
    live = padded["mask"].reshape(-1, *[1] * (weights.ndim - 1))
    padded |= {"weights": np.where(live, weights, np.float32(0)), "mask": np.ones(ROWS, bool)}
    found, expected = COMPUTE[name](padded_outputs, padded), COMPUTE[name](outputs, batch)
    assert_close(found["mean"], expected["mean"])
    assert_close(found["metrics"], expected["metrics"])


def test_steps_after_a_series_end_count_nowhere_whatever_they_hold():
    outputs, batch = make_batch("token", SIZE)
    short = {key: value[:, :2] if value.ndim > 1 else value for key, value in batch.items()}
    expected = COMPUTE["token"](outputs[:, :2], short)
    last = np.s_[:, 2]
    batch |= {"weights": changed(batch["weights"], last, 0), "targets": changed(batch["targets"], last, -1)}
    found = COMPUTE["token"](changed(outputs, last, np.nan), batch)
    assert_close(found["mean"], expected["mean"])
    assert_close(found["metrics"], expected["metrics"])
    assert np.all(found["gradient"][:, 2] == 0)
    assert np.all(np.isfinite(found["gradient"]))


@every_objective
def test_a_batch_in_which_nothing_counts_gives_zero_and_no_gradient(name):
    outputs, batch = make_batch(name, SIZE)
    found = COMPUTE[name](outputs, batch | {"mask": np.zeros(SIZE, bool)})
    assert found["mean"] == 0.0
    assert np.all(found["gradient"] == 0)
    assert_close(found["states"], OBJECTIVES[name].empty(), 0.0)
    assert all(np.isfinite(value) for value in found["metrics"].values())


@every_objective
def test_an_example_that_counts_and_is_nan_makes_the_loss_nan(name):
    outputs, batch = make_batch(name, SIZE)
    assert np.isnan(COMPUTE[name](changed(outputs, 0, np.nan), batch)["mean"])


@every_objective
def test_batches_merge_to_the_metrics_of_the_whole_in_any_grouping(name):
    outputs, batch = make_batch(name, 20)
    whole = COMPUTE[name](outputs, batch)["metrics"]
    a, b, c, d = (COMPUTE[name](*part)["states"] for part in cut(outputs, batch, 0, 4, 5, 13, 20))
    empty, merge, compute = OBJECTIVES[name].empty(), MERGE[name], METRICS[name]
    left = merge(merge(merge(merge(empty, a), b), c), d)
    right = merge(a, merge(b, merge(c, merge(d, empty))))
    assert_close(left, right)
    assert_close(compute(left), whole)
    assert_close(compute(right), whole)


@every_objective
def test_states_keep_their_types_through_a_compiled_loop(name):
    outputs, batch = make_batch(name, SIZE)
    objective = OBJECTIVES[name]

    def one(_, states):
        return objective.merge(states, objective.evaluate(outputs, batch)[1])

    merged = jax.jit(lambda states: jax.lax.fori_loop(0, 3, one, states), donate_argnums=0)(objective.empty())
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, objective.empty())
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("float32")}
    assert_close(METRICS[name](merged), COMPUTE[name](outputs, batch)["metrics"])


@every_objective
def test_totals_of_microbatches_add_up_to_the_batchs_mean(name):
    outputs, batch = make_batch(name, ROWS)
    first, second = (COMPUTE[name](*part) for part in cut(outputs, batch, 0, 2, ROWS))
    mean = (first["total"] + second["total"]) / (first["weight"] + second["weight"])
    assert_close(mean, COMPUTE[name](outputs, batch)["mean"])


def test_an_objective_can_stand_under_vmap_over_members_of_a_population():
    objective = OBJECTIVES["softmax"]
    outputs, batch = make_batch("softmax", SIZE)
    members = np.stack([outputs, 2 * outputs])
    found = jax.jit(jax.vmap(everything(objective), (0, None)))(members, batch)
    assert_close(found["mean"][1], COMPUTE["softmax"](2 * outputs, batch)["mean"])
    assert found["metrics"]["accuracy"].shape == (2,)


def test_an_objective_of_ones_own_takes_any_outputs_and_is_masked_too():
    def loss(outputs, batch):
        errors = (outputs["mean"] - batch["targets"]["y"]) ** 2
        return errors, objectives.example_weights(batch, errors.shape)

    objective = objectives.Objective(loss)
    outputs = {"mean": jnp.array([1.0, jnp.nan])}
    batch = {"targets": {"y": jnp.array([3.0, jnp.nan])}, "mask": jnp.array([True, False])}
    gradient, states = jax.grad(objective.evaluate, has_aux=True)(outputs, batch)
    assert gradient["mean"].tolist() == [-4.0, 0.0]
    assert objective.compute(states) == {"loss": 4.0}


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
