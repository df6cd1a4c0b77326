import jax
import numpy as np
import pytest

from accelnet.data import normalize
from accelnet.data.normalize import cast_targets, make_standardize, moments


@pytest.mark.parametrize("shape", [(50,), (50, 3), (50, 4, 5, 2)])
@pytest.mark.parametrize("chunk_bytes", [1 << 24, 256])
def test_moments_are_those_of_numpy(shape, chunk_bytes, monkeypatch):
    monkeypatch.setattr(normalize, "CHUNK_BYTES", chunk_bytes)
    values = (np.random.default_rng(0).normal(3, 2, shape)).astype(np.float32)
    flat = values.reshape(-1, shape[-1] if len(shape) > 1 else 1).astype(np.float64)
    mean, std = moments(values)
    # Both are computed in float64 and rounded to float32 once: 2**-24 relative.
    np.testing.assert_allclose(mean, flat.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(std, flat.std(axis=0), rtol=1e-7)


def test_moments_of_bytes_do_not_overflow():
    mean, std = moments(np.full((1000, 28, 28, 1), 255, np.uint8))
    assert (mean.item(), std.item()) == (255, 1)


def test_a_constant_channel_is_divided_by_one():
    values = np.stack([np.full(1001, 1e6 / 3), np.arange(1001.0)], axis=1)
    assert moments(values)[1][0] == 1


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 4, 5, 2)])
def test_standardized_values_have_mean_zero_and_deviation_one(shape):
    values = np.random.default_rng(0).normal(5, 3, shape).astype(np.float32)
    batch = {"inputs": values, "targets": np.array([200] * 6, np.uint8), "mask": np.ones(6, bool)}
    got = jax.jit(make_standardize(*moments(values)))(batch)
    flat = np.asarray(got["inputs"]).reshape(-1, shape[-1] if len(shape) > 1 else 1)
    assert got["inputs"].shape == shape
    # float32 rounding of values of size 5.
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(flat.std(axis=0), 1, atol=1e-6)
    assert got["targets"].dtype == np.int32
    assert got["targets"].tolist() == [200] * 6
    assert got["mask"].all()


def test_float_targets_are_not_cast():
    assert cast_targets(np.zeros(2, np.float32)).dtype == np.float32
