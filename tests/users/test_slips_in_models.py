"""Slips in the arguments of models and in what they are called with."""

import jax
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from tests.users.slips import FLAG, FUNC, FUNCTION, NAN, NUMBER, ONE_LINE, TEXT, THING, WHOLE, check, without


def called(kind, *sizes):

    def call(inputs):
        return kind(*sizes, rngs=nnx.Rngs(0))(inputs)

    return call


models = an.models

TRANSFORMER = {"in_features": 3, "hidden_features": 4, "out_features": 2, "num_steps": 5}

RN = [None, 0, "a", THING, [], {}, int, FUNCTION, 1.5, jax.random.key(0)]

ROWS = [
    ("in_features", lambda v: models.MLP(v, (4,), 2, rngs=nnx.Rngs(0)), [*WHOLE, 0]),
    ("out_features", lambda v: models.MLP(3, (4,), v, rngs=nnx.Rngs(0)), [*WHOLE, 0]),
    (
        "hidden_features",
        lambda v: models.MLP(3, v, 2, rngs=nnx.Rngs(0)),
        [None, 4, "44", (4.5,), ("4",), (None,), (0,), (-1,), (True,), THING, {}, {4: 4}, int, FUNCTION, (NAN,)],
    ),
    ("activation", lambda v: models.MLP(3, (4,), 2, activation=v, rngs=nnx.Rngs(0)), FUNC),
    ("norm", lambda v: models.MLP(3, (4,), 2, norm=v, rngs=nnx.Rngs(0)), [3, "batc", "", THING, [], {}, True, "group"]),
    ("dropout", lambda v: models.MLP(3, (4,), 2, dropout=v, rngs=nnx.Rngs(0)), [*NUMBER, -1, 1, 1.5]),
    ("residual", lambda v: models.MLP(3, (4,), 2, residual=v, rngs=nnx.Rngs(0)), FLAG),
    ("shared", lambda v: models.MLP(3, (4, 4), 2, shared=v, rngs=nnx.Rngs(0)), FLAG),
    ("rngs", lambda v: models.MLP(3, (4,), 2, rngs=v), RN),
    ("rngs", lambda v: models.CNN((8, 8, 1), (2,), 2, rngs=v), RN),
    ("rngs", lambda v: models.ResNet(3, 8, 2, rngs=v), RN),
    ("rngs", lambda v: models.RNN(3, 4, 2, rngs=v), RN),
    (
        "image_shape",
        lambda v: models.CNN(v, (2,), 2, rngs=nnx.Rngs(0)),
        [None, 8, "881", (8, 8), (8, 8, 0), (8, 8, 1.5), ("8", "8", "1"), (-1, 8, 1), THING, {}, int, (True, 8, 1)],
    ),
    (
        "channels",
        lambda v: models.CNN((8, 8, 1), v, 2, rngs=nnx.Rngs(0)),
        [None, 4, "44", (4.5,), ("4",), (0,), (-1,), (), THING, {}, int, (True,)],
    ),
    ("out_features", lambda v: models.CNN((8, 8, 1), (2,), v, rngs=nnx.Rngs(0)), [*WHOLE, 0]),
    ("kernel_size", lambda v: models.CNN((8, 8, 1), (2,), 2, kernel_size=v, rngs=nnx.Rngs(0)), [*WHOLE, 0]),
    (
        "strides",
        lambda v: models.CNN((8, 8, 1), (2,), 2, strides=v, rngs=nnx.Rngs(0)),
        [None, "3", 1.5, NAN, -1, 0, True, THING, [], {}, int, (0,), (1, 1), ("1",), (1.5,)],
    ),
    ("num_convolutions", lambda v: models.CNN((8, 8, 1), (2,), 2, num_convolutions=v, rngs=nnx.Rngs(0)), [*WHOLE, 0]),
    ("separable", lambda v: models.CNN((8, 8, 1), (2,), 2, separable=v, rngs=nnx.Rngs(0)), FLAG),
    ("norm", lambda v: models.CNN((8, 8, 1), (2,), 2, norm=v, rngs=nnx.Rngs(0)), [3, "batc", "", THING, [], {}, True]),
    ("activation", lambda v: models.CNN((8, 8, 1), (2,), 2, activation=v, rngs=nnx.Rngs(0)), FUNC),
    ("conv_general_dilated", lambda v: models.CNN((8, 8, 1), (2,), 2, conv_general_dilated=v, rngs=nnx.Rngs(0)), FUNC),
    (
        "pooling",
        lambda v: models.CNN((8, 8, 1), (2,), 2, pooling=v, rngs=nnx.Rngs(0)),
        [3, "mx", "", THING, [], {}, True],
    ),
    ("head", lambda v: models.CNN((8, 8, 1), (2,), 2, head=v, rngs=nnx.Rngs(0)), [*TEXT, "flat"]),
    (
        "dense_features",
        lambda v: models.CNN((8, 8, 1), (2,), 2, dense_features=v, rngs=nnx.Rngs(0)),
        [None, 4, "44", (4.5,), ("4",), (0,), (-1,), THING, {}, int],
    ),
    ("dropout", lambda v: models.CNN((8, 8, 1), (2,), 2, dropout=v, rngs=nnx.Rngs(0)), [*NUMBER, -1, 1, 1.5]),
    (ONE_LINE, lambda v: models.CNN((8, 8, 1), v, 2, rngs=nnx.Rngs(0)), [(2, 2, 2, 2, 2)]),
    ("in_features", lambda v: models.ResNet(v, 8, 2, rngs=nnx.Rngs(0)), [*WHOLE, 0]),
    ("depth", lambda v: models.ResNet(3, v, 2, rngs=nnx.Rngs(0)), [*WHOLE, 0, 8.0, 9]),
    ("out_features", lambda v: models.ResNet(3, 8, v, rngs=nnx.Rngs(0)), [*WHOLE, 0]),
    (
        "widths",
        lambda v: models.ResNet(3, 8, 2, widths=v, rngs=nnx.Rngs(0)),
        [None, 4, "444", (4, 4), (4, 4, 4.5), (4, 4, "4"), (0, 4, 4), (-1, 1, 1), THING, {}, int, (True, 4, 4)],
    ),
    ("norm", lambda v: models.ResNet(3, 8, 2, norm=v, rngs=nnx.Rngs(0)), [*TEXT, "x"]),
    ("shortcut", lambda v: models.ResNet(3, 8, 2, shortcut=v, rngs=nnx.Rngs(0)), [*TEXT, "x"]),
    ("shared", lambda v: models.ResNet(3, 14, 2, shared=v, rngs=nnx.Rngs(0)), FLAG),
    ("conv_general_dilated", lambda v: models.ResNet(3, 8, 2, conv_general_dilated=v, rngs=nnx.Rngs(0)), FUNC),
    *[
        (f, lambda v, i=i: models.RNN(*[v if j == i else 3 for j in range(3)], rngs=nnx.Rngs(0)), [*WHOLE, 0])
        for f, i in (("in_features", 0), ("hidden_features", 1), ("out_features", 2))
    ],
    ("num_layers", lambda v: models.RNN(3, 4, 2, num_layers=v, rngs=nnx.Rngs(0)), [*WHOLE, 0]),
    ("num_symbols", lambda v: models.RNN(3, 4, 2, num_symbols=v, rngs=nnx.Rngs(0)), [*without(WHOLE, None), 0]),
    ("cell", lambda v: models.RNN(3, 4, 2, cell=v, rngs=nnx.Rngs(0)), [*TEXT, "x"]),
    ("output", lambda v: models.RNN(3, 4, 2, output=v, rngs=nnx.Rngs(0)), [*TEXT, "x"]),
    ("dropout", lambda v: models.RNN(3, 4, 2, dropout=v, rngs=nnx.Rngs(0)), [*NUMBER, -1, 1, 1.5]),
    *[
        (f, lambda v, f=f: models.RNN(4, 4, 4, num_symbols=4, num_layers=2, **{f: v}, rngs=nnx.Rngs(0)), FLAG)
        for f in ("bidirectional", "shared", "tie_embedding")
    ],
    *[
        (f, lambda v, f=f: models.Transformer(**{**TRANSFORMER, f: v}, rngs=nnx.Rngs(0)), [*WHOLE, 0])
        for f in ("in_features", "hidden_features", "out_features", "num_steps", "num_layers", "num_heads")
    ],
    ("dropout", lambda v: models.Transformer(**TRANSFORMER, dropout=v, rngs=nnx.Rngs(0)), [*NUMBER, -1, 1, 1.5]),
    ("rngs", lambda v: models.Transformer(**TRANSFORMER, rngs=v), RN),
    ("", called(models.MLP, 3, (4,), 2), [np.zeros((2, 4)), None, "a", np.zeros(()), [[1, 2]]]),
    (
        "",
        called(models.CNN, (8, 8, 1), (2,), 2),
        [np.zeros((2, 8, 8, 2)), None, "a", np.zeros(()), np.zeros((2, 8, 8))],
    ),
    ("", called(models.ResNet, 3, 8, 2), [np.zeros((2, 8, 8, 2)), None, "a", np.zeros(()), np.zeros((2, 8, 8))]),
    ("", called(models.RNN, 3, 4, 2), [np.zeros((2, 8, 8, 2)), None, "a", np.zeros(()), np.zeros((2, 8))]),
    ("model", lambda v: models.summary(v, np.zeros((1, 3), "f4")), [None, 3, "a", THING, [], int]),
    (
        "inputs",
        lambda v: models.summary(models.MLP(3, (4,), 2, rngs=nnx.Rngs(0)), v),
        [None, "a", THING, [], int, np.zeros((1, 4), np.float32)],
    ),
    (ONE_LINE, lambda v: models.per_mode(training=v, evaluation=v), [None, 3, "a", THING]),
]


@pytest.mark.parametrize(
    ("words", "make", "values"), ROWS, ids=[f"{words}-{index}" for index, (words, *_) in enumerate(ROWS)]
)
def test_a_slip_is_one_line(words, make, values):
    check(words, make, values)
