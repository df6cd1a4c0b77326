import re

import jax
import numpy as np
import pytest

from accelnet.data import decode, encode, text
from accelnet.errors import UserError


def whole(data, split):
    """Return the characters of a split, the last target included."""
    rows = data.splits[split]
    inputs, targets = (data.arrays[key][rows.start : rows.stop] for key in ("inputs", "targets"))
    assert np.array_equal(inputs.ravel()[1:], targets.ravel()[:-1])
    return decode(np.append(inputs.ravel(), targets.ravel()[-1]), data.info["vocabulary"])


@pytest.mark.parametrize("length", [51, 60, 1000, 1009])
def test_splits_follow_each_other_in_the_text_and_share_no_character(tmp_path, length):
    # Every character occurs once, so a shared one would be seen.
    content = "".join(chr(0x4E00 + index) for index in range(length))
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    data = text(tmp_path / "a.txt", window=10)
    train, validation, test = (whole(data, split) for split in ("train", "validation", "test"))
    assert train in content
    assert validation in content
    assert content.endswith(test)
    assert not set(train) & set(validation)
    assert not set(train) & set(test)
    assert not set(validation) & set(test)
    assert content.index(train) < 10
    assert content.index(train) < content.index(validation) < content.index(test)
    # All but the start and a window between two splits is used.
    assert len(train) + len(validation) + len(test) == length - content.index(train) - 2 * 9


def test_the_last_tenth_is_the_test_split(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 12500, encoding="utf-8")
    data = text(tmp_path / "a.txt", window=10)
    assert len(data.splits["test"]) == len(data.splits["validation"]) == 1000
    assert len(data.splits["train"]) == 7997


@pytest.mark.parametrize("length", [61, 1009, 20011])
def test_held_out_blocks_are_a_tenth_each_all_over_the_text_and_share_no_character(tmp_path, length):
    content = "".join(chr(0x4E00 + index) for index in range(length))
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    data = text(tmp_path / "a.txt", window=10, held_out="blocks")
    seen = {}
    for split, rows in data.splits.items():
        inputs, targets = (data.arrays[key][rows.start : rows.stop] for key in ("inputs", "targets"))
        assert np.array_equal(inputs[:, 1:], targets[:, :-1])
        symbols = np.append(inputs.ravel(), targets[:, -1])
        seen[split] = {content.index(character) for character in decode(symbols, data.info["vocabulary"])}
    assert not seen["train"] & seen["validation"]
    assert not (seen["train"] | seen["validation"]) & seen["test"]
    if length > 10_000:
        for split in ("validation", "test"):
            assert 0.08 * length < len(seen[split]) < 0.11 * length
            assert max(seen[split]) - min(seen[split]) > length / 2
        assert len(seen["train"]) > 0.75 * length
        other = text(tmp_path / "a.txt", window=10, held_out="blocks", seed=1)
        assert not np.array_equal(other.arrays["inputs"], data.arrays["inputs"])


def test_tokens_are_one_array_of_the_smallest_type(tmp_path):
    for number, dtype in ((200, np.uint8), (300, np.uint16)):
        (tmp_path / "a.txt").write_text("".join(map(chr, range(50, 50 + number))), encoding="utf-8")
        data = text(tmp_path / "a.txt", window=5)
        assert data.arrays["inputs"].dtype == dtype
        assert np.shares_memory(data.arrays["inputs"], data.arrays["targets"])
        assert data.info["num_classes"] == len(data.info["vocabulary"]) == number
        batch = jax.jit(data.prepare)(data.take(np.array([0])))
        assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
        assert decode(batch["inputs"][0], data.info["vocabulary"]) == whole(data, "train")[:5]


def test_characters_beyond_sixteen_bits_are_single_symbols(tmp_path):
    content = "a\N{GRINNING FACE}\N{LATIN SMALL LETTER E WITH ACUTE}" * 20
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    data = text(tmp_path / "a.txt", window=3)
    assert data.info["num_classes"] == 3
    assert whole(data, "train") in content


def test_encode_is_the_inverse_of_decode_and_refuses_unknown_characters():
    vocabulary = "".join(sorted(set("hello, world")))
    assert decode(encode("hello world", vocabulary), vocabulary) == "hello world"
    with pytest.raises(UserError, match="characters 'XZ'"):
        encode("hXZ", vocabulary)


def test_the_default_is_text_that_every_python_has_and_stays_the_same():
    data = text()
    assert data.fingerprint() == text().fingerprint()
    assert data.num_examples("train") > 2000
    assert "import" in whole(data, "train")


@pytest.mark.parametrize(
    ("content", "kwargs", "message"),
    [
        (b"", {}, "is empty"),
        (b"abc", {"window": 2}, "has 3 characters, expected at least 11"),
        (b"a" * 100, {"window": 20}, "expected at least 101"),
        (b"a" * 100, {"window": 0}, "window is 0"),
        (b"a" * 100, {"window": 5, "held_out": "start"}, "held_out is 'start'"),
        (b"ab\xff" * 50, {"window": 2}, "is not utf-8-sig text (invalid start byte at byte 2)"),
        (b"a" * 100, {"encoding": "utf-99"}, "'utf-99' is unknown"),
    ],
)
def test_bad_text_files_give_one_message(tmp_path, content, kwargs, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        text(tmp_path / "a.txt", **kwargs)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape("nothing.txt cannot be read: No such file")):
        text(tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window": 1.5}, "window is 1.5, expected a whole number"),
        ({"window": "8"}, "window is '8', expected a whole number"),
        ({"window": True}, "window is True"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"encoding": 5}, "encoding is 5"),
        ({"path": 5}, "path is 5"),
        ({"held_out": "ends"}, "held_out is 'ends', expected one of 'end', 'blocks'; did you mean 'end'?"),
        ({"fitted": {"mean": 1.0}}, "with a vocabulary"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(kwargs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        text(**kwargs)
