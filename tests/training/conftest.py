"""A small experiment that has everything that can go wrong on resuming."""

import functools
import shutil

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


@functools.cache  # the same objects make the same programs: see `accelnet.training.reuse`
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


@pytest.fixture(scope="module")
def full(make_experiment):
    # Dropout, augmentation, accumulation, shuffling, batch statistics and averaged weights, all at once.
    return make_experiment(microbatch_size=3, epochs=3, save_every=an.Every(steps=4))


@pytest.fixture(scope="module")
def whole(full, no_pictures, tmp_path_factory):
    """The run that nothing disturbed, in a work directory that only its copies are changed of."""
    return an.fit(full, progress=False, workdir=tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def copied(tmp_path):
    """Return a function that copies a work directory to where a test may change it."""
    return lambda workdir: shutil.copytree(workdir, tmp_path / "run")


# Not Adam where layouts are compared: a bias in front of batch statistics has a gradient of rounding alone, which Adam
# makes as large as any other.
SGD = optax.chain(optax.clip_by_global_norm(1.0), an.optim.momentum(0.02), an.optim.average_params(0.9))


@pytest.fixture(scope="module")
def busy(make_experiment):
    """Dropout, augmentation, batch statistics, averaged weights, and a last batch of each epoch that is not full."""
    return make_experiment(
        steps=20,
        log_every=an.Every(steps=1),
        optimizer=SGD,
        sharding_rules=CUT,
    )


@pytest.fixture(scope="module")
def parts(busy):
    return busy.replace(microbatch_size=4)
