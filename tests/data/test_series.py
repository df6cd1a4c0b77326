import re
from importlib.util import find_spec

import chex
import jax
import numpy as np
import pytest

from accelnet.data import files as data_files
from accelnet.data import japanese_vowels, ts
from accelnet.errors import UserError

HEADER = "#comment\n@problemName Toy\n@timeStamps false\n@missing false\n@classLabel true a b c\n@data\n"


def write(path, rows, header=HEADER):
    lines = [":".join([",".join(str(float(v)) for v in dim) for dim in one.T] + [label]) for one, label in rows]
    path.write_text(header + "\n".join(lines) + "\n")
    return path


def random_rows(num, seed):
    rng = np.random.default_rng(seed)
    return [(rng.normal(4, 3, (rng.integers(2, 9), 2)).astype(np.float32), "abc"[i % 3]) for i in range(num)]


@pytest.fixture
def files(tmp_path):
    rows = random_rows(60, 0), random_rows(30, 1)
    return write(tmp_path / "train.ts", rows[0]), write(tmp_path / "test.ts", rows[1]), *rows


def test_every_series_is_read_and_padded_with_zeros(files):
    data = ts(*files[:2], validation=0.1)
    inputs, lengths = data.arrays["inputs"]["inputs"], data.arrays["inputs"]["lengths"]
    chex.assert_shape(inputs, (90, 8, 2))
    assert data.name == "Toy"
    read = [
        (one[:length].tobytes(), "abc"[label])
        for one, length, label in zip(inputs, lengths, data.arrays["targets"], strict=True)
    ]
    written = [(one.tobytes(), label) for one, label in files[2] + files[3]]
    assert sorted(read) == sorted(written)
    assert read[60:] == written[60:]
    for one, length in zip(inputs, lengths, strict=True):
        assert not one[length:].any()


def test_validation_is_seeded_stratified_and_of_the_training_file(files):
    data = ts(*files[:2], validation=0.1)
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 54,
        "validation": 6,
        "test": 30,
    }
    assert np.bincount(data.arrays["targets"][54:60]).tolist() == [2, 2, 2]
    assert data.fingerprint() == ts(*files[:2], validation=0.1).fingerprint() != ts(*files[:2], seed=1).fingerprint()
    assert "validation" not in ts(*files[:2], validation=0).splits


def test_statistics_are_those_of_the_valid_steps_of_training_rows(files):
    data = ts(*files[:2])
    batch = jax.jit(data.prepare)(data.take(np.arange(90)))
    values, lengths = np.asarray(batch["inputs"]["inputs"]), np.asarray(batch["inputs"]["lengths"])
    valid = np.arange(8)[None, :] < lengths[:, None]
    assert not values[~valid].any()
    train = values[:54][valid[:54]]
    # float32 rounding of a few hundred values.
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-6)
    assert np.abs(values[54:][valid[54:]].mean(axis=0)).max() > 1e-3


def test_missing_values_become_training_means_where_allowed(files, tmp_path):
    path = tmp_path / "missing.ts"
    path.write_text(HEADER + "1,?,3:4,5,6:a\n" + "1,2:7,8:b\n" * 9 + "1:7:c\n")
    with pytest.raises(UserError, match=r"line 7: a value is missing"):
        ts(path, path)
    data = ts(path, path, allow_missing=True, validation=0)
    batch = data.prepare(data.take(np.arange(22)))
    row = int(np.argmax(data.arrays["inputs"]["lengths"]))
    assert abs(float(batch["inputs"]["inputs"][row, 1, 0])) < 1e-6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no series"),
        (HEADER, "holds no series"),
        ("1,2,3\n", "line 1: expected a header line"),
        (HEADER + "1,2:3,4:d\n", "line 7: label 'd', expected 'a', 'b', 'c'"),
        (HEADER + "1,2:3:a\n", "line 7: dimensions have lengths 2, 1"),
        (HEADER + "a\n", "line 7: dimensions have lengths none"),
        (HEADER + "1,x:3,4:a\n", "line 7: could not convert string to float: 'x'"),
        (HEADER + "1,:3,4:a\n", "line 7: could not convert"),
        (HEADER + "1,inf:3,4:a\n", "line 7: a value is infinite"),
        (HEADER + "1,2:3,4:a\n1,2:a\n", "line 8: 1 dimensions, expected 2"),
        (HEADER.replace("@timeStamps false", "@timeStamps true"), "time stamps"),
        (HEADER.replace("@timeStamps false", "@timeStamps True"), "time stamps"),
        (HEADER + "(0,1),(1,2):a\n", "line 7: a value is in brackets, as time stamps are"),
        (HEADER.replace("@classLabel true a b c", "@targetLabel true"), "has numbers to predict (@targetLabel)"),
        (HEADER.replace("a b c", "a b a"), "has 'a' more than once"),
        (HEADER + "1,2:3,4:\x1b[31m\n", r"label '\x1b[31m', expected 'a', 'b', 'c'"),
        (HEADER + "1,1e300:3,4:a\n", "line 7: a value is infinite or float32 cannot hold it"),
        (HEADER.replace("true a b c", "false"), "no class labels"),
        (HEADER.replace("@classLabel true a b c\n", ""), "no class labels"),
    ],
)
def test_wrong_files_are_refused_with_the_line(files, tmp_path, content, message):
    (tmp_path / "bad.ts").write_text(content)
    for pair in ((tmp_path / "bad.ts", files[1]), (files[0], tmp_path / "bad.ts")):
        with pytest.raises(UserError, match=re.escape(message)):
            ts(*pair)


def test_a_byte_order_mark_is_read_and_labels_may_be_in_any_order(files, tmp_path):
    other = write(tmp_path / "other.ts", files[3], "\ufeff" + HEADER.replace("a b c", "c b a").replace("\n", "\r\n"))
    data = ts(files[0], other)
    assert data.info["class_names"] == ("a", "b", "c")
    assert data.fingerprint() == ts(*files[:2]).fingerprint()


def test_series_without_any_value_are_refused(tmp_path):
    (tmp_path / "a.ts").write_text(HEADER + "1,2:3,4:a\n?,?:?,?:b\n")
    with pytest.raises(UserError, match="line 8: every value is missing"):
        ts(tmp_path / "a.ts", tmp_path / "a.ts", allow_missing=True)


def test_large_offsets_of_a_dimension_are_subtracted_in_float64(tmp_path):
    rows = "".join(f"{1.7e12 + 60 * row},{1.7e12 + 60 * row + 7}:{row},{row}:{'ab'[row % 2]}\n" for row in range(20))
    (tmp_path / "a.ts").write_text(HEADER.replace("a b c", "a b") + rows)
    data = ts(tmp_path / "a.ts", tmp_path / "a.ts", validation=0)
    batch = data.prepare(data.take(np.arange(20)))["inputs"]["inputs"]
    assert len(np.unique(np.asarray(batch)[:, :, 0])) == 40
    # float32 rounding.
    np.testing.assert_allclose(batch.mean(axis=(0, 1)), 0, atol=1e-6)
    raw = np.unique(data.raw(np.arange(40))["inputs"]["inputs"][:, :, 0])
    assert raw.tolist() == sorted(1.7e12 + 60 * row + more for row in range(20) for more in (0, 7))


def test_files_that_do_not_fit_together_are_refused(files, tmp_path):
    other = write(tmp_path / "other.ts", files[2], HEADER.replace("a b c", "a b c d"))
    with pytest.raises(UserError, match=r"other\.ts has labels 'a', 'b', 'c', 'd', expected 'a', 'b', 'c'"):
        ts(files[0], other)
    other = write(tmp_path / "other.ts", [(one[:, :1], label) for one, label in files[2]])
    with pytest.raises(UserError, match=r"2 dimensions, .* has 1"):
        ts(files[0], other)


def test_missing_or_binary_files_are_named(files, tmp_path):
    with pytest.raises(UserError, match=re.escape("nothing.ts cannot be read")):
        ts(tmp_path / "nothing.ts", files[1])
    (tmp_path / "binary.ts").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        ts(tmp_path / "binary.ts", files[1])


def test_without_aeon_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(data_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps aeon"):
        japanese_vowels()


@pytest.mark.skipif(find_spec("aeon") is None, reason="aeon is not installed")
def test_japanese_vowels_are_as_published():
    data = japanese_vowels()
    chex.assert_shape(data.arrays["inputs"]["inputs"], (640, 29, 12))
    assert (data.arrays["inputs"]["lengths"].min(), data.info["num_classes"]) == (7, 9)
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 243,
        "validation": 27,
        "test": 370,
    }
    assert np.bincount(data.arrays["targets"][243:270]).tolist() == [3] * 9
