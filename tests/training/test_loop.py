"""The loop: chunks, events, metrics, compilations."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import accelnet as an
from accelnet.training.compiled import RecompilationError
from accelnet.training.evaluator import Evaluator
from accelnet.training.program import prepare
from accelnet.training.rhythm import Pace

TIMES = ("seconds", "examples_per_second")
STEPWISE = Pace(chunk_seconds=1e-9)  # chunks of one step


def fit(experiment, **options):
    return an.fit(experiment, progress=False, **options)


def same(a, b):
    chex.assert_trees_all_equal(a.state, b.state)
    assert a.metrics == b.metrics


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_cutting_the_run_at_other_places_changes_no_bit(make_experiment, microbatch_size):
    experiment = make_experiment(microbatch_size=microbatch_size)
    long = fit(experiment)
    short = fit(experiment, pace=STEPWISE)
    same(long, short)
    assert without_times(long.rows) == without_times(short.rows)


def test_streamed_data_trains_the_same_bits_as_data_on_the_device(make_experiment):
    on_device, streamed = fit(make_experiment(on_device=True)), fit(make_experiment(on_device=False))
    same(on_device, streamed)
    assert without_times(on_device.rows) == without_times(streamed.rows)


def test_a_run_compiles_one_train_chunk_and_one_eval_chunk(make_experiment):
    run = fit(make_experiment())
    assert run.result["compiles"] == {"train": 1, "eval": 1, "weights": 1}
    assert len(run.rows) > 10


def test_a_second_compilation_is_an_error_that_says_what_differs(make_experiment):
    _, programs = prepare(make_experiment())
    state = programs.init(np.uint32(0))
    state = state.replace(params={**state.params, "first": {**state.params["first"], "kernel": jnp.ones((16, 13))}})
    with pytest.raises(RecompilationError, match=r"(?s)'train' would have to be compiled again.*float32\[16, 13\]"):
        programs.train(state, None, np.int32(1), np.bool_(False))


def test_changing_the_learning_rate_compiles_nothing(make_experiment):
    experiment = make_experiment(steps=5)
    feed, programs = prepare(experiment)
    results = []
    for rate in (1e-2, 1e-3):
        state = programs.init(np.uint32(0))
        state = state.replace(opt_state=an.optim.with_hyperparams(state.opt_state, learning_rate=rate))
        state, report = programs.train(state, feed.train_operand(0, 5), np.int32(5), np.bool_(False))
        assert float(report["rates"]["learning_rate"]) == pytest.approx(rate)
        results.append(state.params["last"]["kernel"])
    assert programs.train.compiles == 1
    assert not np.array_equal(*results)


def test_metrics_are_exact_over_every_example_whatever_the_batch(make_experiment):
    run = fit(make_experiment(steps=10))
    for split, rows in run.experiment.data.splits.items():
        batch = run.experiment.data.take(np.asarray(rows))
        logits = run.predict(batch["inputs"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        assert run.metrics[split]["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
        hits = np.argmax(logits, axis=1) == batch["targets"]
        assert run.metrics[split]["accuracy"] == pytest.approx(hits.mean())


def test_a_training_row_averages_all_steps_since_the_last(make_experiment):
    every = fit(make_experiment(log_every=an.Every(steps=1), steps=10, eval_every=an.Every(steps=100)))
    fifth = fit(make_experiment(log_every=an.Every(steps=5), steps=10, eval_every=an.Every(steps=100)))
    ones = [row for row in every.rows if row["split"] == "train"]
    fives = [row for row in fifth.rows if row["split"] == "train"]
    sizes = [2 if step == 7 else 8 for step in range(1, 11)]  # 50 examples in batches of 8
    for row, part in zip(fives, (slice(0, 5), slice(5, 10)), strict=True):
        expected = np.average([r["loss"] for r in ones[part]], weights=sizes[part])
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_events_fire_at_their_steps_and_can_stop_the_run(make_experiment):
    seen = []
    events = [
        an.Event(an.Every(steps=3), lambda moment: seen.append(("steps", moment.step))),
        an.Event(an.Every(epochs=1), lambda moment: seen.append(("epochs", moment.epoch))),
        an.Event(an.Every(steps=11), lambda moment: moment.step == 11),
    ]
    run = fit(make_experiment(), events=events)
    assert run.step == 11
    assert seen == [("steps", 3), ("steps", 6), ("epochs", 1.0), ("steps", 9)]


@pytest.mark.parametrize(("every", "expected"), [({"epochs": 0.5}, [4, 7, 10, 14]), ({"epochs": 0.01}, [1, 2, 3, 4])])
def test_epochs_round_to_whole_steps(every, expected):
    steps, step = [], 0
    for _ in range(4):
        step = an.Every(**every).next_step(step, 7)
        steps.append(step)
    assert steps == expected


def test_events_by_seconds_fire_between_chunks(make_experiment):
    seen = []
    fit(
        make_experiment(),
        pace=STEPWISE,
        events=[an.Event(an.Every(seconds=1e-6), lambda moment: seen.append(moment.step))],
    )
    assert len(seen) > 5


def test_early_stopping_stops_when_nothing_becomes_better(make_experiment):
    experiment = make_experiment(
        optimizer=an.optim.sgd(0.0), epochs=50, early_stopping=an.EarlyStopping("accuracy", patience=3)
    )
    assert fit(experiment).step == 4 * 7


def test_a_loss_that_becomes_nan_stops_with_step_norms_and_last_good_checkpoint(make_experiment, make_data, tmp_path):
    data = make_data(augment=False)
    order = make_experiment(data=data).order
    poisoned = int(order.rows(np.int32(9), 0, seed=0)[0][3])  # an example of the tenth step, met in the first epoch too
    first = next(
        step for step in range(7) if poisoned in order.rows(np.int32(step), 0, seed=0)[0][: 2 if step == 6 else 8]
    )
    images = data.arrays["inputs"].copy()
    images[poisoned] = 255
    data = dataclasses.replace(
        data,
        arrays={**data.arrays, "inputs": images},
        prepare=lambda batch: {**batch, "inputs": jnp.where(batch["inputs"] == 255, jnp.inf, batch["inputs"] / 100.0)},
    )
    with pytest.raises(an.DivergenceError) as caught:
        fit(make_experiment(data=data, save_every=an.Every(steps=1)), workdir=tmp_path / "run")
    message = str(caught.value)
    assert f"the loss became nan at step {first + 1} " in message
    assert "norm of the gradients was nan and that of the weights " in message
    assert (f"The last good checkpoint is {tmp_path}/run/checkpoints/{first}" if first else "None was saved") in message


def test_weights_spoiled_by_the_very_last_update_are_a_failure_too(make_experiment, tmp_path):
    experiment = make_experiment(optimizer=optax.sgd(1e38), steps=1)
    with pytest.raises(
        an.DivergenceError, match=r"the update at step 1 .* made the global norm of the weights .*None was"
    ):
        fit(experiment, workdir=tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_noise_has_no_say_in_evaluation_and_batch_one_trains(make_experiment):
    run = fit(make_experiment(batch_size=1, steps=30))
    assert run.result["step"] == 30
    assert np.isfinite(run.metrics["test"]["loss"])


def test_the_work_directory_holds_all_results(make_experiment, tmp_path):
    run = fit(make_experiment(config={"rate": 0.1}), workdir=tmp_path / "run")
    names = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "curves.png",
        "result.json",
    } <= names
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result == json.loads(json.dumps(run.result))
    assert result["config"] == {"rate": 0.1} and result["experiment"] == "toy" and result["epochs"] == 6
    assert set(result["metrics"]) == {"train", "validation", "test"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.rows


def test_the_test_split_is_touched_once(make_experiment, monkeypatch):
    splits = []
    evaluate = Evaluator.evaluate
    monkeypatch.setattr(
        Evaluator,
        "evaluate",
        lambda self, state, split: splits.append(split) or evaluate(self, state, split),
    )
    fit(make_experiment())
    assert splits.count("test") == 1 and splits[-1] == "test"


def test_a_run_without_held_out_data_works(make_experiment):
    data = an.data.xor()
    experiment = make_experiment(
        data=data,
        model=lambda rngs: nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)),
        objective=an.objectives.squared_error(),
        batch_size="full",
    )
    run = fit(experiment)
    assert run.metrics["validation"] == {} and "loss" in run.metrics["train"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected a finite number above 0"),
        ({"epochs": None, "steps": 0}, "steps is 0, expected a whole number from 1 to 2147483647"),
        ({"epochs": None}, "give exactly one"),
        ({"batch_size": 51}, "batch_size 51 is larger than the training split of 50"),
        ({"batch_size": 8, "microbatch_size": 9}, "microbatch_size 9 is larger than batch_size 8"),
        ({"batch_size": "all"}, 'expected a whole number or "full"'),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "float8"}, "precision is 'float8', expected one of 'float32'"),
        ({"best_metric": "acuracy"}, "best_metric is 'acuracy', expected one of 'loss', 'accuracy'; did you mean"),
        ({"keep_last": 0}, "keep_last is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(make_experiment, change, message):
    with pytest.raises(an.UserError, match=message):
        make_experiment(**change)


def test_a_longer_run_traces_its_loss_no_more_often(make_experiment):
    """Chunks, epochs and evaluations after the first are the same programs."""
    traced = []

    def loss(outputs, batch):
        traced.append(isinstance(outputs, jax.core.Tracer))
        return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, batch["targets"])

    def train(loss, epochs):
        fit(make_experiment(objective=an.objectives.Objective(loss), epochs=epochs))

    train(loss, 1)
    most = sum(traced)
    train(chex.assert_max_traces(loss, n=most), 7)
    with pytest.raises(an.UserError, match="traced > "):
        train(chex.assert_max_traces(loss, n=most - 1), 1)
