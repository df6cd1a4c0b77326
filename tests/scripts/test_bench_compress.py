"""The models that bench_compress.py makes smaller."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import accelnet as an

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from bench_systems.compressible import MODELS  # noqa: E402


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_of_its_data(name, monkeypatch):
    images = np.zeros((600, 28, 28, 1), np.uint8)
    monkeypatch.setattr(an.data, "fashion_mnist", lambda *_, **__: an.data.from_arrays(images, np.arange(600) % 10))
    made = MODELS[name](0, SimpleNamespace(epochs=1.0, rows=300))
    state = jax.eval_shape(made.pure_model.init, jax.random.key(0))
    assert len(made.data.splits["train"]) <= 300 and jax.tree.leaves(state)


def test_what_others_prune_is_the_trained_network():
    pytest.importorskip("torch")
    from bench_systems import layers as describe
    from bench_systems.pruners import answer_of, original

    images = np.random.default_rng(0).standard_normal((60, 28, 28, 1)).astype(np.float32)
    run = an.fit(
        an.Experiment(
            data=an.data.from_arrays(images, np.arange(60) % 10, num_classes=10),
            model=lambda rngs: an.models.CNN((28, 28, 1), (8, 16), 10, norm="batch", rngs=rngs),
            optimizer=an.optim.adam(1e-2),
            objective=an.objectives.softmax_cross_entropy(),
            batch_size=8,
            steps=3,
        ),
        progress=False,
    )
    weights = {
        name: np.asarray(value)
        for tree in (run.params, run.model_state)
        for name, value in flatten_dict(tree, sep="/").items()
    }
    outputs, _ = run.experiment.pure_model.apply(
        run.params, run.model_state, images, key=jax.random.key(0), train=False
    )  # fmt: skip
    answer = answer_of(original(describe.cnn((28, 28, 1), 2, norm=True), weights))
    np.testing.assert_allclose(answer(images), outputs, atol=2e-5)
