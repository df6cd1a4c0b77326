import re

import jax
import numpy as np
import pytest

from accelnet.data import from_arrays, npz, xor
from accelnet.errors import UserError


def rows_of(data, split):
    rows = data.splits[split]
    return data.take(np.arange(rows.start, rows.stop))


def test_pairs_stay_together_and_no_row_is_in_two_splits():
    inputs = np.arange(100.0)[:, None]
    data = from_arrays(inputs, inputs[:, 0] * 2, validation=0.2, test=0.1)
    assert np.array_equal(data.arrays["inputs"][:, 0] * 2, data.arrays["targets"])
    seen = [set(rows_of(data, split)["targets"].tolist()) for split in ("train", "validation", "test")]
    assert [len(one) for one in seen] == [70, 20, 10]
    assert len(set.union(*seen)) == 100


def test_splits_follow_the_seed():
    inputs = np.arange(50.0)[:, None]
    first, again, other = (from_arrays(inputs, inputs, seed=seed).fingerprint() for seed in (0, 0, 1))
    assert first == again != other


def test_classes_are_stratified():
    data = from_arrays(np.zeros((100, 1)), np.repeat([0, 1], [80, 20]), num_classes=2, validation=0.1, test=0.1)
    assert [rows_of(data, split)["targets"].sum() for split in ("train", "validation", "test")] == [16, 2, 2]


def test_statistics_come_from_training_rows_only():
    train = np.random.default_rng(0).normal(2, 5, (40, 3))
    held_out = (np.full((10, 3), 1000.0), np.zeros(10))
    data = from_arrays(train, np.zeros(40), validation=held_out, test=held_out)
    got = np.asarray(jax.jit(data.prepare)(rows_of(data, "train"))["inputs"])
    # float32 rounding.
    np.testing.assert_allclose(got.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(got.std(axis=0), 1, atol=1e-6)
    assert len(data.splits["train"]) == 40


def test_given_held_out_rows_stay_as_they_are_and_mix_with_fractions():
    test = (np.arange(7.0)[:, None] + 100, np.arange(7))
    data = from_arrays(np.arange(20.0)[:, None], np.zeros(20, int), validation=0.25, test=test)
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 15,
        "validation": 5,
        "test": 7,
    }
    assert np.array_equal(rows_of(data, "test")["inputs"], test[0])
    assert np.array_equal(rows_of(data, "test")["targets"], test[1])


def test_numbers_become_compact_and_tokens_are_not_normalized():
    tokens = np.arange(40).reshape(10, 4)
    data = from_arrays(tokens, np.zeros(10), validation=0, test=0)
    assert (data.arrays["inputs"].dtype, data.arrays["targets"].dtype) == (np.int32, np.float32)
    prepared = data.prepare(data.take(np.arange(10)))
    assert np.array_equal(prepared["inputs"], data.arrays["inputs"])
    bytes_ = from_arrays(tokens.astype(np.uint8), np.zeros(10), normalize=False)
    assert bytes_.prepare(bytes_.take(np.arange(2)))["inputs"].dtype == np.uint8


def test_a_dict_of_inputs_is_passed_on():
    inputs = {"x": np.arange(10.0), "lengths": np.arange(10)}
    data = from_arrays(inputs, np.arange(10), test=({"x": np.zeros(2), "lengths": np.zeros(2, int)}, np.zeros(2, int)))
    assert np.array_equal(data.arrays["inputs"]["x"][:10], data.arrays["targets"][:10])
    assert data.arrays["inputs"]["lengths"].shape == (12,)
    with pytest.raises(UserError, match="named differently"):
        from_arrays(inputs, np.arange(10), test=({"x": np.zeros(2)}, np.zeros(2, int)))


@pytest.mark.parametrize(
    ("inputs", "targets", "kwargs", "message"),
    [
        (np.zeros((5, 1)), np.zeros(4), {}, "unequal numbers of rows"),
        (np.full((5, 1), np.nan), np.zeros(5), {}, "inputs is NaN or infinite in row 0"),
        (np.zeros((5, 1)), np.arange(5), {"num_classes": 4}, "labels 0 to 4, expected 0 to 3"),
        (np.zeros((5, 1)), np.full(5, 0.5), {"num_classes": 4}, "needs integer targets"),
        (np.full((5, 1), 1e300), np.zeros(5), {}, "which float32 cannot hold"),
        (np.zeros((5, 1)), np.full(5, 2**40), {}, "which int32 cannot hold"),
        (np.array(["a"] * 5), np.zeros(5), {}, "expected numbers"),
        (np.zeros((5, 1)), np.zeros(5), {"validation": 0.5, "test": 0.6}, "leave none for training"),
        (np.zeros((5, 1)), np.zeros(5), {"test": (np.zeros((2, 2)), np.zeros(2))}, "differ in type or shape"),
        (np.zeros((5, 1)), np.zeros(5), {"test": (np.zeros((2, 1)), np.zeros(3))}, "unequal numbers of rows"),
        (np.zeros((5, 1)), np.zeros(5), {"test": (np.zeros((2, 1)),)}, "has 1 parts"),
        (np.zeros((0, 1)), np.zeros(0), {"validation": 0, "test": 0}, "leave none for training"),
    ],
)
def test_wrong_arrays_are_refused(inputs, targets, kwargs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        from_arrays(inputs, targets, **kwargs)


def test_npz_equals_the_arrays_in_it(tmp_path):
    inputs, targets = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    np.savez(tmp_path / "a.npz", inputs=inputs, targets=targets, x_test=inputs[:5], y_test=targets[:5])
    assert (
        npz(tmp_path / "a.npz", num_classes=3).fingerprint()
        == from_arrays(inputs, targets, num_classes=3).fingerprint()
    )
    data = npz(tmp_path / "a.npz", test=("x_test", "y_test"))
    assert np.array_equal(rows_of(data, "test")["targets"], targets[:5])
    assert data.name == "a"


def test_npz_files_that_are_missing_damaged_or_hold_objects_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        npz(path)
    for content in (b"", b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="file or truncated"):
            npz(path)
    np.savez(path, inputs=np.zeros(3), other=np.zeros(3))
    with pytest.raises(UserError, match="has arrays 'inputs', 'other', expected one 'targets'"):
        npz(path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="truncated"):
        npz(path)
    np.savez(path, inputs=np.array([{"a": 1}] * 3, dtype=object), targets=np.zeros(3))
    with pytest.raises(UserError, match="file of numbers"):
        npz(path)
    np.savez(path, inputs=np.zeros(300), targets=np.zeros(300))
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="file of numbers"):
        npz(path)


def test_xor_has_four_training_rows_and_nothing_held_out():
    data = xor()
    assert [data.num_examples(split) for split in ("train", "validation", "test")] == [4, 0, 0]
    inputs = data.arrays["inputs"].astype(int)
    assert np.array_equal(data.arrays["targets"][:, 0], inputs[:, 0] ^ inputs[:, 1])
