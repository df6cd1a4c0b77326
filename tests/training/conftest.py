"""A small experiment that has everything that can go wrong on resuming."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import accelnet as an


class Net(nnx.Module):
    """Batch statistics, two dropouts, and few numbers."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(16, 12, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.second = nnx.Linear(12, 12, rngs=rngs)
        self.drop2 = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, inputs):
        x = inputs.reshape(inputs.shape[0], -1)
        x = self.drop(nnx.relu(self.norm(self.first(x))))
        return self.last(self.drop2(nnx.relu(self.second(x))))


class Plain(nnx.Module):
    """Without noise and statistics, so that a batch is the sum of its parts."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(16, 12, rngs=rngs)
        self.last = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, inputs):
        return self.last(nnx.relu(self.first(inputs.reshape(inputs.shape[0], -1))))


@functools.cache  # the same objects make the same programs: see `shared_programs`
def toy_data(num_train=50, num_held_out=13, augment=True):
    rng = np.random.default_rng(0)
    rows = num_train + 2 * num_held_out
    labels = np.arange(rows) % 3
    images = (rng.integers(0, 120, (rows, 4, 4, 1)) + 40 * labels[:, None, None, None]).astype(np.uint8)
    return an.data.Data(
        "toy",
        {"inputs": images, "targets": labels.astype(np.int32)},
        {
            "train": range(num_train),
            "validation": range(num_train, num_train + num_held_out),
            "test": range(num_train + num_held_out, rows),
        },
        prepare=lambda batch: {**batch, "inputs": batch["inputs"].astype(jnp.float32) / 100.0},
        augment=an.data.random_crop(1) if augment else None,
        info={"num_classes": 3},
    )


OPTIMIZER = optax.chain(an.optim.adamw(1e-2), an.optim.average_params(0.9))
OBJECTIVE = an.objectives.softmax_cross_entropy()


def toy_experiment(**changes):
    settings = {
        "data": toy_data(),
        "model": Net,
        "optimizer": OPTIMIZER,
        "objective": OBJECTIVE,
        "batch_size": 8,
        "epochs": 6,
        "name": "toy",
        "log_every": an.Every(steps=5),
        "eval_batch_size": 5,
    }
    if "steps" in changes:
        settings["epochs"] = None
    return an.Experiment(**(settings | changes))


# The toys' weights are too small to be cut on "fsdp" unasked.
CUT = [("first.kernel", PartitionSpec("fsdp", "model")), (".*", PartitionSpec("fsdp"))]


@pytest.fixture(scope="session")
def make_experiment():
    return toy_experiment


@pytest.fixture(scope="session")
def make_data():
    return toy_data


@pytest.fixture(scope="session")
def plain_model():
    return Plain
