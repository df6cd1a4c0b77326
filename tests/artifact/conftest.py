"""Runs of two steps, of every family of models, and their artifacts."""

import numpy as np
import pytest

import accelnet as an
from accelnet.artifact import model as model_module

RNG = np.random.default_rng(0)
SIZES = RNG.normal(5, 2, 80)
HUES = RNG.choice(["red", "green", "blue"], 80)
ROWS = {"size": SIZES, "hue": HUES, "price": np.exp(SIZES / 4) * (1 + (HUES == "red"))}
DOUBLE = {**ROWS, "left": np.where(SIZES > 5, "yes", "no")}
IMAGES = RNG.integers(0, 255, (60, 12, 12, 1)).astype(np.uint8)
CLASSES = np.arange(60) % 3
SERIES = RNG.normal(2, 3, (60, 9, 4)).astype(np.float32)
LENGTHS = RNG.integers(1, 10, 60).astype(np.int32)


def trained(data, model, objective=None, **settings):
    return an.fit(
        an.Experiment(
            data=data,
            model=model,
            objective=an.objectives.softmax_cross_entropy() if objective is None else objective,
            **{"optimizer": an.optim.adam(1e-2), "batch_size": 8, "steps": 2, "final_evaluation": (), **settings},
        ),
        progress=False,
    )


def images():
    return an.data.from_arrays(IMAGES, CLASSES, class_names=("cat", "dog", "owl"))


def series():
    return an.data.from_arrays({"inputs": SERIES, "lengths": LENGTHS}, CLASSES, num_classes=3)


def table_run():
    data = an.data.table(ROWS, target="price", log_target=True)
    return trained(data, lambda rngs: an.models.MLP(4, (8,), 1, rngs=rngs), an.objectives.squared_error())


def mlp_run(**settings):
    model = lambda rngs: an.models.MLP(144, (16, 16), 3, norm="batch", residual=True, dropout=0.1, rngs=rngs)  # noqa: E731
    return trained(images(), model, **settings)


def kjv(folder, name):
    path = folder / name
    path.write_text("in the beginning there was a word, and it was good. " * 30)
    return path


@pytest.fixture(params=["kernels", "program"])
def by(request, monkeypatch):
    """Let models compute by accelnet's kernels, or by the exported program."""
    if request.param == "program":
        monkeypatch.setattr(model_module.library, "load", lambda: False)
    return request.param


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    run = mlp_run(config={"width": 16})
    return run, run.save(tmp_path_factory.mktemp("mlp") / "a.accelnet")
