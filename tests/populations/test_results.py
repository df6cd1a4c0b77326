"""population.json: what was finished comes back, and a file of wrong content is one message."""

import json

import numpy as np
import pytest

from accelnet.errors import UserError
from accelnet.populations.members import Member
from accelnet.populations.results import PopulationFile, PopulationRun
from tests.damage import damaged, read_or_message

MEMBERS = [{"seed": 0, "learning_rate": 0.1}, {"seed": 1, "learning_rate": 0.2}]
DESCRIPTION = {"experiment": {"name": "a"}, "members": MEMBERS}


def population_file(folder):
    return PopulationFile(folder, DESCRIPTION, ("loss", "accuracy"), 3)


def finished():
    curves = {name: np.arange(6.0).reshape(3, 2) for name in ("loss", "accuracy")}
    metrics = {"test": {"loss": np.array([1.0, np.nan]), "accuracy": np.array([0.5, 1.0])}}
    values = {"curves": curves, "train": curves, "metrics": metrics, "failed": np.array([-1, 2])}
    run = PopulationRun(
        tuple(Member(member["seed"], {"learning_rate": member["learning_rate"]}) for member in MEMBERS),
        "validation", np.array([0, 5, 10]), **values, seconds=1.5, compile_seconds=0.5,
        compiles={"init": 1, "train": 1, "eval": 1}, wave_size=2, num_parameters=7,
    )  # fmt: skip
    return run, {**values, "seconds": 1.5}


def test_a_finished_population_comes_back(tmp_path):
    run, wave = finished()
    file = population_file(tmp_path)
    assert file.read() is None
    file.waves = [wave]
    file.write(run)
    found = population_file(tmp_path).read()
    assert found.members == run.members and found.compiles == run.compiles and found.wave_size == 2
    np.testing.assert_array_equal(found.curves["loss"], run.curves["loss"])
    np.testing.assert_array_equal(found.metrics["test"]["loss"], run.metrics["test"]["loss"])
    assert found.failed.tolist() == [-1, 2] and found.steps.tolist() == [0, 5, 10]


@pytest.mark.parametrize("unfinished", [True, False])
def test_a_damaged_file_is_one_message_or_of_the_right_form(tmp_path, unfinished):
    run, wave = finished()
    file = population_file(tmp_path)
    file.waves = [wave]
    file.write(None if unfinished else run)
    good, refused, read = json.loads(file.path.read_text()), 0, 0
    for content in damaged(good):
        file.path.write_text(json.dumps(content))
        again = population_file(tmp_path)
        found, message = read_or_message(again.read)
        if message is not None:
            refused += 1
            assert message.startswith(str(file.path))
            continue
        read += 1
        arrays = [*found.curves.values(), *found.train.values()] if found else []
        assert all(array.shape == (3, 2) and array.dtype == np.float64 for array in arrays)
        assert all(len(one["failed"]) == 2 and set(one["curves"]) >= {"loss", "accuracy"} for one in again.waves)
    assert refused > 3 * read > 0


def test_a_population_of_other_settings_is_named_by_what_differs(tmp_path):
    file = population_file(tmp_path)
    file.write()
    other = PopulationFile(tmp_path, DESCRIPTION | {"members": MEMBERS[:1], "more": 1}, ("loss",), 3)
    with pytest.raises(UserError, match=r"is of another population, which differs in members, more: give another"):
        other.read()
    content = json.loads(file.path.read_text())
    content["description"]["older"] = 1
    file.path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"differs in older: give another"):
        population_file(tmp_path).read()
