"""Short trainings that ask whether a long one is worth starting."""

import pytest

import accelnet as an
from accelnet.errors import UserError
from accelnet.training.trial import overfitting, rehearsal, rehearse


def test_a_rehearsal_finds_what_is_not_part_of_the_state(make_experiment, tmp_path):
    experiment = make_experiment(epochs=5)

    def forgetful(short, directory, **named):
        an.fit(make_experiment(steps=4, seed=1), workdir=tmp_path / "other", progress=False)
        return an.evaluate(short.replace(seed=1), tmp_path / "other", **named)

    def train(short, directory):
        return an.fit(short, workdir=directory, progress=False)

    assert rehearse(experiment, train, an.evaluate).step == 2
    with pytest.raises(UserError, match="something that is not part of the state"):
        rehearse(experiment, train, forgetful)


def test_short_trainings_see_few_rows_and_leave_the_experiment_alone(make_experiment):
    experiment = make_experiment(epochs=5)
    short, few = rehearsal(experiment), overfitting(experiment, 2)
    assert {split: len(rows) for split, rows in short.data.splits.items()} == {
        "train": 16,
        "validation": 13,
        "test": 13,
    }
    assert {split: len(rows) for split, rows in few.data.splits.items()} == {"train": 16, "validation": 16, "test": 0}
    assert few.total_steps == experiment.total_steps and few.data.augment is None
    assert experiment.data.augment is not None and experiment.data.num_examples("train") == 50
