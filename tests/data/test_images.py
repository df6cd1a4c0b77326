import gzip
import hashlib
import re
import stat
import struct

import chex
import jax
import numpy as np
import pytest

from accelnet.data import digits, fashion_mnist, files, images, read_idx
from accelnet.data.images import DEBIAN_DIRECTORY, FASHION_SHA256
from accelnet.errors import UserError


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_fashion(folder, num_train=120, num_test=20, **replaced):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    arrays = {}
    for part, rows in (("train", num_train), ("t10k", num_test)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (rows, 28, 28))
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(rows) % 10
    arrays |= {name.replace("_", "-"): array for name, array in replaced.items()}
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
    return arrays


def test_digits_are_those_of_scikit_learn():
    data = digits()
    from sklearn.datasets import load_digits

    theirs = load_digits()
    rows = {image.tobytes(): label for image, label in zip(theirs.images.astype(np.uint8), theirs.target, strict=True)}
    chex.assert_shape(data.arrays["inputs"], (1797, 8, 8, 1))
    assert len(rows) == len({image.tobytes() for image in data.arrays["inputs"]})
    for image, label in zip(data.arrays["inputs"], data.arrays["targets"], strict=True):
        assert rows[image.tobytes()] == label


def test_digits_are_split_by_seed_and_stratified():
    first, again, other = digits(0), digits(0), digits(1)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert {split: len(rows) for split, rows in first.splits.items()} == {
        "train": 1258,
        "validation": 180,
        "test": 359,
    }
    labels = first.arrays["targets"]
    frequencies = np.bincount(labels) / len(labels)
    for rows in first.splits.values():
        counts = np.bincount(labels[rows.start : rows.stop], minlength=10)
        assert np.abs(counts - frequencies * len(rows)).max() <= 1


def test_digits_without_scikit_learn_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        digits()


def test_images_are_normalized_with_training_rows_only(tmp_path):
    arrays = write_fashion(tmp_path)
    arrays = write_fashion(tmp_path, t10k_images_idx3_ubyte=np.full((20, 28, 28), 255))
    data = fashion_mnist(tmp_path)
    train = data.splits["train"]
    assert len(train) == 110
    batch = jax.jit(data.prepare)(data.take(np.arange(train.start, train.stop)))
    assert abs(float(batch["inputs"].mean())) < 1e-5  # float32 rounding over 86,240 values
    assert abs(float(batch["inputs"].std()) - 1) < 1e-5
    chex.assert_shape(batch["inputs"], (110, 28, 28, 1))
    assert arrays["t10k-images-idx3-ubyte"].min() == 255


@pytest.mark.parametrize("compressed", [True, False])
def test_published_test_images_stay_the_test_split_and_no_row_is_lost(tmp_path, compressed):
    arrays = write_fashion(tmp_path)
    if not compressed:
        for path in tmp_path.glob("*.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    data = fashion_mnist(tmp_path, seed=3)
    rows = data.splits["test"]
    assert np.array_equal(data.arrays["inputs"][rows.start : rows.stop, :, :, 0], arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(data.arrays["targets"][rows.start : rows.stop], arrays["t10k-labels-idx1-ubyte"])
    ours = {
        image.tobytes(): label
        for image, label in zip(*(data.arrays[k][:120] for k in ("inputs", "targets")), strict=True)
    }
    for image, label in zip(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"], strict=True):
        assert ours[image.astype(np.uint8).tobytes()] == label
    assert sorted(data.arrays["targets"][110:120]) == list(range(10))
    assert data.fingerprint() != fashion_mnist(tmp_path, seed=4).fingerprint()


def damage(name, function):
    def change(folder):
        path = folder / name
        path.write_bytes(function(path.read_bytes()))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage("train-images-idx3-ubyte.gz", lambda b: b[:-2000]), "damaged or truncated gzip"),
        (
            damage("train-images-idx3-ubyte.gz", lambda b: b[:1000] + bytes(50) + b[1050:]),
            "damaged or truncated",
        ),
        (
            damage("t10k-images-idx3-ubyte.gz", lambda b: b"not gzip"),
            "t10k-images-idx3-ubyte.gz is a damaged",
        ),
        (damage("train-labels-idx1-ubyte.gz", lambda b: b""), "bytes none"),
        (damage("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(b"")), "bytes none"),
        (
            damage("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(b"\0\0\x0d\1")),
            "expected an IDX file",
        ),
        (
            damage("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(b"\0\0\x08\3\0")),
            "expected an IDX file",
        ),
        (
            damage("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(idx(np.zeros(9))[:-1])),
            "8 values, expected 9",
        ),
        (damage("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(idx(np.zeros(9)))), "labels (9,)"),
        (
            damage("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(idx(np.full(120, 10)))),
            "labels 0 to 10",
        ),
        (
            damage("t10k-images-idx3-ubyte.gz", lambda b: gzip.compress(idx(np.zeros((20, 8, 8))))),
            "differ in height",
        ),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte.gz").unlink(), "no file"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    write_fashion(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        fashion_mnist(tmp_path)


def test_a_missing_directory_or_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        fashion_mnist(tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_idx(tmp_path / "nothing.gz")


def test_the_default_directory_is_checked_by_hash_and_the_users_own_is_not(tmp_path, monkeypatch):
    write_fashion(tmp_path)
    monkeypatch.setattr(images, "DEBIAN_DIRECTORY", tmp_path)
    with pytest.raises(UserError, match="not the published file"):
        fashion_mnist()
    hashes = {
        name: hashlib.sha256(gzip.decompress((tmp_path / f"{name}.gz").read_bytes())).hexdigest()
        for name in FASHION_SHA256
    }
    monkeypatch.setattr(images, "FASHION_SHA256", hashes)
    assert fashion_mnist().fingerprint() == fashion_mnist(tmp_path).fingerprint()


def test_a_download_goes_into_the_users_own_cache_and_is_checked(tmp_path, monkeypatch):
    import pooch

    source = tmp_path / "source"
    write_fashion(source)
    cache = tmp_path / "cache"
    calls = []

    def retrieve(url, known_hash, fname, path):
        calls.append((url, known_hash))
        (path / fname).write_bytes((source / fname).read_bytes())

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(images, "DEBIAN_DIRECTORY", tmp_path / "nothing")
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(UserError, match="not the published file"):
        fashion_mnist()
    directory = cache / "accelnet" / "fashion-mnist"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert len(calls) == 4
    assert all(url.startswith("https://") and known.startswith("md5:") for url, known in calls)


@pytest.mark.parametrize("error", [ConnectionError("unreachable\nhost"), ValueError("hash differs"), OSError()])
def test_without_files_and_network_the_message_says_which_command_gets_them(tmp_path, monkeypatch, error):
    import pooch

    def retrieve(**kwargs):
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(images, "DEBIAN_DIRECTORY", tmp_path / "nothing")
    monkeypatch.setattr(pooch, "retrieve", lambda url, **kwargs: retrieve(**kwargs))
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist") as raised:
        fashion_mnist()
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not DEBIAN_DIRECTORY.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_real_files_are_read_and_have_the_published_hashes():
    data = fashion_mnist()
    chex.assert_shape(data.arrays["inputs"], (70000, 28, 28, 1))
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 55000,
        "validation": 5000,
        "test": 10000,
    }
    assert np.bincount(data.arrays["targets"][55000:60000]).tolist() == [500] * 10
    assert np.bincount(data.arrays["targets"][60000:]).tolist() == [1000] * 10
