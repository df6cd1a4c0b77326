import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.data import normalize
from accelnet.data.normalize import fit, standardize, with_cast_targets
from accelnet.data.rows import lazy_arrays
from accelnet.data.stored import StoredRows


@pytest.mark.parametrize("shape", [(50,), (50, 3), (50, 4, 5, 2)])
@pytest.mark.parametrize("chunk_bytes", [1 << 24, 256])
def test_moments_are_those_of_numpy(shape, chunk_bytes, monkeypatch):
    monkeypatch.setattr(normalize, "CHUNK_BYTES", chunk_bytes)
    values = (np.random.default_rng(0).normal(3, 2, shape)).astype(np.float32)
    flat = values.reshape(-1, shape[-1] if len(shape) > 1 else 1).astype(np.float64)
    fitted = fit(values)
    # Both are computed in float64 and rounded to float32 once: 2**-24 relative.
    np.testing.assert_allclose(fitted["mean"], flat.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(fitted["std"], flat.std(axis=0), rtol=1e-7)


def test_what_is_read_for_long_says_how_much_is_read(monkeypatch, capsys):
    monkeypatch.setattr(normalize, "CHUNK_BYTES", 800)
    clock = itertools.count()
    monkeypatch.setattr("accelnet.terminal.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    x = np.arange(300.0, dtype=np.float32)[:, None]
    fit(x)
    assert not capsys.readouterr().err
    fit(lazy_arrays(StoredRows({"x": x}))["x"])
    shown = capsys.readouterr().err
    assert "1 s" not in shown and "   2 s  computing mean and deviation: 200 of 300 rows\n" in shown
    an.data.from_source([(row, 1.0) for row in x], validation=0, test=0)
    assert "   2 s  reading rows for their mean: 128 of 300\n" in capsys.readouterr().err


def test_moments_of_bytes_do_not_overflow():
    fitted = fit(np.full((1000, 28, 28, 1), 255, np.uint8))
    assert (fitted["mean"].item(), fitted["std"].item()) == (255, 1)


def test_a_constant_channel_is_divided_by_one():
    values = np.stack([np.full(1001, 1e6 / 3), np.arange(1001.0)], axis=1)
    assert fit(values)["std"][0] == 1


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 4, 5, 2)])
def test_standardized_values_have_mean_zero_and_deviation_one(shape):
    values = np.random.default_rng(0).normal(5, 3, shape).astype(np.float32)
    batch = {"inputs": values, "targets": np.array([200] * 6, np.uint8), "mask": np.ones(6, bool)}
    got = jax.jit(lambda batch: standardize(batch, fit(values), {}))(batch)
    flat = np.asarray(got["inputs"]).reshape(-1, shape[-1] if len(shape) > 1 else 1)
    assert got["inputs"].shape == shape
    # float32 rounding of values of size 5.
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(flat.std(axis=0), 1, atol=1e-6)
    assert got["targets"].dtype == np.int32
    assert got["targets"].tolist() == [200] * 6
    assert got["mask"].all()


def test_float_targets_are_not_cast():
    assert with_cast_targets({"targets": np.zeros(2, np.float32)})["targets"].dtype == np.float32


def test_a_dict_of_targets_is_cast_entry_by_entry_and_none_is_needed():
    got = with_cast_targets({"targets": {"digit": np.zeros(2, np.uint8), "size": np.zeros(2, np.float32)}})["targets"]
    assert (got["digit"].dtype, got["size"].dtype) == (np.int32, np.float32)
    assert with_cast_targets({"inputs": 1}) == {"inputs": 1}


def test_an_offset_of_the_rows_is_part_of_the_mean():
    raw = 1.7e9 + np.arange(4.0)[:, None]
    stored = (raw - 1.7e9).astype(np.float32)
    fitted = fit(stored, np.array([1.7e9]))
    assert fitted["mean"].tolist() == [1.7e9 + 1.5]
    expected = (raw - raw.mean()) / raw.std()
    got = standardize({"inputs": stored}, fitted, {"inputs": {"offset": (1.7e9,)}})["inputs"]
    np.testing.assert_allclose(got, expected, rtol=1e-6)  # float32 rounding
    other = standardize({"inputs": (raw - 1.6e9).astype(np.float32)}, fitted, {"inputs": {"offset": (1.6e9,)}})[
        "inputs"
    ]
    np.testing.assert_allclose(other, expected, atol=8)  # numbers of 1e8 are 8 apart


def test_targets_of_other_rows_come_into_the_units_of_the_fit():
    fitted = {"mean": (0.0,), "std": (1.0,), "target": {"mean": 10.0, "std": 2.0, "log": False}}
    batch = {"inputs": np.zeros((2, 1), np.float32), "targets": np.array([[0.0], [1.0]], np.float32)}
    got = standardize(batch, fitted, {"targets": {"mean": 14.0, "std": 4.0}})["targets"]
    assert got.tolist() == [[2.0], [4.0]]  # 14 and 18
    same = standardize(batch, fitted, {"targets": {"mean": 10.0, "std": 2.0}})["targets"]
    assert same is batch["targets"] or same.tolist() == [[0.0], [1.0]]
