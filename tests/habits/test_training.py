"""Daily habits of training, each as docs/habits.md tells it."""

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import accelnet as an
from tests.habits.conftest import DATA, X, small, small_model


def validations(run):
    return [row for row in run.rows if row["split"] == "validation"]


def test_train_and_watch_the_validation(capsys):
    experiment = small()
    run = an.fit(experiment)
    assert run.step == 24 and [row["step"] for row in validations(run)] == [12, 24]
    assert "val accuracy" in capsys.readouterr().err


def test_resume(run):
    experiment = small()
    halfway = an.Event(an.Every(epochs=1), lambda moment: moment.step == 12)
    assert an.fit(experiment, workdir="runs/b", events=[halfway], progress=False).step == 12
    resumed = an.fit(experiment, workdir="runs/b", resume=True, progress=False)
    chex.assert_trees_all_equal(resumed.params, run.params)


def test_keep_the_last_and_the_best_checkpoint():
    experiment = small(epochs=4, keep_last=2, keep_best=1)
    run = an.fit(experiment, workdir="runs/kept", progress=False)
    best = min(validations(run), key=lambda row: row["loss"])
    assert run.best.metrics["validation"]["loss"] == pytest.approx(best["loss"], rel=1e-5)
    again = an.evaluate(experiment, "runs/kept", best=True, splits=[])
    assert again.step == run.best.step == best["step"]


def test_stop_early():
    patient = an.EarlyStopping("loss", patience=2, min_delta=1.0, restore_best=True)
    run = an.fit(small(epochs=6, early_stopping=patient), progress=False)
    losses = [row["loss"] for row in validations(run)]
    assert len(losses) == 3  # the loss begins below 1, and cannot fall by 1
    assert run.metrics["validation"]["loss"] == pytest.approx(min(losses), rel=1e-5)


def test_seed_everything(run):
    again, other = (an.fit(small(seed=seed), progress=False) for seed in (0, 1))
    chex.assert_trees_all_equal(again.params, run.params)
    assert other.rows[0]["loss"] != run.rows[0]["loss"]


def test_find_a_learning_rate(command):
    assert "learning_rate" in command("tune learning_rate --points 4 --epochs 8 --quiet")


def test_find_a_batch_size(command):
    assert "batch" in command("find-batch --points 2 --quiet")


def test_schedule_the_learning_rate():
    optimizer = an.optim.adam(1e-2, schedule=an.optim.schedules.warmup_cosine())
    rates = [
        row["learning_rate"]
        for row in an.fit(small(optimizer=optimizer), progress=False).rows
        if "learning_rate" in row
    ]
    assert max(rates) > 0.9e-2 and rates[-1] < 1e-3


def test_lower_the_rate_on_a_plateau():
    optimizer = optax.chain(an.optim.sgd(0.1), an.optim.reduce_on_plateau(patience=1))
    run = an.fit(small(optimizer=optimizer), progress=False)
    assert an.optim.learning_rate(run.state.opt_state) < 0.1


def test_train_in_mixed_precision(run):
    half = an.fit(small(precision="bfloat16"), progress=False)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"float32"}
    assert half.metrics["test"]["loss"] != run.metrics["test"]["loss"]
    assert half.metrics["test"]["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=0.05)


def test_accumulate_gradients(run):
    parts = an.fit(small(microbatch_size=4), progress=False)
    chex.assert_trees_all_close(parts.params, run.params, rtol=1e-4, atol=1e-6)  # sums in another order


def moved(experiment):
    """Return how far one update moves each part of the weights: norm and largest element."""
    starts = []
    keep = an.Event("start", lambda moment: starts.append(jax.tree.map(np.array, moment.state.params)))
    run = an.fit(experiment.replace(epochs=None, steps=1, events=[keep]), progress=False)
    ways = jax.tree.map(lambda new, old: np.abs(new - old), run.params, starts[0])
    return {
        part: (optax.tree.norm(way), max(leaf.max() for leaf in jax.tree.leaves(way))) for part, way in ways.items()
    }


def test_clip_gradients():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), an.optim.sgd(1e-3))
    steep = small(
        data=an.data.from_arrays(1e3 * X, X[:, 0], normalize=False), optimizer=optimizer,
        objective=an.objectives.squared_error(), model=lambda rngs: an.models.MLP(8, (), 1, rngs=rngs),
    )  # fmt: skip
    ((norm, _),) = moved(steep).values()
    assert norm == pytest.approx(1e-3, rel=1e-3)  # the gradient's own is in the thousands


def test_average_the_weights():
    optimizer = optax.chain(an.optim.adam(1e-2), an.optim.average_params(0.9))
    run = an.fit(small(optimizer=optimizer), progress=False)
    average = an.optim.eval_params(run.state.opt_state, run.state.params)
    chex.assert_trees_all_equal(run.params, average)
    assert not np.array_equal(average["head"]["kernel"], run.state.params["head"]["kernel"])


def test_train_on_many_devices(run):
    spread = an.fit(small(), mesh="data=8", progress=False)
    assert len(jax.tree.leaves(spread.state.params)[0].sharding.device_set) == 8
    chex.assert_trees_all_close(spread.params, run.params, rtol=1e-4, atol=1e-6)  # sums in another order


def test_stop_when_the_loss_is_nan():
    with pytest.raises(an.DivergenceError, match="Lower the learning rate"):
        an.fit(small(optimizer=an.optim.sgd(1e30)), progress=False)


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(8, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.first(x))))


def test_bring_a_module_of_your_own():
    run = an.fit(small(model=lambda rngs: Net(rngs=rngs)), progress=False)
    assert isinstance(run.model, Net) and run.model(X[:3]).shape == (3, 2)


def loss(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["targets"])


def test_bring_a_loss_of_your_own(run):
    own = an.fit(small(objective=loss), progress=False)
    assert own.metrics["test"]["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-5)


def test_bring_a_metric_of_your_own():
    def margin(outputs, batch):
        return abs(outputs[:, 0] - outputs[:, 1])

    run = an.fit(small(objective=an.objectives.Objective(loss, {"margin": margin})), progress=False)
    rows = DATA.take(np.asarray(DATA.splits["test"]))
    outputs = np.asarray(run.predict(rows["inputs"]))
    assert run.metrics["test"]["margin"] == pytest.approx(np.abs(outputs[:, 0] - outputs[:, 1]).mean(), rel=1e-5)


def test_call_back_during_training():
    told = []

    def tell(moment):
        told.append(moment.step)
        moment.log(doubled=2.0 * moment.step)

    run = an.fit(small(events=[an.Event(an.Every(epochs=1), tell)]), progress=False)
    assert told == [12, 24] and [row["doubled"] for row in run.rows if row["split"] == "event"] == [24.0, 48.0]


def test_freeze_layers(run):
    tuned = an.fit(small(initial=run, frozen=["layers.*"]), progress=False)
    chex.assert_trees_all_equal(tuned.params["layers"], run.params["layers"])
    assert not np.array_equal(tuned.params["head"]["kernel"], run.params["head"]["kernel"])


def test_fine_tune_from_other_weights(run):
    wider = small(
        model=lambda rngs: an.models.MLP(8, (4,), 3, rngs=rngs), initial=an.Initial("runs/a", paths=["layers.*"]),
        frozen=["layers.*"], data=an.data.from_arrays(X, np.arange(120) % 3, num_classes=3),
    )  # fmt: skip
    tuned = an.fit(wider, progress=False)
    chex.assert_trees_all_equal(tuned.params["layers"], run.params["layers"])
    chex.assert_shape(tuned.params["head"]["kernel"], (4, 3))


def test_give_each_part_a_rate_of_its_own():
    def labels(params):
        return {name: jax.tree.map(lambda _, name=name: name, part) for name, part in params.items()}

    optimizer = optax.multi_transform({"head": an.optim.adam(1e-2), "layers": an.optim.adam(1e-3)}, labels)
    way = moved(small(optimizer=optimizer))
    assert way["head"][1] / way["layers"][1] == pytest.approx(
        10, rel=1e-2
    )  # Adam's first update is as long as its rate


def test_weigh_classes():
    objective = an.objectives.softmax_cross_entropy(class_weights=[1, 5])
    run = an.fit(small(objective=objective), progress=False)
    rows = DATA.take(np.asarray(DATA.splits["test"]))
    losses = optax.softmax_cross_entropy_with_integer_labels(run.predict(rows["inputs"]), rows["targets"])
    weights = np.where(rows["targets"] == 1, 5, 1)
    assert run.metrics["test"]["loss"] == pytest.approx(np.average(losses, weights=weights), rel=1e-5)


def test_look_at_the_layers(command):
    table = command("summary")
    assert "head" in table and "46" in table  # 8 x 4 + 4 + 4 x 2 + 2 parameters
    assert "46" in str(an.models.summary(small_model, X[:1]))
