"""Experiments of the three families, small enough to compile in a second, and where no compiler is, the reason."""

import numpy as np
import pytest

import accelnet as an
from accelnet.ops.kernels import share
from accelnet.planning.targets.compilers import missing_compiler


def random_data(*shape, num_classes=5, rows=96):
    inputs = np.random.default_rng(0).normal(size=(rows, *shape)).astype(np.float32)
    return an.data.from_arrays(inputs, np.arange(rows) % num_classes, num_classes=num_classes)


def make_experiment(family="mlp", **settings):
    data, model = {
        "mlp": (random_data(12), lambda rngs: an.models.MLP(12, (16, 16), 5, rngs=rngs)),
        "cnn": (
            random_data(8, 8, 1),
            lambda rngs: an.models.CNN((8, 8, 1), (8, 8), 5, norm="batch", dense_features=(16,), rngs=rngs),
        ),
        "rnn": (random_data(7, 6), lambda rngs: an.models.RNN(6, 16, 5, cell="lstm", rngs=rngs)),
    }[family]
    defaults = {
        "data": data,
        "model": model,
        "optimizer": an.optim.adam(1e-3),
        "objective": an.objectives.softmax_cross_entropy(),
        "batch_size": 32,
        "steps": 100,
        "name": family,
    }
    return an.Experiment(**(defaults | settings))


@pytest.fixture
def experiment():
    return make_experiment()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep measurements of one test from the next, and from the user's own; the compiled kernels are for all."""
    share(tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ACCELNET_TARGETS", raising=False)


def needs(*platforms):
    """Skip where XLA's compiler for a platform is missing, which only the extras install."""
    reasons = [reason for platform in platforms if (reason := missing_compiler(platform))]
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons) or "installed")
