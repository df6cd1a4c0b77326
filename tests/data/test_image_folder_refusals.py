"""Pictures and folders that cannot be read as they are."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image

from accelnet.data import image_folder
from accelnet.data.picture_files import find_pictures
from accelnet.data.pictures import read_picture
from accelnet.errors import UserError
from tests.data.test_image_folder import FORM, make_folder, picture, save


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
    chex.assert_shape(data.arrays["inputs"], (20, 8, 8, 1))
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
    chex.assert_shape(image_folder(tmp_path, channels=1).take(np.arange(3))["inputs"], (3, 8, 8, 1))


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
