"""Populations that are interrupted, go on, and are read again."""

import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.populations import population as population_module
from accelnet.populations.members import grid
from accelnet.populations.population import Population
from tests.populations.test_population import INPUTS, Config, _bytes, experiment


@pytest.mark.slow
def test_an_interrupted_population_goes_on_and_a_finished_one_is_read(tmp_path, monkeypatch):
    members = grid((0, 1), learning_rate=(0.01, 0.1, 1e30))
    population = Population(experiment, Config(), members, evaluations=5)
    whole = population.train(progress=False)

    def tell(moment):
        if moment.step == 12:
            signal.raise_signal(signal.SIGTERM)

    events = [an.Event(an.Every(steps=1), tell)]
    with pytest.raises(an.PreemptedError, match="the population is saved, the same command goes on"):
        population.train(progress=False, workdir=tmp_path, events=events)
    resumed = population.train(progress=False, workdir=tmp_path)
    np.testing.assert_array_equal(resumed.curves["loss"], whole.curves["loss"])
    np.testing.assert_array_equal(resumed.train["loss"], whole.train["loss"])
    assert resumed.compiles == {"init": 0, "train": 1, "eval": 1}  # it went on from a state

    monkeypatch.setattr(population_module, "make_programs", lambda *_: pytest.fail("it was finished"))
    again = population.train(progress=False, workdir=tmp_path)
    np.testing.assert_array_equal(again.curves["loss"], whole.curves["loss"])
    assert again.members == resumed.members and again.failed.tolist() == whole.failed.tolist()
    with pytest.raises(an.UserError, match="another population, which differs in members"):
        Population(experiment, Config(), members[:2], evaluations=5).train(progress=False, workdir=tmp_path)


@pytest.mark.slow
def test_a_wave_is_saved_by_the_clock_where_every_chunk_ends_with_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(population_module, "SAVE_SECONDS", 1e-9)

    def die(moment):
        if moment.step == 12:
            raise KeyboardInterrupt

    population = Population(experiment, Config(), grid((0,), learning_rate=(0.01, 0.1)), evaluations=15)
    with pytest.raises(KeyboardInterrupt):
        population.train(progress=False, workdir=tmp_path, events=[an.Event(an.Every(steps=1), die)])
    assert population.train(progress=False, workdir=tmp_path).compiles["init"] == 0  # it went on from a state


def test_a_split_that_is_not_there_and_a_prediction_are_mistakes():
    members = grid((0,), learning_rate=(0.01, 0.1))
    with pytest.raises(an.UserError, match="split of the population is 'valid'"):
        Population(experiment, Config(), members, split="valid").train(progress=False)
    with pytest.raises(an.UserError, match="one of the splits of the population is 'tset'"):
        Population(experiment, Config(), members, splits=("tset",)).train(progress=False)
    event = an.Event("end", lambda moment: moment.predict(INPUTS[:1]))
    with pytest.raises(an.UserError, match="its members have no one model"):
        Population(experiment, Config(), members).train(progress=False, events=[event])


@pytest.mark.slow
def test_finished_waves_are_kept(tmp_path):
    population = Population(experiment, Config(), grid((0, 1, 2), learning_rate=(0.01, 0.1)))
    devices = jax.devices()[:2]
    whole = population.train(progress=False, devices=devices)
    needed = int(_bytes(population, 3) * 0.7)
    calls = []

    def second_fails(moment):
        calls.append((moment.state.states.seed.tolist(), moment.state.values["learning_rate"].tolist()))
        if len(calls) == 2:
            raise KeyboardInterrupt

    given = {"devices": devices, "memory_bytes": needed, "workdir": tmp_path, "progress": False}
    given["events"] = [an.Event("start", second_fails)]
    with pytest.raises(KeyboardInterrupt):
        population.train(**given)
    run = population.train(**given)
    assert calls[2] == calls[1] and calls[0] != calls[1]
    np.testing.assert_allclose(run.curves["loss"], whole.curves["loss"], rtol=2e-5)


ORTHOGONAL = """
import dataclasses, jax, numpy as np, optax
jax.config.update("jax_num_cpu_devices", 2)
import accelnet as an
from accelnet.populations.members import grid
from accelnet.populations.population import Population

@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 0.1
    seed: int = 0

def experiment(config):
    data = an.data.from_arrays(np.ones((8, 4, 3), np.float32), np.arange(8) % 2, validation=0.0, test=0.0)
    return an.Experiment(
        data=data,
        model=lambda rngs: an.models.RNN(3, 32, 2, cell="gru", bidirectional=True, output="last", rngs=rngs),
        optimizer=optax.sgd(config.learning_rate), objective=an.objectives.softmax_cross_entropy(),
        batch_size=8, steps=2, seed=config.seed,
    )

run = Population(experiment, Config(), grid(range(8), learning_rate=(0.1, 0.2))).train(progress=False)
assert run.metrics["train"]["loss"].shape == (16,)
"""


@pytest.mark.slow
def test_members_with_orthogonal_weights_do_not_wait_for_each_other_for_ever():
    subprocess.run([sys.executable, "-c", ORTHOGONAL], check=True, timeout=120)
