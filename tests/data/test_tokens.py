"""Token files and tokenizers."""

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.data import text, tokens
from accelnet.data.rows import LazyArray
from accelnet.data.windows import held_out_windows
from accelnet.errors import UserError

CORPUS = np.random.default_rng(0).integers(0, 50, 1000).astype(np.uint16)


class Words:
    """A tokenizer of the user's."""

    words = ("the", "cat", "sat", "on", "mat")
    n_vocab = 5

    def encode(self, text):
        return [self.words.index(word) for word in text.split()]

    def decode(self, tokens):
        return " ".join(self.words[token] for token in tokens)


@pytest.fixture
def corpus(tmp_path):
    CORPUS.tofile(tmp_path / "a.bin")
    return tmp_path / "a.bin"


def windows(data, split):
    rows = data.splits[split]
    return data.take(np.arange(rows.start, rows.stop))


@pytest.mark.parametrize(("window", "stride"), [(8, None), (8, 8), (8, 3), (5, 9)])
@pytest.mark.parametrize("held_out", ["end", "blocks"])
def test_every_window_is_followed_by_its_targets_and_splits_share_none(corpus, window, stride, held_out):
    data = tokens(corpus, dtype="uint16", window=window, stride=stride, held_out=held_out)
    assert isinstance(data.arrays["inputs"], LazyArray) and data.arrays["inputs"].dtype == np.uint16
    # Tokens as numbers of their places, so that each says where it stands.
    np.arange(1000, dtype=np.uint16).tofile(corpus)
    data = tokens(corpus, dtype="uint16", window=window, stride=stride, held_out=held_out)
    seen = {}
    for split in ("train", "validation", "test"):
        batch = windows(data, split)
        assert np.array_equal(batch["targets"], batch["inputs"] + 1)
        assert np.array_equal(np.diff(batch["inputs"], axis=1), np.ones((len(batch["inputs"]), window - 1)))
        assert (batch["inputs"][:, 0] % (stride or window) == 0).all()
        seen[split] = set(batch["targets"].ravel().tolist())
    assert not seen["train"] & seen["validation"] and not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert data.info["num_classes"] == 1000


def test_windows_do_not_reach_from_one_file_into_the_next_and_files_may_hold_out(corpus, tmp_path):
    np.save(tmp_path / "b.npy", CORPUS[:100])
    data = tokens([corpus, tmp_path / "b.npy"], dtype="uint16", window=99, validation=tmp_path / "b.npy")
    rows = {tuple(row) for split in data.splits for row in windows(data, split)["inputs"].tolist()}
    firsts = [CORPUS[start : start + 99] for start in range(0, 900, 99)]
    assert rows <= {tuple(one.tolist()) for one in [*firsts, CORPUS[:99]]}
    assert windows(data, "validation")["inputs"].tolist() == [CORPUS[:99].tolist()]
    assert sorted(data.splits) == ["test", "train", "validation"]


def test_left_out_windows_are_those_before_another_split():
    for between in (0, 1, 3):
        order, splits = held_out_windows(200, "blocks", 1, between=between, what="it")
        kind = np.full(200, -1)
        for index, rows in enumerate(splits.values()):
            kind[order[rows.start : rows.stop]] = index
        for place in range(199):
            if kind[place] >= 0:
                later = kind[place + 1 : place + 1 + between]
                assert set(later.tolist()) <= {-1, kind[place]}


@pytest.mark.slow
def test_a_model_learns_from_a_token_file_as_from_the_same_text(tmp_path):
    content = "the cat sat on the mat " * 60
    (tmp_path / "a.txt").write_text(content)
    np.frombuffer(content.encode(), np.uint8).tofile(tmp_path / "a.bin")
    memory = text(tmp_path / "a.txt", window=16, tokenizer="bytes")
    # The windows of a text end with it, those of a file begin with it: the same where nothing is left over.
    (tmp_path / "a.bin").write_bytes(content.encode()[(len(content) - 1) % 16 :])
    disk = tokens(tmp_path / "a.bin", dtype="uint8", window=16, tokenizer="bytes")
    for split in memory.splits:
        assert np.array_equal(windows(memory, split)["targets"], windows(disk, split)["targets"])

    def trained(data):
        experiment = an.Experiment(
            data=data,
            model=lambda rngs: an.models.RNN(8, 8, 256, num_symbols=256, cell="gru", output="steps", rngs=rngs),
            optimizer=an.optim.adam(1e-2),
            objective=an.objectives.token_cross_entropy(),
            batch_size=4,
            steps=5,
        )
        return jax.device_get(jax.tree.leaves(an.fit(experiment, progress=False).params))

    assert all(np.array_equal(a, b) for a, b in zip(trained(memory), trained(disk), strict=True))


def test_text_by_a_tokenizer_goes_to_tokens_and_back(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 20)
    data = text(tmp_path / "a.txt", window=4, tokenizer=Words())
    assert data.info["num_classes"] == 5 and data.arrays["inputs"].dtype == np.uint8
    assert data.encode("cat on the mat").tolist() == [[1, 3, 0, 4]]
    assert data.decode(np.array([1, 3])) == "cat on"
    assert data.decode(np.array([[1, 3], [0, 4]])) == ["cat on", "the mat"]
    by_bytes = text(tmp_path / "a.txt", window=4, tokenizer="bytes")
    assert by_bytes.decode(by_bytes.encode("né!")) == ["né!"] and by_bytes.info["num_classes"] == 256


def test_another_tokenizer_than_that_of_the_run_is_refused(tmp_path):
    class Others(Words):
        n_vocab = 6

    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 20)
    Words.encode, old = lambda self, text: [len(word) % 5 for word in text.split()], Words.encode
    try:
        fitted = text(tmp_path / "a.txt", window=4, tokenizer=Words()).fitted
        with pytest.raises(UserError, match="was encoded with tokenizer '6"):
            text(tmp_path / "a.txt", window=4, tokenizer=Others(), fitted=fitted)
    finally:
        Words.encode = old


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": None}, "dtype is missing: .*has no header"),
        ({"dtype": "float32"}, "dtype is 'float32', expected a type of whole numbers"),
        ({"dtype": "int1"}, "dtype is 'int1', expected a type of whole numbers"),
        ({"dtype": "int64", "window": 1000}, "has 250 tokens, expected at least 1001"),
        ({"window": 0}, "window is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"num_tokens": 7}, "hold labels 0 to 49, expected 0 to 6"),
        ({"tokenizer": "words"}, "tokenizer is 'words', expected 'bytes' or an object"),
        ({"held_out": "start"}, "held_out is 'start'"),
        ({"window": 900}, "1 windows, expected at least 5"),
        ({"validation": "/not/there"}, "token file /not/there cannot be read"),
    ],
)
def test_bad_token_files_give_one_message(corpus, settings, message):
    with pytest.raises(UserError, match=message):
        tokens(corpus, **{"dtype": "uint16", "window": 8, **settings})


def test_a_file_that_is_cut_short_or_no_row_of_numbers_is_named(corpus, tmp_path):
    corpus.write_bytes(corpus.read_bytes()[:-1])
    with pytest.raises(UserError, match="has 1999 bytes, which is no whole number of uint16 of 2 bytes"):
        tokens(corpus, dtype="uint16", window=8)
    np.save(tmp_path / "b.npy", CORPUS.reshape(10, 100))
    with pytest.raises(UserError, match=r"holds uint16 \[10, 100\], expected whole numbers \[tokens\]"):
        tokens(tmp_path / "b.npy", window=8)
    (tmp_path / "c.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"c\.npy is no \.npy file"):
        tokens(tmp_path / "c.npy", window=8)
    (tmp_path / "d.bin").write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes"):
        tokens(tmp_path / "d.bin", dtype="uint8", window=8)
