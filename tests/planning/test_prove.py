"""One artifact for CPU, CUDA and TPU."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.planning import prove as proving
from accelnet.planning.compiled.export import load_arrays, save_arrays
from accelnet.planning.prove import Proof, _difference, _same_bits, prove
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


def test_what_runs_from_the_artifact_in_a_fresh_process_has_the_same_bits(experiment, monkeypatch):
    monkeypatch.setattr(proving, "PROVED_TARGETS", {})  # to compile: below
    proof = prove(experiment)
    assert proof.holds
    assert "the same bits" in str(proof)


def test_a_bit_that_differs_is_seen():
    ours = [np.arange(4, dtype=np.float32), np.array(3)]
    assert _same_bits(ours, [array.copy() for array in ours])
    changed = np.nextafter(ours[0], np.float32(np.inf))
    assert not _same_bits(ours, [changed, ours[1]])
    assert not _same_bits(ours, [ours[0], ours[1].astype(np.int32)])
    assert not _same_bits(ours, ours[:1])
    proof = Proof("x", {"train": 1}, {"train": False}, {"train": 0.0}, {})
    assert not proof.holds
    assert "OTHER BITS" in str(proof)


def test_a_program_that_computes_something_else_is_seen():
    ours = [np.arange(4, dtype=np.float32), np.array([2.0])]
    assert _difference(ours, ours) == 0
    assert _difference(ours, [ours[0], np.array([2.5])]) == pytest.approx(0.5 / np.sqrt(18))
    assert _difference(ours, [ours[0], np.array([np.nan])]) == _difference(ours, ours[:1]) == np.inf
    proof = Proof("x", {"train": 1}, {"train": True}, {"train": 0.1}, {})
    assert not proof.holds
    assert "ANOTHER RESULT" in str(proof)


@pytest.mark.plan
@needs("tpu", "cuda")
@pytest.mark.parametrize(
    ("family", "platforms"),
    [
        ("mlp", ("cpu", "cuda", "tpu")),
        # Both compilers get each family in test_plan.py.
        pytest.param("cnn", ("tpu",), marks=pytest.mark.slow),
        pytest.param("rnn", ("cuda",), marks=pytest.mark.slow),
    ],
)
def test_every_family_is_portable(family, platforms, monkeypatch):
    targets = {platform: proving.PROVED_TARGETS[platform] for platform in platforms}
    monkeypatch.setattr(proving, "PROVED_TARGETS", targets)
    proof = prove(make_experiment(family))
    assert proof.equal == {"train": True, "eval": True}
    assert max(proof.difference.values()) < 1e-6
    assert proof.compiled == {platform: {"train": "ok", "eval": "ok"} for platform in platforms}
    assert proof.holds
    assert dataclasses.asdict(proof)["artifact_bytes"]["train"] > 1000
