"""A command line in this process, and small scripts for it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

import accelnet as an


class Done(NamedTuple):
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-2
    width: int = 4
    widths: tuple[int, ...] = (4,)
    dropout: float = 0.0
    steps: int = 4
    seed: int = 0


def small(config: Config) -> an.Experiment:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    return an.Experiment(
        data=an.data.from_arrays(x, (x[:, 0] > 0).astype(int), num_classes=2),
        model=lambda rngs: an.models.MLP(3, (config.width,), 2, dropout=config.dropout, rngs=rngs),
        optimizer=an.optim.adam(config.learning_rate),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=8,
        steps=config.steps,
        seed=config.seed,
    )


@pytest.fixture
def command(capsys):
    """Return a function that runs a command line of a script and says how it ended."""

    def run(function, *args, **options):
        capsys.readouterr()
        code = 0
        try:
            an.main(function, args, **options)
        except SystemExit as end:
            code = end.code
        return Done(code, *capsys.readouterr())

    return run
