import os
import re

import jax
import numpy as np
import pytest
from PIL import Image

from accelnet import terminal
from accelnet.data import image_folder
from accelnet.data.pictures import PictureForm
from accelnet.errors import UserError

FORM = PictureForm(8, 8, 3, "crop")


def picture(seed, height=8, width=8, channels=3):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)
    return values[..., 0] if channels == 1 else values


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def make_folder(root, classes=("cat", "dog"), count=10, **shape):
    """Write pictures; return the values of each by its path in the folder."""
    held = {}
    for index, name in enumerate(classes):
        for number in range(count):
            held[f"{name}/{number:03d}.png"] = picture(1000 * index + number, **shape)
    for name, values in held.items():
        save(root / name, values)
    return held


def rows_of(data, split):
    rows = data.splits[split]
    return data.take(np.arange(rows.start, rows.stop))


def test_rows_are_the_pictures_of_their_class_and_every_one_is_there_once(tmp_path):
    held = make_folder(tmp_path)
    data = image_folder(tmp_path, validation=0.2, test=0.2)
    batch = data.take(np.arange(20))
    assert data.info["class_names"] == ("cat", "dog") and batch["targets"].dtype == np.int32
    theirs = {values.tobytes(): name.split("/")[0] for name, values in held.items()}
    ours = {one.tobytes(): data.decode(label) for one, label in zip(batch["inputs"], batch["targets"], strict=True)}
    assert ours == theirs
    assert {split: np.bincount(rows_of(data, split)["targets"]).tolist() for split in data.splits} == {
        "train": [6, 6], "validation": [2, 2], "test": [2, 2],
    }  # fmt: skip


def test_splits_follow_the_seed_and_the_fingerprint_follows_content_but_not_times(tmp_path):
    make_folder(tmp_path)
    first, again, other = (image_folder(tmp_path, seed=seed).fingerprint() for seed in (0, 0, 1))
    assert first == again != other
    path = tmp_path / "cat" / "000.png"
    os.utime(path, (1, 1))
    assert image_folder(tmp_path).fingerprint() == first
    save(path, picture(77))
    assert image_folder(tmp_path).fingerprint() != first


def test_channels_are_standardized_with_training_pictures_only(tmp_path):
    make_folder(tmp_path / "train")
    for name in ("cat", "dog"):
        save(tmp_path / "test" / name / "white.png", np.full((8, 8, 3), 255, np.uint8))
    data = image_folder(tmp_path, validation=0)
    inputs = np.asarray(jax.jit(data.prepare)(rows_of(data, "train"))["inputs"])
    np.testing.assert_allclose(inputs.mean(axis=(0, 1, 2)), 0, atol=1e-5)  # float32 rounding
    np.testing.assert_allclose(inputs.std(axis=(0, 1, 2)), 1, atol=1e-5)
    assert image_folder(tmp_path, normalize=False).prepare(rows_of(data, "test"))["inputs"].dtype == np.uint8


@pytest.mark.parametrize(("validation", "expected"), [("val", {"train": 18, "validation": 4, "test": 2}), (None, None)])
def test_folders_of_splits_are_the_splits(tmp_path, validation, expected):
    make_folder(tmp_path / "train", count=10 if validation is None else 9)
    if validation:
        make_folder(tmp_path / validation, count=2)
    held = make_folder(tmp_path / "test", count=1)
    data = image_folder(tmp_path, validation=0.1, test=0.5)
    assert {split: len(rows) for split, rows in data.splits.items()} == (
        expected or {"train": 18, "validation": 2, "test": 2}
    )
    assert np.array_equal(rows_of(data, "test")["inputs"], np.stack(list(held.values())))


def test_a_class_may_be_named_as_a_split_is(tmp_path):
    make_folder(tmp_path, classes=("train", "bus"))
    assert image_folder(tmp_path).info["class_names"] == ("bus", "train")


def test_nested_folders_and_links_belong_to_their_class_and_numbers_are_in_order(tmp_path):
    root = tmp_path / "photos"
    make_folder(root, classes=("2", "10", "10/deep"), count=3)
    make_folder(tmp_path, classes=("elsewhere",), count=4)
    (root / "2" / "linked").symlink_to(tmp_path / "elsewhere")
    data = image_folder(root, validation=0, test=0)
    assert data.info["class_names"] == ("2", "10")
    assert np.bincount(data.arrays["targets"]).tolist() == [7, 6]


def test_what_is_no_picture_is_left_out_and_counted(tmp_path, capsys):
    terminal.say_once.cache_clear()
    make_folder(tmp_path)
    for name in ("cat/notes.txt", "dog/.DS_Store", "dog/Thumbs.db", "README.md", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    assert image_folder(tmp_path, validation=0, test=0).num_rows == 20
    assert "5 files that are no pictures" in capsys.readouterr().err


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("mark", [",", "\t", ";"])
def test_a_file_of_labels_names_the_classes(tmp_path, header, mark):
    held = make_folder(tmp_path, classes=("a",), count=10)
    named = {name: f"class {index % 2}" for index, name in enumerate(held)}
    lines = ([f"file{mark}label"] if header else []) + [f"{name}{mark}{label}" for name, label in named.items()]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = image_folder(tmp_path, labels="labels.csv", validation=0, test=0)
    batch = data.take(np.arange(10))
    ours = {one.tobytes(): label for one, label in zip(batch["inputs"], data.decode(batch["targets"]), strict=True)}
    assert ours == {values.tobytes(): named[name] for name, values in held.items()}
    assert image_folder(tmp_path, labels=named, validation=0, test=0).fingerprint() == data.fingerprint()


def test_the_first_line_of_labels_is_no_header_where_it_names_a_file(tmp_path):
    for number in range(8):
        save(tmp_path / f"{number}.png", picture(number)).rename(tmp_path / f"photo{number}")
    (tmp_path / "labels.csv").write_text(
        "".join(f"photo{number},{'cat' if number % 2 else 'dog'}\n" for number in range(8))
    )
    assert image_folder(tmp_path, labels="labels.csv", validation=0, test=0).num_rows == 8


@pytest.mark.parametrize("labels", [None, {"cat/000.png": "cat", "dog/000.png": "dog", "cat/pipe.png": "cat"}])
def test_a_pipe_among_the_pictures_is_refused_and_not_waited_for(tmp_path, labels):
    make_folder(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with pytest.raises(UserError, match=r"cat/pipe.png is no file: remove it"):
        image_folder(tmp_path, labels=labels)


def test_class_names_and_values_of_an_earlier_run_are_taken_over(tmp_path):
    make_folder(tmp_path / "old", classes=("a", "b", "c"))
    make_folder(tmp_path / "new", classes=("a", "c"), count=5)
    old = image_folder(tmp_path / "old", class_names=("c", "b", "a"))
    new = image_folder(tmp_path / "new", fitted=old.fitted)
    assert new.fitted == old.fitted
    assert set(new.arrays["targets"].tolist()) == {0, 2}


# --- decoding -------------------------------------------------------------------------------------------------------


def test_raw_pictures_of_any_kind_are_encoded_as_the_data_are(tmp_path):
    make_folder(tmp_path, height=20, width=30)
    data = image_folder(tmp_path, size=(8, 10), validation=0, test=0)
    path = tmp_path / "cat" / "000.png"
    values = np.asarray(Image.open(path))
    row = next(row for row in range(20) if data.arrays["inputs"].rows.place(row) == str(path))
    held = data.take(np.array([row]))["inputs"]
    for raw in (path, str(path), [path], Image.open(path), [Image.open(path)], values, [values], held):
        assert np.array_equal(data.encode(raw), held)
    mixed = data.encode([path, values[:15], values[..., 0], np.dstack([values, values[..., :1]])])
    assert mixed.shape == (4, 8, 10, 3) and np.array_equal(mixed[0], held[0])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("/not/there.png", "picture /not/there.png cannot be read: No such file"),
        (3.5, "picture 0 is 3.5, expected the path of a picture"),
        (np.zeros((9, 9, 3)), "picture 0 is an array of float64 [9, 9, 3], expected"),
        (["/not/there.png", 3], "picture /not/there.png cannot be read"),
        (np.zeros((2, 9, 9, 3), np.uint8) + np.float32(0.5), "values that are no whole numbers"),
    ],
)
def test_raw_inputs_that_are_no_pictures_are_refused(tmp_path, raw, message):
    make_folder(tmp_path)
    data = image_folder(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        data.encode(raw)


# --- bad input ------------------------------------------------------------------------------------------------------
