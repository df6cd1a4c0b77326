"""One small experiment and one finished run, which the habits share."""

import shlex
from dataclasses import dataclass

import numpy as np
import pytest

import accelnet as an

_rng = np.random.default_rng(0)
X = _rng.normal(size=(120, 8)).astype(np.float32)
Y = (X[:, :4].sum(axis=1) > 0).astype(np.int32)

# The same objects in every experiment: their programs are compiled once.
DATA = an.data.from_arrays(X, Y, num_classes=2)
OPTIMIZER = an.optim.adam(1e-2)
OBJECTIVE = an.objectives.softmax_cross_entropy()


def small_model(rngs):
    return an.models.MLP(8, (4,), 2, rngs=rngs)


def small(**changes):
    settings = {
        "data": DATA, "model": small_model, "optimizer": OPTIMIZER, "objective": OBJECTIVE, "batch_size": 8, "epochs": 2
    }  # fmt: skip
    return an.Experiment(**settings | changes)


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-2
    epochs: float = 2


def script(config: Config) -> an.Experiment:
    return small(optimizer=an.optim.adam(config.learning_rate), epochs=config.epochs)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("habits")


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch, no_pictures):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="session")
def run(folder):
    """Return a run that lies in runs/a."""
    return an.fit(small(), workdir=folder / "runs/a", progress=False)


@pytest.fixture
def command(capsys):
    """Return a function that runs a line after `python script.py`, and returns what it prints."""

    def run(line):
        capsys.readouterr()
        an.main(script, shlex.split(line))
        return capsys.readouterr().out

    return run
