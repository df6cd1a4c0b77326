import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from accelnet.data import feature_mask, random_noise, time_mask
from accelnet.data.augment import uniform
from accelnet.errors import UserError

KEY = jax.random.key(2)
LENGTHS = np.array([9, 1, 4, 2, 9, 3, 7, 8] * 20)


def series():
    """Values above 0 within the lengths, -1 beyond."""
    values = np.random.default_rng(0).uniform(1, 2, (160, 9, 3)).astype(np.float32)
    values[np.arange(9)[None, :] >= LENGTHS[:, None]] = -1
    return {"inputs": {"inputs": jnp.asarray(values), "lengths": jnp.asarray(LENGTHS)}, "targets": jnp.arange(160)}


def applied(augment, batch=None):
    batch = series() if batch is None else batch
    got = jax.jit(augment)(KEY, batch)
    assert set(got) == set(batch) and (got["targets"] == batch["targets"]).all()
    assert (got["inputs"]["lengths"] == LENGTHS).all()
    return np.asarray(batch["inputs"]["inputs"]), np.asarray(got["inputs"]["inputs"])


def test_noise_is_normal_and_stays_within_the_lengths():
    before, after = applied(random_noise(0.5))
    valid = np.arange(9)[None, :] < LENGTHS[:, None]
    np.testing.assert_array_equal(after[~valid], -1)
    noise = ((after - before)[valid] / 0.5).ravel()
    assert stats.kstest(noise, "norm").pvalue > 0.01 and abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.05


def test_noise_of_many_numbers_has_its_standard_deviation_and_its_tails():
    noise = np.asarray(random_noise(2.0)(KEY, {"inputs": jnp.zeros((7, 50001))})["inputs"])
    # Of 350,007 numbers: standard errors of 0.0034 and 0.0024.
    assert abs(noise.mean()) < 0.015 and abs(noise.std() - 2.0) < 0.01
    assert 3.9 < np.abs(noise).max() / 2.0 < 4.4
    halves = noise[:, :50000].reshape(7, 2, 25000)
    assert abs(np.corrcoef(halves[:, 0].ravel(), halves[:, 1].ravel())[0, 1]) < 0.01


def test_steps_are_left_out_within_the_lengths_and_at_most_half_of_them():
    before, after = applied(time_mask(3))
    draws = np.asarray(uniform(KEY, (160, 2)))
    for one, original, length, (a, b) in zip(after, before, LENGTHS, draws, strict=True):
        number = int(a * (min(3, length // 2) + 1))
        first = int(b * (length - number + 1))
        expected = original.copy()
        expected[first : first + number] = 0
        np.testing.assert_array_equal(one, expected)
    gone = (after == 0).all(-1).sum(1)
    assert set(gone[LENGTHS == 9]) == {0, 1, 2, 3} and set(gone[LENGTHS == 1]) == {0}
    assert (after[:, -1] == 0).any() and (after[:, 0] == 0).any()


def test_features_are_left_out_at_all_steps():
    _, after = applied(feature_mask(2))
    gone = (after == 0).all(1)
    assert ((after == 0).any(1) == gone).all()
    assert {tuple(one) for one in gone} == {
        (False, False, False), (True, False, False), (False, True, False), (False, False, True),
        (True, True, False), (False, True, True),
    }  # fmt: skip


def test_series_without_lengths_are_whole():
    batch = {"inputs": jnp.ones((50, 6, 2)), "targets": jnp.zeros(50)}
    gone = (np.asarray(time_mask(9)(KEY, batch)["inputs"]) == 0).all(-1).sum(1)
    assert set(gone) == {0, 1, 2, 3}


def test_what_is_no_series_is_refused():
    with pytest.raises(UserError, match="inputs are int32, expected series"):
        random_noise()(KEY, {"inputs": jnp.zeros((2, 3), jnp.int32)})
    with pytest.raises(UserError, match=r"inputs are of shape \(2,\), expected series"):
        time_mask()(KEY, {"inputs": jnp.zeros(2)})
    with pytest.raises(UserError, match="inputs are a dict of left, right, expected series"):
        time_mask()(KEY, {"inputs": {"left": jnp.zeros(2), "right": jnp.zeros(2)}})
    with pytest.raises(UserError, match="width is 3, and the series have 3 features"):
        feature_mask(3)(KEY, series())
    for make, message in ((lambda: time_mask(0), "width is 0"), (lambda: random_noise(-1), "std is -1")):
        with pytest.raises(UserError, match=message):
            make()
