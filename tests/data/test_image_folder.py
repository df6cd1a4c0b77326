import io
import os
import re
import struct
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from accelnet import terminal
from accelnet.data import image_folder
from accelnet.data.picture_files import find_pictures
from accelnet.data.pictures import PictureForm, read_picture
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


def bomb():
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(ending, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture(5, 64, 64)).save(buffer, ending, **options)
    return buffer.getvalue()


DAMAGED = {
    "empty": (b"", "no known format"),
    "text": (b"not a picture at all, but long enough to be one", "no known format"),
    "half a PNG file": (encoded("PNG")[:5000], "truncated"),
    "a PNG file with a changed byte": (encoded("PNG")[:5000] + b"\xff" + encoded("PNG")[5001:], "is no picture"),
    "a PNG file of too few pixels": (encoded("PNG")[:33] + encoded("PNG")[-12:], "is no picture"),
    "half a JPEG file": (encoded("JPEG")[:1500], "truncated"),
    "half a GIF file": (encoded("GIF")[:1000], "is no picture"),
    "half a WebP file": (encoded("WEBP")[:1000], "is no picture"),
    "half a BMP file": (encoded("BMP")[:1000], "truncated"),
    "a bomb": (bomb(), "more pixels than PIL.Image.MAX_IMAGE_PIXELS"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_picture_is_named_when_it_is_read(tmp_path, kind, workers):
    content, message = DAMAGED[kind]
    make_folder(tmp_path)
    (tmp_path / "cat" / "zz.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"cat/zz\.png .*{re.escape(message)}"):
        image_folder(tmp_path, size=64, workers=workers, channels=3, validation=0, test=0).take(np.arange(21))


def test_a_picture_that_vanished_or_came_in_another_size_or_colour_is_named(tmp_path):
    make_folder(tmp_path, channels=1)
    data = image_folder(tmp_path, validation=0, test=0)
    assert data.arrays["inputs"].shape == (20, 8, 8, 1)
    save(tmp_path / "cat" / "003.png", picture(0, 9, 8, 1))
    with pytest.raises(UserError, match=r"cat/003\.png has 8 x 9 pixels, expected 8 x 8 .* give size="):
        data.take(np.arange(20))
    save(tmp_path / "cat" / "003.png", picture(0))
    with pytest.raises(UserError, match=r"cat/003\.png is in colour, and the first pictures are grey"):
        data.take(np.arange(20))
    (tmp_path / "cat" / "003.png").unlink()
    with pytest.raises(UserError, match=r"picture .*cat/003\.png cannot be read: No such file"):
        data.take(np.arange(20))


def test_grey_is_asked_for_or_seen_and_colour_is_not_lost(tmp_path):
    make_folder(tmp_path)
    assert image_folder(tmp_path).arrays["inputs"].shape[-1] == 3
    assert image_folder(tmp_path, channels=1).take(np.arange(3))["inputs"].shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "empty").mkdir(), "empty holds no picture"),
        (lambda root: [(root / "dog" / p.name).unlink() for p in (root / "dog").iterdir()], "dog holds no picture"),
        (lambda root: (root / "dog").rename(root / "cat" / "dog"), "the folder 'cat' alone, expected those of two"),
        (lambda root: make_folder(root, classes=("Cat",)), "the classes 'Cat' and 'cat': are they one?"),
        (lambda root: (root / "cat" / "loop").symlink_to(root / "cat"), "loop is a link to a folder that it lies in"),
        (lambda root: (root / "cat" / "a.jpg").symlink_to("/not/there"), "cat/a.jpg cannot be read: No such file"),
        (lambda root: (root / "cat" / "a").symlink_to("a"), "cat/a cannot be read: Too many levels"),
        (lambda root: make_folder(root / "train"), "named as splits are, 'train', and 'cat', 'dog' beside them"),
        (lambda root: (root / "cat").rename(root / "train") and (root / "dog").rename(root / "test"), "holds 10 files"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, change, message):
    make_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        image_folder(tmp_path)


def test_splits_that_do_not_fit_together_are_refused(tmp_path):
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "test", classes=("cat", "owl"))
    with pytest.raises(UserError, match=r"owl is a class that .*train does not have"):
        image_folder(tmp_path)
    make_folder(tmp_path / "val")
    make_folder(tmp_path / "Validation")
    with pytest.raises(UserError, match="has the folders 'Validation' and 'val', expected one of them"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty, expected the name of a picture and its class"),
        ("cat/000.png,a\ncat/00.png,b\n", "names the picture 'cat/00.png', but"),
        ("cat/000.png,a,1\n", "line 1 has 3 columns, expected two"),
        ("cat/000.png,a\ncat/000.png,b\n", "names the picture 'cat/000.png' more than once"),
        ("cat/000.png,a\ncat/001.png,\n", "the class '', expected a name"),
        ("cat/000.png,a\ncat/001.png,a\n", "names 'a' as classes, expected two or more"),
        ("cat/000.png,0.25\ncat/001.png,0.75\n", "gives each of 2 pictures a class of its own"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, content, message):
    make_folder(tmp_path)
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        image_folder(tmp_path, labels="labels.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "a side of size is 0"),
        ({"size": (8, 8, 3)}, "size is (8, 8, 3), expected (height, width)"),
        ({"size": "8"}, "a side of size is '8'"),
        ({"resize": "fit"}, "resize is 'fit', expected one of 'crop', 'squash', 'pad'"),
        ({"channels": 2}, "channels is 2, expected 1 for grey"),
        ({"channels": True}, "channels is True"),
        ({"workers": -1}, "workers is -1"),
        ({"cache": "yes"}, "cache is 'yes'"),
        ({"cache": 0}, "cache is 0"),
        ({"validation": 2}, "validation is 2"),
        ({"test": 0.99}, "leave none for training"),
        ({"normalize": 1}, "normalize is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"class_names": ("cat",)}, "pictures are of the classes 'dog', which class_names do not have"),
        ({"fitted": {"class_names": ("cat",)}}, "'dog', which the values to take over do not have"),
        ({"fitted": 3}, "fitted is 3"),
        ({"name": ""}, "name is ''"),
        ({"labels": "nowhere.csv"}, "file of labels nowhere.csv cannot be read"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    make_folder(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        image_folder(tmp_path, **arguments)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds nothing and no folder"):
        image_folder(tmp_path)
    save(tmp_path / "a.png", picture(0))
    with pytest.raises(UserError, match=r"holds 1 files and no folder: .* or labels='labels.csv'"):
        image_folder(tmp_path)


def test_names_of_any_bytes_and_many_files_take_little_memory(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x88.png")
    held = make_folder(tmp_path)
    (tmp_path / "cat" / "000.png").rename(tmp_path / "cat" / name)
    files = find_pictures(tmp_path)
    assert Path(files.path(9)).name == name
    assert np.array_equal(read_picture(files.path(9), FORM), held["cat/000.png"])
    assert len(files.path(0)) < 300 and len(files.stamps()) == 20
