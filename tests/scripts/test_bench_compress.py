"""The models that bench_compress.py makes smaller."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

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
