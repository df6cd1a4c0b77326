"""How long a run takes: what is counted beside its steps, against trainings that were run."""

import dataclasses

import numpy as np
import pytest

import accelnet as an
from accelnet.planning.modelled.run_time import NOT_COUNTED, num_evaluation_batches, num_validations, run_time
from accelnet.planning.plan import plan
from accelnet.planning.targets.target import find_target
from tests.planning.conftest import make_experiment, random_data


def run_of(experiment, target="h100", **settings):
    given = {"step_seconds": 2.0, "eval_batch_seconds": 0.5, "eval_batch_size": 10, "compile_seconds": 7.0}
    return run_time(experiment, find_target(target).accelerator, **(given | {"streamed": False} | settings))


def test_the_parts_add_up_to_the_whole():
    experiment = make_experiment(steps=3)  # 76 + 10 + 10 rows: 8 + 1 + 1 batches at the end, 1 in the third step
    sizes = {name: len(rows) for name, rows in experiment.data.splits.items()}
    run = run_of(experiment)
    batches = sum(-(-size // 10) for size in sizes.values()) + -(-sizes["validation"] // 10)
    assert (run.compile, run.train, run.evaluation) == (7.0, 6.0, 0.5 * batches)
    assert run.input == pytest.approx(experiment.data.nbytes / 15e9)
    assert run.total == run.compile + run.train + run.evaluation + run.input
    assert run.to_dict().keys() == {"compile_seconds", "train_seconds", "evaluation_seconds", "input_seconds"}
    unknown = dataclasses.replace(run, compile=None)
    assert unknown.total == run.total - 7.0


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 7},
        {"steps": 8, "eval_every": an.Every(steps=3)},
        {"steps": 9, "eval_every": an.Every(steps=3)},
        {"steps": None, "epochs": 2},
        {"steps": None, "epochs": 3, "eval_every": an.Every(epochs=0.5)},
        {"steps": 5, "eval_every": an.Every(epochs=0.01)},
        {"steps": 160},  # 53 epochs: every second
    ],
    ids=str,
)
def test_validations_are_counted_as_the_training_does_them(settings):
    experiment = make_experiment(**settings)
    run = an.fit(experiment, progress=False)
    done = sum(row["split"] == "validation" for row in run.rows)
    assert num_validations(experiment, 0.0) == done


def test_a_rhythm_of_seconds_depends_on_the_steps_time():
    experiment = make_experiment(eval_every=an.Every(seconds=60.0))
    assert num_validations(experiment, 150.0) == 3  # two, and one at the end


def test_without_a_validation_split_only_the_end_is_evaluated():
    data = an.data.from_arrays(
        np.zeros((40, 12), np.float32), np.arange(40) % 5, num_classes=5, validation=0.0, test=0.0, normalize=False
    )
    assert num_evaluation_batches(make_experiment(data=data, eval_every=None), 16, 1.0) == 3


def test_batches_that_come_more_slowly_than_they_are_computed_are_waited_for():
    experiment = make_experiment(data=random_data(1000, rows=96), steps=10, batch_size=32)
    row = 1000 * 4 + 4
    fast = run_of(experiment, streamed=True, step_seconds=1e-6, eval_batch_seconds=1.0)
    nbytes = experiment.data.nbytes / experiment.data.num_rows
    assert nbytes == pytest.approx(row, rel=0.01)
    assert fast.input == pytest.approx(10 * (32 * nbytes / 15e9 - 1e-6))
    assert run_of(experiment, streamed=True).input == 0.0  # hidden behind the computing


def test_a_plans_run_and_its_price_are_of_the_whole(experiment):
    (row,) = plan(experiment, "h100", compile=False, progress=False).rows
    assert row.run_seconds == row.run.total > row.time.expected * experiment.total_steps
    assert row.run.compile is None
    assert row.eval_seconds > 0
    assert row.usd_per_run == pytest.approx(row.target.usd_per_hour * row.run_seconds / 3600)
    assert row.to_dict()["run_parts"] == row.run.to_dict()


@pytest.mark.slow
def test_a_compiled_plan_counts_compiling_and_says_what_it_leaves_out(experiment):
    made = plan(experiment, "cpu", progress=False)
    (row,) = made.rows
    assert row.run.compile == row.compile_seconds > 0.1
    assert row.run_seconds == row.run.total > row.run.compile
    document = made.to_dict()
    assert document["run_leaves_out"] == list(NOT_COUNTED)
    text = " ".join(str(made).split())
    assert "run leaves out: starting machines and processes" in text
    assert "checkpoints" in text
