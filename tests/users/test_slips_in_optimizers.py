"""Slips in optimizers, schedules, losses and metrics."""

import numpy as np
import optax
import pytest

import accelnet as an
from tests.users.slips import FLAG, FUNC, FUNCTION, INF, NAN, NUMBER, ONE_LINE, TEXT, THING, WHOLE, check

optim = an.optim

schedules = optim.schedules

objectives = an.objectives

ROWS = [
    *[("learning_rate", lambda v, f=f: f(v), [*NUMBER, -1, np.zeros(3)]) for name, f in optim.algorithms.items()],
    *[("schedule", lambda v, f=f: f(0.1, schedule=v), [None, 3, "a"]) for name, f in optim.algorithms.items()],
    ("momentum", lambda v: optim.momentum(0.1, momentum=v), [*NUMBER, -1, 1.0]),
    ("b1", lambda v: optim.adam(0.1, b1=v), [*NUMBER, -1, 1.0]),
    ("b2", lambda v: optim.adam(0.1, b2=v), [*NUMBER, -1, 1.0]),
    ("eps", lambda v: optim.adam(0.1, eps=v), [*NUMBER, -1]),
    ("weight_decay", lambda v: optim.adamw(0.1, weight_decay=v), [*NUMBER, -1]),
    ("decay_mask", lambda v: optim.adamw(0.1, decay_mask=v), [None, 3, "a", THING, []]),
    ("muon_mask", lambda v: optim.muon(0.1, muon_mask=v), [None, 3, "a", THING, []]),
    ("min_factored_size", lambda v: optim.adafactor(0.1, min_factored_size=v), [*WHOLE]),
    ("factor", lambda v: optim.reduce_on_plateau(factor=v), [*NUMBER, -1, 1.5]),
    ("min_scale", lambda v: optim.reduce_on_plateau(min_scale=v), [*NUMBER, -1, 2]),
    *[(k, lambda v, k=k: optim.reduce_on_plateau(**{k: v}), WHOLE) for k in ("patience", "window_steps", "cooldown")],
    ("decay", optim.average_params, [*NUMBER, -1, 1.0]),
    ("milestones", schedules.step, [None, 5, "ab", THING, {}, int, FUNCTION]),
    ("milestone", schedules.step, [[2], ["a"], [None], [0.5, 0.4], [NAN], [True]]),
    ("factor", lambda v: schedules.step([0.5], factor=v), [*NUMBER, -1, 2]),
    ("factor", lambda v: schedules.exponential(factor=v), [*NUMBER, -1, 2]),
    ("final", lambda v: schedules.cosine(final=v), [*NUMBER, -1, 2, "a"]),
    ("warmup", lambda v: schedules.warmup_cosine(warmup=v), [*NUMBER, -1, 1]),
    *[(k, lambda v, k=k: schedules.one_cycle(**{k: v}), [*NUMBER, -1, 2]) for k in ("warmup", "initial", "final")],
    *[
        (k, lambda v, k=k: schedules.warmup_stable_decay(**{k: v}), [*NUMBER, -1, 2])
        for k in ("warmup", "decay", "final")
    ],
    (ONE_LINE, schedules.cosine(), ["a", None, THING, 3]),
    ("optimizer", optim.adapt_optimizer, [None, 3, "a", THING, [], int]),
    (
        ONE_LINE,
        lambda v: optim.algorithm(gamma=v)(lambda learning_rate, *, schedule=1, gamma=1: optax.sgd(1)),
        [None, 3, "a", THING, "(1,0)"],
    ),
    (
        ONE_LINE,
        lambda v: optim.with_hyperparams(optim.adam(0.1).init({"a": np.zeros(3)}), learning_rate=v),
        [None, "a", NAN, -1, THING],
    ),
    (ONE_LINE, lambda v: optim.with_hyperparams(optim.adam(0.1).init({"a": np.zeros(3)}), **{v: 1}), ["nope"]),
    ("label_smoothing", lambda v: objectives.softmax_cross_entropy(label_smoothing=v), [*NUMBER, -1, 2]),
    ("focal", lambda v: objectives.softmax_cross_entropy(focal=v), [*NUMBER, -1]),
    (
        "class_weights",
        lambda v: objectives.softmax_cross_entropy(class_weights=v),
        [3, "ab", THING, {}, int, [NAN], [-1, 1], ["a"], [[1, 2]], [0, 0], [], [INF], {0: 1}],
    ),
    ("focal", lambda v: objectives.sigmoid_cross_entropy(focal=v), [*NUMBER, -1]),
    ("delta", lambda v: objectives.huber(delta=v), [*NUMBER, -1, 0]),
    ("num_outputs", lambda v: objectives.huber(num_outputs=v), [*WHOLE, 0]),
    ("num_outputs", lambda v: objectives.squared_error(num_outputs=v), [*WHOLE, 0]),
    ("num_outputs", objectives.R2, [*WHOLE, 0]),
    *[
        (
            "metric",
            lambda v, f=f: f(metrics=v),
            [3, "a", THING, [1], {"a": 3}, {"a": objectives.Accuracy}, {3: objectives.Accuracy()}, int],
        )
        for f in (
            objectives.softmax_cross_entropy,
            objectives.sigmoid_cross_entropy,
            objectives.huber,
            objectives.squared_error,
            objectives.token_cross_entropy,
        )
    ],
    ("k", objectives.TopKAccuracy, [*WHOLE, 0]),
    ("num_classes", objectives.F1, [*WHOLE, 0]),
    ("average", lambda v: objectives.F1(2, v), [*TEXT, "x"]),
    *[
        ("weighted", lambda v, c=c: c(weighted=v), FLAG)
        for c in (
            objectives.Accuracy,
            objectives.BinaryAccuracy,
            objectives.MeanAbsoluteError,
            objectives.RoundedAccuracy,
        )
    ],
    *[
        ("on", lambda v, c=c: c(on=v), [3, "", THING, [], int])
        for c in (
            objectives.Accuracy,
            objectives.BinaryAccuracy,
            objectives.MeanAbsoluteError,
            objectives.RoundedAccuracy,
        )
    ],
    ("function", objectives.FunctionMean, FUNC),
    ("lower_is_better", lambda v: objectives.FunctionMean(len, v), ["yes", 3, THING]),
    ("loss", objectives.Objective, FUNC),
    (
        "metric",
        lambda v: objectives.Objective(len, v),
        [None, 3, "a", THING, {"a": 3}, {3: objectives.Accuracy()}, {"a": objectives.Accuracy}],
    ),
    ("task", lambda v: objectives.Objective(len, task=v), [*TEXT, "x"]),
    (
        "part",
        objectives.combine,
        [
            None,
            3,
            "a",
            THING,
            {},
            {"a": 3},
            {"a": (objectives.squared_error(), "x")},
            {"a": (objectives.squared_error(), NAN)},
            {"a": (objectives.squared_error(),)},
            {3: objectives.squared_error()},
            {"a": objectives.squared_error},
            [objectives.squared_error()],
        ],
    ),
    ("metric", lambda v: objectives.combine({"a": objectives.squared_error()}, metrics=v), [3, "a", THING, {"a": 3}]),
]


@pytest.mark.parametrize(
    ("words", "make", "values"), ROWS, ids=[f"{words}-{index}" for index, (words, *_) in enumerate(ROWS)]
)
def test_a_slip_is_one_line(words, make, values):
    check(words, make, values)
