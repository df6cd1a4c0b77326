"""A small experiment, for data of any kind."""

import jax
import numpy as np

import accelnet as an


def experiment(data, **settings):
    """Three inputs, three classes."""
    usual = {
        "model": lambda rngs: an.models.MLP(3, (8,), 3, rngs=rngs),
        "optimizer": an.optim.adam(1e-2),
        "objective": an.objectives.softmax_cross_entropy(),
        "batch_size": 8,
        "epochs": 2,
    }
    return an.Experiment(data=data, **usual | settings)


def params(run):
    return jax.device_get(jax.tree.leaves(run.params))


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(params(first), params(second), strict=True))


def die_at(step):
    """Return the event that ends a training as a crash would."""

    def die(moment):
        if moment.step == step:
            raise RuntimeError("died")

    return an.Event(an.Every(steps=1), die)
