import re

import numpy as np
import pytest

from accelnet.data import Data
from accelnet.data import arrays as arrays_module
from accelnet.data.rows import LazyArray
from accelnet.errors import UserError

SPLITS = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}


def make(inputs=None, targets=None, splits=None, **kwargs):
    inputs = np.arange(20, dtype=np.float32).reshape(10, 2) if inputs is None else inputs
    targets = np.arange(10) % 3 if targets is None else targets
    return Data("toy", {"inputs": inputs, "targets": targets}, SPLITS if splits is None else splits, **kwargs)


def with_value(value):
    inputs = np.zeros((10, 2), np.float32)
    inputs[7, 1] = value
    return inputs


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"splits": {"train": range(6), "test": range(5, 10)}}, "'train' and 'test' overlap from row 5"),
        ({"splits": {"train": range(11)}}, "outside of the 10 rows"),
        ({"splits": {"train": range(-1, 4)}}, "outside of the 10 rows"),
        ({"splits": {"train": range(0, 6, 2)}}, "expected a range with step 1"),
        ({"splits": {"train": [0, 1]}}, "expected a range with step 1"),
        ({"splits": {"test": range(3)}}, "no training rows"),
        ({"splits": {"train": range(0), "test": range(3)}}, "no training rows"),
        ({"splits": {}}, "no training rows"),
        ({"targets": np.zeros(9)}, "unequal numbers of rows: inputs has 10, targets has 9"),
        ({"targets": np.float32(1)}, "targets is a single number"),
        ({"inputs": with_value(np.nan)}, "inputs is NaN or infinite in row 7"),
        ({"inputs": with_value(-np.inf)}, "inputs is NaN or infinite in row 7"),
        ({"inputs": {"x": with_value(np.nan)}}, "inputs.x is NaN or infinite in row 7"),
        ({"targets": with_value(np.nan)[:, 1]}, "targets is NaN or infinite in row 7"),
        ({"info": {"num_classes": 2}}, "labels 0 to 2, expected 0 to 1"),
        ({"targets": np.arange(10) - 1, "info": {"num_classes": 10}}, "labels -1 to 8, expected 0 to 9"),
        ({"inputs": np.array(["a"] * 10)}, "expected numbers or booleans"),
        ({"inputs": np.array([None] * 10)}, "expected numbers or booleans"),
        ({"inputs": {}}, "is empty"),
        ({"inputs": {1: np.zeros(10)}}, "has the name 1, expected names that are text"),
        ({"inputs": np.zeros((10, 0))}, "inputs has shape (10, 0), expected at least one value in each row"),
        ({"splits": [range(3)]}, "splits is [range(0, 3)], expected a dict"),
        ({"splits": {"train": np.arange(3)}}, "is an array of int64 [3], expected a range with step 1"),
        ({"splits": {"train": range(3), 3: range(3, 4)}}, "has a split 3, expected names"),
        ({"info": {"num_classes": 1.5}}, "num_classes is 1.5, expected a whole number"),
        ({"info": {"num_classes": "3"}}, "num_classes is '3', expected a whole number"),
        ({"info": None}, "info is None, expected a dict"),
        ({"prepare": 3}, "prepare is 3, expected a function of a batch"),
        ({"augment": 5}, "augment is 5, expected a function (key, batch)"),
    ],
)
def test_wrong_data_is_refused_with_a_message_that_says_what_is_wrong(kwargs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make(**kwargs)


def test_missing_and_reserved_arrays_are_refused():
    with pytest.raises(UserError, match=re.escape("expected 'inputs' and 'targets'")):
        Data("toy", {"inputs": np.zeros(3)}, {"train": range(3)})
    with pytest.raises(UserError, match="'mask'"):
        Data("toy", dict.fromkeys(("inputs", "targets", "mask"), np.zeros(3)), {"train": range(3)})


@pytest.mark.parametrize(
    ("split", "meant"),
    [("valid", "validation"), ("val", "validation"), ("dev", "validation"), ("vaildation", "validation"),
     ("Validation", "validation"), ("tets", "test"), ("Test", "test"), ("testing", "test"), ("training", "train")],
)  # fmt: skip
def test_a_split_that_is_meant_as_another_is_refused(split, meant):
    with pytest.raises(UserError, match=f"has a split '{split}'; did you mean '{meant}'?"):
        make(splits={"train": range(6), split: range(6, 8)})


def test_splits_may_have_names_of_their_own():
    data = make(splits={"train": range(4), "ood": range(4, 6), "test2": range(6, 8), "night": range(8, 10)})
    assert data.num_examples("ood") == 2
    with pytest.raises(UserError, match="splits is None, expected a dict"):
        Data("toy", {"inputs": np.zeros(3), "targets": np.zeros(3)}, None)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.full(10, -1.0), "weights go down to -1.0, expected numbers of at least 0"),
        (np.array([0] * 6 + [1] * 4), "weights are 0 in all training rows"),
        (np.full(10, np.nan), "weights is NaN"),
    ],
)
def test_weights_that_cannot_weigh_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        Data("toy", {"inputs": np.zeros(10), "targets": np.zeros(10), "weights": weights}, SPLITS)


def test_the_range_of_targets_is_that_of_the_split(monkeypatch, tmp_path):
    targets = {"digit": np.arange(10), "size": np.linspace(-1, 1, 10, dtype=np.float32)}
    data = make(targets=targets)
    assert data.target_range("test") == {"targets.digit": (8, 9), "targets.size": (pytest.approx(7 / 9), 1.0)}
    assert data.target_range("other") == {}
    np.save(tmp_path / "y.npy", np.zeros(10))
    monkeypatch.setattr(arrays_module, "CHECKED_STORED_BYTES", 8)
    assert make(targets=np.load(tmp_path / "y.npy", mmap_mode="r")).target_range() == {}


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", np.longdouble])
def test_arrays_of_another_machine_are_converted(dtype):
    data = make(inputs=np.arange(10).astype(dtype))
    assert data.arrays["inputs"].dtype.isnative
    assert data.arrays["inputs"].dtype.itemsize <= 8
    assert data.arrays["inputs"].tolist() == list(range(10))


def test_splits_may_leave_out_rows_and_be_empty():
    data = make(splits={"train": range(2, 5), "validation": range(0), "test": range(9, 10)})
    assert [data.num_examples(split) for split in ("train", "validation", "test", "other")] == [3, 0, 1, 0]


def test_take_copies_the_rows_in_order_whatever_the_structure():
    inputs = {"x": np.arange(20).reshape(10, 2), "lengths": np.arange(10)}
    data = make(inputs=inputs)
    batch = data.take(np.array([3, 0, 3]))
    assert batch["inputs"]["x"].tolist() == [[6, 7], [0, 1], [6, 7]]
    assert batch["inputs"]["lengths"].tolist() == [3, 0, 3]
    batch["inputs"]["x"][:] = -1
    assert inputs["x"][3].tolist() == [6, 7]
    for row in (-1, 10):
        with pytest.raises(IndexError):
            data.take(np.array([row]))


def test_take_of_a_memmap_is_an_array_in_memory(tmp_path):
    saved = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.save(tmp_path / "x.npy", saved)
    data = make(inputs=np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert isinstance(data.arrays["inputs"], LazyArray)
    batch = data.take(np.array([9, 1]))
    assert type(batch["inputs"]) is np.ndarray
    assert np.array_equal(batch["inputs"], saved[[9, 1]])
    assert data.fingerprint() == make().fingerprint()


def test_values_of_a_large_memmap_are_not_read(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", with_value(np.nan))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with pytest.raises(UserError, match="row 7"):
        make(inputs=mapped)
    monkeypatch.setattr(arrays_module, "CHECKED_STORED_BYTES", 8)
    make(inputs=mapped)


def test_the_bad_row_is_named_when_the_array_is_read_by_blocks(monkeypatch):
    monkeypatch.setattr(arrays_module, "CHUNK_BYTES", 16)
    with pytest.raises(UserError, match="in row 7"):
        make(inputs=with_value(np.nan))


def test_bytes_are_those_of_all_arrays():
    assert make(targets=np.zeros(10, np.uint8)).nbytes == 10 * 2 * 4 + 10


def test_fingerprint_changes_with_every_part_of_the_data_and_with_nothing_else():
    changed = with_value(0.0)
    inputs = np.zeros((10, 2), np.float32)
    changed[9, 1] = np.float32(1e-30)
    variants = [
        make(inputs=inputs),
        make(inputs=changed),
        make(inputs=inputs.reshape(10, 2, 1)),
        make(inputs=inputs.view(np.int32)),
        make(inputs={"x": inputs}),
        make(inputs=inputs, targets=np.zeros(10, int)),
        make(inputs=inputs, splits={"train": range(7), "test": range(7, 10)}),
    ]
    assert len({data.fingerprint() for data in variants}) == len(variants)
    strided = np.asfortranarray(inputs)
    assert make(inputs=strided, info={"a": 1}).fingerprint() == variants[0].fingerprint()


def test_fingerprint_of_a_large_array_reads_evenly_spaced_rows(monkeypatch):
    monkeypatch.setattr(arrays_module, "HASHED_BYTES", 16)
    first, unread, last = (with_value(0.0) for _ in range(3))
    unread[4] = 1
    last[9] = 1
    assert make(inputs=first).fingerprint() == make(inputs=unread).fingerprint()
    assert make(inputs=first).fingerprint() != make(inputs=last).fingerprint()


def test_the_structure_is_a_pytree_of_plain_dicts():
    import types

    import jax

    data = make(inputs=types.MappingProxyType({"x": np.zeros(10)}))
    assert len(jax.tree.leaves(dict(data.arrays))) == 2
