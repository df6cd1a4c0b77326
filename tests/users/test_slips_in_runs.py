"""Slips in an experiment, in what it is made of, and in fit and evaluate."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import accelnet as an
from accelnet.training.rhythm import Pace
from tests.cli.conftest import small
from tests.users import toy
from tests.users.slips import (
    FLAG,
    FOLDER,
    FUNC,
    FUNCTION,
    NAMES,
    NUMBER,
    ODD,
    ONE_LINE,
    PATH,
    TEXT,
    THING,
    WHOLE,
    check,
    without,
)

pytestmark = pytest.mark.usefixtures("no_pictures")

EXPERIMENT = toy.experiment(lambda rngs: nnx.Linear(8, 2, rngs=rngs))


def fit(ex, **k):
    return an.fit(ex, **{"progress": False, **k})


ROWS = [
    *[(f, lambda v, f=f: EXPERIMENT.replace(**{f: v}), [*WHOLE, 0, 2**40]) for f in ("batch_size",)],
    *[
        (f, lambda v, f=f: EXPERIMENT.replace(**{f: v}), [*without(WHOLE, None), 0, 2**40])
        for f in ("microbatch_size", "eval_batch_size")
    ],
    ("steps", lambda v: EXPERIMENT.replace(steps=v), [*WHOLE, 0, 2**40]),
    ("epochs", lambda v: EXPERIMENT.replace(steps=None, epochs=v), [*NUMBER, 0, -1, 1e300]),
    ("seed", lambda v: EXPERIMENT.replace(seed=v), [*WHOLE, 2**40]),
    ("keep_last", lambda v: EXPERIMENT.replace(keep_last=v), [*WHOLE, 0, 2**40]),
    ("keep_best", lambda v: EXPERIMENT.replace(keep_best=v), [*WHOLE, 2**40]),
    *[(f, lambda v, f=f: EXPERIMENT.replace(**{f: v}), [*TEXT, "x"]) for f in ("precision", "remat", "best_metric")],
    ("name", lambda v: EXPERIMENT.replace(name=v), TEXT),
    *[
        (f, lambda v, f=f: EXPERIMENT.replace(**{f: v}), [3, "3", 1.5, True, an.Every, an.EarlyStopping, *ODD])
        for f in ("log_every", "eval_every", "save_every", "early_stopping")
    ],
    *[
        (
            f,
            lambda v, f=f: EXPERIMENT.replace(**{f: v}),
            [
                None,
                3,
                "ab",
                {},
                {"a": 1},
                int,
                FUNCTION,
                THING,
                [3],
                [None],
                [("a",)],
                [("(", jax.sharding.PartitionSpec())],
                ["("],
            ],
        )
        for f in ("events", "frozen", "sharding_rules")
    ],
    ("final_evaluation", lambda v: EXPERIMENT.replace(final_evaluation=v), [*NAMES, ["nope"], {}]),
    ("on_device", lambda v: EXPERIMENT.replace(on_device=v), ["yes", 3, 1.5, *ODD]),
    (
        "config",
        lambda v: EXPERIMENT.replace(config=v),
        [
            None,
            3,
            "a",
            [1],
            int,
            FUNCTION,
            THING,
            {"a": THING},
            {3: 1},
            {"a": FUNCTION},
            {"a": {3: 1}},
            {"a": np.zeros(3)},
        ],
    ),
    ("data", lambda v: EXPERIMENT.replace(data=v), [None, 3, "a", *ODD, an.data.Data, an.data.xor]),
    (
        "optimizer",
        lambda v: EXPERIMENT.replace(optimizer=v),
        [None, 3, "adam", 1.5, THING, [], {}, int, optax.adam, an.optim.adam],
    ),
    (
        "objective",
        lambda v: EXPERIMENT.replace(objective=v),
        [None, 3, "mse", THING, [], {}, an.objectives.squared_error, an.objectives.Objective],
    ),
    ("model", lambda v: EXPERIMENT.replace(model=v), [None, 3, "a", THING, [], {}]),
    (
        "model",
        lambda v: fit(EXPERIMENT.replace(model=v)),
        [
            None,
            3,
            "mlp",
            THING,
            [],
            {},
            int,
            nnx.Linear,
            an.models.MLP,
            an.models.CNN,
            lambda: nnx.Linear(8, 2, rngs=nnx.Rngs(0)),
            lambda rngs: 3,
            lambda rngs: None,
            lambda rngs: nnx.Linear,
            lambda a, b: 3,
        ],
    ),
    (
        "input",
        lambda v: fit(EXPERIMENT.replace(model=v)),
        [
            lambda rngs: an.models.MLP(9, (4,), 2, rngs=rngs),
            lambda rngs: an.models.CNN((8, 8, 1), (2,), 2, rngs=rngs),
            lambda rngs: an.models.RNN(3, 4, 2, rngs=rngs),
            lambda rngs: an.models.ResNet(3, 8, 2, rngs=rngs),
        ],
    ),
    ("the model failed", lambda v: fit(EXPERIMENT.replace(model=v)), [lambda rngs: nnx.Linear(7, 2, rngs=rngs)]),
    ("output", lambda v: fit(EXPERIMENT.replace(model=v)), [lambda rngs: nnx.Linear(8, 1, rngs=rngs)]),
    (
        "optimizer",
        lambda v: fit(EXPERIMENT.replace(optimizer=v)),
        [optax.sgd(lambda s: np.zeros(3)), optax.sgd("a"), optax.sgd(lambda s: None)],
    ),
    (
        "schedule",
        lambda v: an.optim.adam(0.01, schedule=v),
        [
            lambda progress: np.zeros(3),
            lambda s: "a",
            lambda progress: None,
            *FUNC,
            lambda progress: 1 / 0,
            lambda a, b: 1,
            lambda: 3,
            lambda progress: [1.0],
        ],
    ),
    *[
        (k, lambda v, k=k: fit(EXPERIMENT.replace(steps=1), **{k: v}), vs)
        for k, vs in {
            "mesh": [
                3,
                "",
                "x",
                "data",
                "data=0",
                "data=3",
                "data=-2",
                "data=a",
                "foo=8",
                THING,
                [],
                {},
                1.5,
                "data=8,data=1",
            ],
            "strategy": [None, 3, "map", THING, [], ""],
            "workdir": PATH,
            "hang_timeout": [*NUMBER, 0, -1],
            "resume": [None, "yes", 3, 1.5, THING],
            "allow_change": [None, "yes", 3],
            "progress": [None, "yes", 3],
            "pace": [None, 3, "a", THING],
            "events": [None, 3, "ab", [print], THING, print],
        }.items()
    ],
    ("chunk_seconds", lambda v: Pace(chunk_seconds=v), [*NUMBER, 0, -1]),
    ("eval_batches", lambda v: Pace(eval_batches=v), [*WHOLE, 0]),
    ("experiment", fit, [None, 3, "a", THING, [], an.Experiment, small]),
    ("experiment", lambda v: an.evaluate(v, FOLDER), [None, 3, an.Experiment]),
    (ONE_LINE, lambda v: an.evaluate(EXPERIMENT, v), [None, *PATH, FOLDER, FOLDER / "none"]),
    ("Every", lambda v: an.Every(steps=v), [*without(WHOLE), 0]),
    ("Every", lambda v: an.Every(epochs=v), [*NUMBER, 0, -1]),
    ("Every", lambda v: an.Every(seconds=v), [*NUMBER, 0, -1]),
    ("Event", lambda v: an.Event(v, print), [None, 3, "begin", *ODD]),
    ("Event", lambda v: an.Event("start", v), FUNC),
    ("patience", lambda v: an.EarlyStopping(patience=v), [*WHOLE, 0]),
    ("min_delta", lambda v: an.EarlyStopping(min_delta=v), [*NUMBER, -1]),
    ("metric", an.EarlyStopping, TEXT),
    ("mode", lambda v: an.EarlyStopping(mode=v), [*TEXT, "x"]),
    ("restore_best", lambda v: an.EarlyStopping(restore_best=v), FLAG),
    ("early", lambda v: EXPERIMENT.replace(early_stopping=an.EarlyStopping(v)), ["acc"]),
    ("paths", lambda v: an.Initial({}, paths=v), [None, 3, THING, [3], ["("], int]),
    ("best", lambda v: an.Initial({}, best=v), FLAG),
    (
        "initial",
        lambda v: fit(EXPERIMENT.replace(initial=v)),
        [
            3,
            "",
            THING,
            int,
            {},
            {"a": 3},
            {"kernel": [[1]]},
            {"kernel": "a", "bias": "b"},
            [3],
            [],
            lambda p: None,
            {"kernel": None, "bias": None},
            {3: 4},
            True,
            {"kernel": np.full((8, 2), "a"), "bias": np.zeros(2)},
            {"kernel": np.full((8, 2), None), "bias": np.zeros(2)},
        ],
    ),
    ("checkpoint", lambda v: fit(EXPERIMENT.replace(initial=v)), [FOLDER / "none"]),
    (
        "needs",
        lambda v: fit(EXPERIMENT.replace(model=v)),
        [
            lambda rngs: an.models.MLP(8, (2**20, 2**20), 2, rngs=rngs),
            lambda rngs: an.models.MLP(8, (2**40,), 2, rngs=rngs),
        ],
    ),
]


@pytest.mark.parametrize(
    ("words", "make", "values"), ROWS, ids=[f"{words}-{index}" for index, (words, *_) in enumerate(ROWS)]
)
def test_a_slip_is_one_line(words, make, values):
    check(words, make, values)
