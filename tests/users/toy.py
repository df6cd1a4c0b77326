"""Small data, and short trainings of other people's modules, losses and chains."""

import jax
import numpy as np
import optax

import accelnet as an

ROWS, FEATURES = 40, 8
_rng = np.random.default_rng(0)
X = _rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
Y = (X[:, :4].sum(axis=1) > 0).astype(np.int32)
IMAGES = _rng.normal(size=(ROWS, 8, 8, 1)).astype(np.float32)
TOKENS = _rng.integers(0, 12, (ROWS, 9)).astype(np.int32)
SPLITS = {"train": range(24), "validation": range(24, 32), "test": range(32, ROWS)}


def data(inputs=X, targets=Y, **settings):
    return an.data.Data("toy", {"inputs": inputs, "targets": targets}, SPLITS, **settings)


ROW_DATA = data()
IMAGE_DATA = data(IMAGES)
TOKEN_DATA = data(TOKENS[:, :-1], TOKENS[:, 1:])


OPTIMIZER = optax.adam(1e-2)
OBJECTIVE = an.objectives.softmax_cross_entropy()


def experiment(model, data=ROW_DATA, objective=None, **settings):
    defaults = {"optimizer": OPTIMIZER, "batch_size": 8, "steps": 3}
    chosen = OBJECTIVE if objective is None else objective
    return an.Experiment(data=data, model=model, objective=chosen, **{**defaults, **settings})


def fit(model, data=ROW_DATA, objective=None, **settings):
    return an.fit(experiment(model, data, objective, **settings), progress=False)


def applied(model, inputs, *, train, seed=1, **settings):
    """The outputs of a model of seed 0, and its state afterwards."""
    pure = an.models.adapter.adapt(model)
    params, state = pure.init(jax.random.key(0), inputs)
    return pure.apply(params, state, inputs, key=jax.random.key(seed), train=train, **settings)
