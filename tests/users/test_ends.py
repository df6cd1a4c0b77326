"""Who owns what: the length, the seed, the direction of a metric, what was fitted, the splits at the end; events."""

import json

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import accelnet as an
from accelnet.parallel.mesh import make_mesh
from tests.users import toy

pytestmark = pytest.mark.usefixtures("no_pictures")


def linear(rngs):
    return nnx.Linear(8, 2, rngs=rngs)


def adam(**settings):
    return an.optim.adam(1e-2, **settings)


def rates(run):
    return [row["learning_rate"] for row in run.rows if row["split"] == "train"]


def test_a_schedule_of_progress_ends_where_the_experiment_ends():
    experiment = toy.experiment(
        linear, optimizer=adam(schedule=an.optim.schedules.cosine()), steps=None, epochs=20, log_every=an.Every(steps=1)
    )
    short = an.fit(experiment.replace(epochs=2), progress=False)
    factors = np.array(rates(short)) / 1e-2
    np.testing.assert_allclose(factors, (1 + np.cos(np.pi * np.arange(6) / 6)) / 2, atol=1e-6)


def test_the_rate_is_logged_per_group_and_is_none_where_no_state_shows_it():
    groups = {"slow": an.optim.adam(1e-4), "fast": an.optim.adam(1e-2)}
    run = toy.fit(linear, optimizer=optax.partition(groups, {"kernel": "slow", "bias": "fast"}))
    (row,) = [row for row in run.rows if row["split"] == "train"][-1:]
    assert row["learning_rate/slow"] == pytest.approx(1e-4) and row["learning_rate/fast"] == pytest.approx(1e-2)
    assert row["learning_rate"] is None
    assert rates(toy.fit(linear, optimizer=optax.adam(1e-2)))[-1] is None


@pytest.mark.slow
def test_other_steps_under_a_schedule_of_progress_are_a_named_change(tmp_path):
    def experiment(steps, schedule):
        return toy.experiment(linear, optimizer=adam(schedule=schedule), steps=steps)

    an.fit(experiment(3, an.optim.schedules.cosine()), workdir=tmp_path / "a", progress=False)
    with pytest.raises(an.UserError, match="steps was 3 and is 6"):
        an.fit(experiment(6, an.optim.schedules.cosine()), workdir=tmp_path / "a", resume=True, progress=False)
    an.fit(experiment(3, an.optim.schedules.constant()), workdir=tmp_path / "b", progress=False)
    run = an.fit(experiment(6, an.optim.schedules.constant()), workdir=tmp_path / "b", resume=True, progress=False)
    assert run.step == 6


def test_another_loss_or_rate_is_named_when_a_run_resumes(tmp_path):
    experiment = toy.experiment(linear)
    an.fit(experiment, workdir=tmp_path, progress=False)
    for change, name in (
        ({"objective": an.objectives.softmax_cross_entropy(label_smoothing=0.5)}, "objective"),
        ({"optimizer": optax.adam(1e-5)}, "optimizer"),
        ({"model": lambda rngs: nnx.Linear(8, 2, use_bias=True, rngs=rngs)}, "model"),
    ):
        with pytest.raises(an.UserError, match=f"changed: {name} is another"):
            an.fit(experiment.replace(steps=5, **change), workdir=tmp_path, resume=True, progress=False)
    assert an.fit(experiment.replace(steps=5), workdir=tmp_path, resume=True, progress=False).step == 5


@pytest.mark.slow
@pytest.mark.parametrize("on_device", [True, False])
def test_a_changed_seed_counts_on_both_feeds(on_device, tmp_path):
    experiment = toy.experiment(linear, on_device=on_device, optimizer=optax.sgd(0.1))
    an.fit(experiment, workdir=tmp_path, progress=False)
    changed = experiment.replace(seed=5, steps=6)
    run = an.fit(changed, workdir=tmp_path, resume=True, allow_change=True, progress=False)
    assert int(run.state.seed) == 5
    # By hand: the last three steps on the batches of the new seed.
    params = an.fit(experiment, progress=False).params

    @jax.jit
    @jax.grad
    def gradient(params, x, y):
        logits = x @ params["kernel"] + params["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    for step in (3, 4, 5):
        rows, mask = changed.order.rows(step, 0, seed=5)
        assert mask.all()
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params, toy.X[rows], toy.Y[rows]))
    chex.assert_trees_all_close(run.params, params, rtol=1e-4, atol=1e-6)


class Falling(an.objectives.Mean):
    """A metric that is named against its direction."""

    lower_is_better = True

    def values(self, outputs, batch, losses, weights):
        return losses, weights


@pytest.mark.slow
def test_the_best_checkpoint_follows_the_metrics_own_direction(tmp_path):
    objective = an.objectives.softmax_cross_entropy(metrics={"orbits_found": Falling()})
    experiment = toy.experiment(
        linear,
        objective=objective,
        best_metric="orbits_found",
        steps=12,
        eval_every=an.Every(steps=3),
        optimizer=adam(),
    )
    run = an.fit(experiment, workdir=tmp_path, progress=False)
    values = {row["step"]: row["orbits_found"] for row in run.rows if row["split"] == "validation"}
    assert run.best.step == min(values, key=values.get)
    assert json.loads((tmp_path / "config.json").read_text())["directions"]["orbits_found"] is True
    stopping = an.EarlyStopping("orbits_found", patience=2)
    assert not stopping.says_stop([{"split": "validation", "orbits_found": v} for v in (3.0, 2.0, 1.0)], True)


class Sometimes(an.objectives.Metric):
    """The loss, but NaN wherever its third decimal is even."""

    lower_is_better = True

    def empty(self):
        return {"total": jax.numpy.zeros(()), "weight": jax.numpy.zeros(())}

    def measure(self, outputs, batch, losses, weights):
        return {"total": (losses * weights).sum(), "weight": weights.sum()}

    def compute(self, state):
        value = state["total"] / state["weight"]
        return jax.numpy.where(jax.numpy.floor(value * 1000) % 2 == 0, jax.numpy.nan, value)


def test_nan_is_worst_in_every_ordering(tmp_path):
    objective = an.objectives.softmax_cross_entropy(metrics={"odd": Sometimes()})
    experiment = toy.experiment(
        linear, objective=objective, best_metric="odd", steps=8, eval_every=an.Every(steps=1), keep_last=1
    )
    run = an.fit(experiment, workdir=tmp_path, progress=False)
    values = {row["step"]: row["odd"] for row in run.rows if row["split"] == "validation"}
    known = {step: value for step, value in values.items() if value is not None}
    assert 0 < len(known) < len(values)
    assert run.best.step == min(known, key=known.get)
    assert an.fit(experiment, progress=False).best.step == run.best.step


def test_every_split_is_evaluated_at_the_end_unless_the_experiment_says_which():
    splits = {"train": range(20), "validation": range(20, 28), "test": range(28, 34), "ood": range(34, 40)}
    data = an.data.Data("toy", {"inputs": toy.X, "targets": toy.Y}, splits)
    run = toy.fit(linear, data)
    assert set(run.metrics) == {"train", "validation", "test", "ood"} and all(run.metrics.values())
    assert {row["split"] for row in run.rows} == {"train", "validation", "test", "ood"}
    chosen = toy.fit(linear, data, final_evaluation=["ood"])
    assert chosen.metrics["ood"] == run.metrics["ood"] and not chosen.metrics["train"]
    with pytest.raises(an.UserError, match=r"'tets', expected one of .* did you mean 'test'"):
        toy.experiment(linear, data, final_evaluation=["tets"])


class Counting(an.data.Data):
    def take(self, rows):
        self.info["read"].append(len(rows))
        return super().take(rows)


def test_ten_steps_on_a_large_set_do_not_read_the_whole_of_it():
    rows, read = 50_000, []
    arrays = {
        "inputs": np.broadcast_to(np.float32(1), (rows, 8)),
        "targets": np.broadcast_to(np.int32(1), (rows,)),
    }
    data = Counting(
        "big", arrays, {"train": range(rows - 100), "validation": range(rows - 100, rows)}, info={"read": read}
    )
    run = toy.fit(linear, data, steps=10, on_device=False)
    assert sum(read) < 20_000 and not run.metrics["train"] and run.metrics["validation"]


def test_events_of_the_experiment_log_evaluate_predict_save_and_stop(tmp_path):
    seen = []

    def look(moment):
        moment.log(twice=2.0 * moment.step)
        seen.append((moment.step, moment.evaluate("test")["loss"], moment.predict(toy.X[:3]).shape))
        moment.save()
        if moment.step == 4:
            moment.stop()

    happened = []
    events = [
        an.Event(an.Every(steps=2), look),
        an.Event("start", lambda moment: happened.append(("start", moment.step))),
        an.Event("end", lambda moment: happened.append(("end", moment.step))),
    ]
    experiment = toy.experiment(linear, steps=10, events=events, eval_every=an.Every(steps=100), keep_last=5)
    run = an.fit(experiment, workdir=tmp_path, progress=False)
    assert run.step == 4 and [step for step, *_ in seen] == [2, 4] and seen[0][2] == (3, 2)
    assert seen[-1][1] == run.metrics["test"]["loss"]
    assert [row["twice"] for row in run.rows if row["split"] == "event"] == [4.0, 8.0]
    assert happened == [("start", 0), ("end", 4)]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")) == [2, 4]


def test_an_event_that_fails_or_takes_a_field_of_the_rows_is_named():
    def fails(moment):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"mine\nraised by an event, .*fails, at step 1"):
        toy.fit(linear, events=[an.Event(an.Every(steps=1), fails)])
    with pytest.raises(an.UserError, match="logs step: these names are taken"):
        toy.fit(linear, events=[an.Event(an.Every(steps=1), lambda moment: moment.log(step=1))])


@pytest.mark.slow
def test_early_stopping_can_end_with_the_best_weights(tmp_path):
    experiment = toy.experiment(
        linear, steps=60, optimizer=an.optim.sgd(30.0), eval_every=an.Every(steps=1),
        early_stopping=an.EarlyStopping("loss", patience=3, restore_best=True),
    )  # fmt: skip
    for workdir in (tmp_path, None):
        run = an.fit(experiment, workdir=workdir, progress=False)
        values = {row["step"]: row["loss"] for row in run.rows if row["split"] == "validation"}
        best = min(values, key=values.get)
        assert max(values) > best == run.step == run.best.step
        assert run.metrics["validation"]["loss"] == pytest.approx(values[best], rel=1e-6)


def test_a_reload_never_normalizes_with_other_datas_statistics(tmp_path):
    old, new = (an.data.from_arrays(scale * toy.X + shift, toy.Y, num_classes=2) for scale, shift in ((1, 0), (3, 5)))
    run = an.fit(toy.experiment(linear, old), workdir=tmp_path, progress=False)
    again = an.evaluate(toy.experiment(linear, new), tmp_path)
    np.testing.assert_array_equal(run.predict(toy.X[:5]), again.predict(toy.X[:5]))
    assert again.experiment.data.fitted == old.fitted


def test_predictions_are_in_the_precision_of_the_run():
    from accelnet.evaluating.predictions import make_forward

    run = toy.fit(lambda rngs: an.models.MLP(8, (8,), 2, rngs=rngs), precision="bfloat16")
    batch = {"inputs": toy.X[:5], "targets": toy.Y[:5], "mask": np.ones(5, bool)}
    forward = make_forward(run.experiment)
    outputs = jax.jit(lambda *args: forward(*args)[0])(run.params, run.model_state, batch)
    np.testing.assert_array_equal(run.predict(toy.X[:5]), outputs)


def test_inputs_that_do_not_fit_are_refused_by_predict():
    run = toy.fit(linear)
    for inputs in (np.zeros((4, 7), np.float32), [["a"] * 8], np.zeros((0, 8)), 3.0, [[1, 2]]):
        with pytest.raises(an.UserError):
            run.predict(inputs)


@pytest.mark.slow
def test_averaged_weights_are_evaluated_with_statistics_of_their_own():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.norm, self.b = (
                nnx.Linear(8, 8, rngs=rngs),
                nnx.BatchNorm(8, rngs=rngs),
                nnx.Linear(8, 2, rngs=rngs),
            )

        def __call__(self, x):
            return self.b(nnx.relu(self.norm(self.a(x))))

    chain = optax.chain(optax.adam(3e-2), an.optim.average_params(0.9))
    run = toy.fit(Net, optimizer=chain, steps=12)
    assert run.result["compiles"] == {"train": 1, "eval": 1, "weights": 1}
    # The mean over the batches of the first epoch: of their means, and of their variances.
    order, hidden = run.experiment.order, []
    for step in range(order.steps_per_epoch):
        rows, _ = order.rows(step, 0, seed=0)
        hidden.append(toy.X[rows] @ np.asarray(run.params["a"]["kernel"]) + np.asarray(run.params["a"]["bias"])[None])
    np.testing.assert_allclose(
        run.model_state["norm"]["mean"], np.mean([h.mean(0) for h in hidden], 0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(run.model_state["norm"]["var"], np.mean([h.var(0) for h in hidden], 0), rtol=1e-4)
    assert not np.allclose(run.model_state["norm"]["mean"], run.state.model_state["norm"]["mean"])
    cut = an.fit(run.experiment, mesh=make_mesh({"data": 2}, jax.devices()[:2]), progress=False)
    assert cut.metrics["test"]["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-4)


def test_debugging_switches_of_jax_help():
    with jax.debug_nans(True):
        assert toy.fit(linear, optimizer=optax.adam(1e-2)).step == 3  # compiled under it
    with jax.disable_jit():
        run = toy.fit(linear, steps=2)
    assert run.metrics["test"] == pytest.approx(toy.fit(linear, steps=2).metrics["test"], rel=1e-5)
