import re

import chex
import jax
import numpy as np
import pytest

from accelnet.data import from_arrays, xor
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
    chex.assert_shape(data.arrays["inputs"]["lengths"], (12,))
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
        ([[1.0, 2.0], [3.0]], [0, 1], {}, "rows of unequal lengths?"),
        (np.zeros((5, 0)), np.zeros(5), {}, "inputs has shape (5, 0), expected at least one value in each row"),
        ({1: np.zeros(5)}, np.zeros(5), {}, "inputs has the name 1, expected names that are text"),
        ({}, np.zeros(5), {}, "inputs is empty"),
        (None, np.zeros(5), {}, "dtype object"),
        (np.ma.masked_array(np.zeros((5, 1)), True), np.zeros(5), {}, "masked values"),
        (np.zeros((5, 1)), np.array([["a"]] * 5), {}, "expected one name for each row"),
        (np.zeros((5, 1)), ["a"] * 5, {"num_classes": 2}, "num_classes is 2, but targets name 'a'"),
        (np.zeros((5, 1)), np.zeros(5), {"num_classes": 1.5}, "num_classes is 1.5, expected a whole number"),
        (np.zeros((5, 1)), np.zeros(5), {"num_classes": "2"}, "num_classes is '2', expected a whole number"),
        (np.zeros((5, 1)), np.zeros(5), {"num_classes": True}, "num_classes is True, expected a whole number"),
        (np.zeros((5, 1)), {"a": np.zeros(5, int)}, {"num_classes": 2}, "they are a dict"),
        (np.zeros((5, 1)), np.zeros(5), {"weights": -np.ones(5)}, "weights go down to -1.0"),
        (np.zeros((5, 1)), np.zeros(5), {"weights": np.zeros(5)}, "weights are 0 in all training rows"),
        (np.zeros((5, 1)), np.zeros(5), {"weights": np.full(5, np.nan)}, "weights is NaN"),
        (np.zeros((5, 1)), np.zeros(5), {"weights": np.ones(4)}, "unequal numbers of rows"),
        (np.zeros((5, 1)), np.zeros(5), {"weights": np.ones((5, 1))}, "expected one number for each row"),
        (np.zeros((5, 1)), np.zeros(5), {"validation": None}, "validation is None, expected a fraction"),
        (np.zeros((5, 1)), np.zeros(5), {"test": "a"}, "test is 'a', expected a fraction"),
        (np.zeros((5, 1)), np.zeros(5), {"test": True}, "test is True, expected a fraction"),
        (np.zeros((5, 1)), np.zeros(5), {"seed": 1.5}, "seed is 1.5, expected a whole number"),
        (np.zeros((5, 1)), np.zeros(5), {"normalize": "no"}, "normalize is 'no', expected True or False"),
        (np.zeros((5, 1)), np.zeros(5), {"name": None}, "name is None, expected text"),
    ],
)
def test_wrong_arrays_are_refused(inputs, targets, kwargs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        from_arrays(inputs, targets, **kwargs)


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda x: x.astype(">f8"), np.float32),
        (lambda x: x.astype(">f4"), np.float32),
        (lambda x: x.astype(np.longdouble), np.float32),
        (np.asfortranarray, np.float32),
        (lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1], np.float32),
        (lambda x: x[::-1][::-1], np.float32),
        (lambda x: x.tolist(), np.float32),
        (lambda x: np.ma.masked_array(x, np.zeros(x.shape, bool)), np.float32),
        (lambda x: (np.abs(x) * 100).astype(">u2"), np.uint16),
        (lambda x: (x * 100).astype(">i8"), np.int32),
        (lambda x: x.astype(">f2"), np.float16),
    ],
)
def test_arrays_of_any_layout_become_native_ones(change, dtype):
    values = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32).astype(np.float64)
    given = change(values)
    data = from_arrays(given, (np.arange(30) % 2).astype(">i8"), num_classes=2)
    native = from_arrays(
        np.array(given).astype(np.array(given).dtype.newbyteorder("=")), np.arange(30) % 2, num_classes=2
    )
    assert data.arrays["inputs"].dtype == dtype
    assert data.arrays["inputs"].dtype.isnative
    assert data.arrays["targets"].dtype == np.int32
    assert data.fingerprint() == native.fingerprint()
    batch = jax.device_put(data.take(np.arange(3)))
    assert np.array_equal(batch["inputs"], data.arrays["inputs"][:3])


def test_read_only_arrays_are_taken_and_left_alone():
    values = np.random.default_rng(0).normal(size=(30, 4))
    values.flags.writeable = False
    assert from_arrays(values, np.zeros(30)).num_rows == 30


def test_weights_go_with_their_rows():
    inputs = np.arange(40.0)[:, None]
    data = from_arrays(inputs, np.zeros(40), weights=np.arange(40) + 0.5, validation=0.2)
    for split in ("train", "validation", "test"):
        rows = rows_of(data, split)
        assert np.array_equal(rows["inputs"][:, 0] + 0.5, rows["weights"])
    held_out = (np.ones((3, 1)), np.zeros(3))
    data = from_arrays(inputs, np.zeros(40), weights=np.full(40, 2), test=held_out, validation=(*held_out, [5, 6, 7]))
    assert data.arrays["weights"].dtype == np.float32
    assert rows_of(data, "validation")["weights"].tolist() == [5, 6, 7]
    assert rows_of(data, "test")["weights"].tolist() == [1, 1, 1]
    assert set(rows_of(data, "train")["weights"].tolist()) == {2}


def test_labels_of_other_types_that_are_whole_numbers_are_labels():
    inputs, labels = np.zeros((10, 1)), np.arange(10) % 2
    expected = from_arrays(inputs, labels, num_classes=2).fingerprint()
    for given in (labels == 1, labels.astype(float), labels.tolist(), labels.astype(np.int64)):
        assert from_arrays(inputs, given, num_classes=2).fingerprint() == expected


def test_names_as_targets_become_classes():
    inputs, labels = np.arange(10.0)[:, None], np.arange(10) % 3
    names = np.array(["b", "c", "a"])[labels]
    for given in (names, names.tolist(), names.astype(object), names.astype("S")):
        data = from_arrays(inputs, given, validation=0, test=0)
        assert data.info["class_names"] == ("a", "b", "c")
        assert data.info["num_classes"] == 3
        found = dict(
            zip(data.arrays["inputs"][:, 0].tolist(), data.decode(data.arrays["targets"]).tolist(), strict=True)
        )
        assert found == dict(enumerate(names.tolist()))


def test_xor_has_four_training_rows_and_nothing_held_out():
    data = xor()
    assert [data.num_examples(split) for split in ("train", "validation", "test")] == [4, 0, 0]
    inputs = data.arrays["inputs"].astype(int)
    assert np.array_equal(data.arrays["targets"][:, 0], inputs[:, 0] ^ inputs[:, 1])


def test_names_of_classes_may_be_given_in_the_order_of_their_numbers():
    inputs, labels, names = np.arange(10.0)[:, None], np.arange(10) % 3, ("wren", "owl", "jay")
    numbers, texts = (
        from_arrays(inputs, given, class_names=names) for given in (labels, [names[label] for label in labels])
    )
    assert numbers.info["class_names"] == numbers.fitted["class_names"] == names
    assert numbers.info["num_classes"] == 3
    assert numbers.decode([2, 0]).tolist() == ["jay", "wren"]
    assert numbers.fitted == texts.fitted
    assert np.array_equal(numbers.arrays["targets"], texts.arrays["targets"])
    for given, message in (
        ({"class_names": "owl"}, "class_names is 'owl', expected a list of names"),
        ({"class_names": names[:2]}, "hold labels 0 to 2, expected 0 to 1"),
        ({"class_names": names, "num_classes": 4}, "num_classes is 4, but targets name 'wren', 'owl', 'jay'"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            from_arrays(inputs, labels, **given)
    with pytest.raises(UserError, match="targets name 'jay', which class_names do not have"):
        from_arrays(inputs, [names[label] for label in labels], class_names=names[:2])
