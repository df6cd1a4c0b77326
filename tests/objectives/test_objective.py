"""What holds for every objective and metric: masks, merging, types."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet import objectives

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
    chex.assert_shape(found["metrics"]["accuracy"], (2,))


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
