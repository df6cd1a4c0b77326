"""One artifact for CPU, CUDA and TPU."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.planning import prove as proving
from accelnet.planning.prove import load_arrays, prove, save_arrays
from tests.planning.conftest import make_experiment, needs


def test_arrays_survive_without_pickle(tmp_path):
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(jnp.arange(4, dtype=jnp.bfloat16)),
        np.array(True),
        np.zeros((0, 3), np.int32),
    ]
    save_arrays(tmp_path / "a.npz", arrays)
    for a, b in zip(arrays, load_arrays(tmp_path / "a.npz"), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_a_bit_that_differs_is_seen(experiment, monkeypatch):
    monkeypatch.setattr(proving, "PROVED_TARGETS", {"cpu": "cpu"})
    assert prove(experiment).holds
    real = proving.load_arrays

    def changed(path):
        arrays = real(path)
        if path.name == "outputs.npz":
            first = next(i for i, array in enumerate(arrays) if array.dtype == np.float32 and array.size)
            arrays[first] = np.nextafter(arrays[first], np.float32(np.inf))
        return arrays

    monkeypatch.setattr(proving, "load_arrays", changed)
    proof = prove(experiment)
    assert not proof.holds
    assert "OTHER BITS" in str(proof)


@pytest.mark.plan
@needs("tpu", "cuda")
@pytest.mark.parametrize("family", ["mlp", "cnn", "rnn"])
def test_every_family_is_portable(family):
    proof = prove(make_experiment(family))
    assert proof.equal == {"train": True, "eval": True}
    assert proof.compiled == {platform: {"train": "ok", "eval": "ok"} for platform in ("cpu", "cuda", "tpu")}
    assert proof.holds
    assert dataclasses.asdict(proof)["artifact_bytes"]["train"] > 1000
