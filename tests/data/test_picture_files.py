"""Pictures as they are in files: formats, colours, turns, sizes."""

import numpy as np
import pytest
from PIL import Image

from accelnet.data import pictures
from accelnet.data.pictures import PictureForm, encode_pictures, read_picture
from accelnet.errors import UserError
from tests.data.test_image_folder import FORM, picture, save


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "gif", "webp", "ppm"])
def test_formats_without_loss_give_the_pixels(tmp_path, ending):
    values = picture(0, channels=1) if ending == "gif" else picture(0)
    path = save(tmp_path / f"a.{ending}", values, **({"lossless": True} if ending == "webp" else {}))
    expected = np.repeat(values[..., None], 3, axis=2) if ending == "gif" else values
    assert np.array_equal(read_picture(str(path), FORM), expected)


def test_the_short_way_through_a_png_file_gives_the_pixels_of_pillow(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{c}{k}.png", picture(k, 9, 11, c), compress_level=k) for c in (1, 3) for k in range(3)]
    forms = [PictureForm(9, 11, channels, "none") for channels in (1, 3)]
    short = [read_picture(str(path), form) for path in paths for form in forms]
    assert pictures.plain_png(paths[0].read_bytes()) is not None
    monkeypatch.setattr(pictures, "plain_png", lambda content: None)
    whole = [read_picture(str(path), form) for path in paths for form in forms]
    assert all(np.array_equal(one, other) for one, other in zip(short, whole, strict=True))


def test_what_is_transparent_becomes_white(tmp_path):
    values = np.zeros((8, 8, 4), np.uint8)
    values[:4, :, 3] = 255
    expected = np.where(np.arange(8)[:, None, None] < 4, 0, 255) * np.ones((1, 8, 3))
    one = Image.fromarray(values)
    one.save(tmp_path / "rgba.png")
    one.convert("LA").save(tmp_path / "la.png")
    palette = Image.fromarray(np.where(np.arange(8)[:, None] < 4, 0, 1).astype(np.uint8) * np.ones((1, 8), np.uint8))
    palette = palette.convert("P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "p.png", transparency=1)
    Image.fromarray(np.where(values[..., 3] > 0, 0, 9).astype(np.uint8)).save(tmp_path / "key.png", transparency=9)
    for name in ("rgba", "la", "p", "key"):
        assert np.array_equal(read_picture(str(tmp_path / f"{name}.png"), FORM), expected), name


def test_sixteen_bits_cmyk_and_one_bit_become_eight_bits(tmp_path):
    wide = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    expected = np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, axis=2)
    for ending in ("png", "tiff", "pgm"):
        path = save(tmp_path / f"wide.{ending}", wide)
        assert np.array_equal(read_picture(str(path), FORM), expected), ending
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    assert read_picture(str(tmp_path / "cmyk.tiff"), FORM)[0, 0].tolist() == [255, 0, 0]
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    assert (read_picture(str(tmp_path / "bit.png"), FORM) == 255).all()
    Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match="numbers of 32 bits, whose range is not known"):
        read_picture(str(tmp_path / "float.tiff"), FORM)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_pictures_are_turned_as_their_camera_says(tmp_path, orientation, ending):
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255  # the upper left quarter
    # What the sensor held, so that the tag turns it upright: the inverse of each turn.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{ending}", np.ascontiguousarray(stored), exif=exif.tobytes())
    found = read_picture(str(path), PictureForm(16, 32, 1, "none"))[..., 0].astype(int)
    assert np.abs(found - upright).max() < 30  # JPEG and WebP are lossy
    assert pictures.look_at(str(path))[:2] == (16, 32)


def test_an_animation_is_its_first_picture(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_picture(str(tmp_path / "a.gif"), FORM) == 10).all()


def test_each_way_to_resize_takes_what_it_says():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle third
    crop, squash, pad = (
        encode_pictures(wide, PictureForm(10, 10, 3, how).values())[0, :, :, 0] for how in ("crop", "squash", "pad")
    )
    assert (crop == 255).all()
    assert (squash[:, 5] > 200).all() and (squash[:, 0] == 0).all() and (squash[:, 9] == 0).all()
    assert (pad[:3] == 0).all() and (pad[7:] == 0).all() and pad[5, 5] > 200 and pad[5, 0] == 0


def test_a_jpeg_file_decoded_small_looks_like_one_decoded_whole(tmp_path):
    smooth = Image.fromarray(picture(3, 12, 12)).resize((480, 480), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    form = PictureForm(32, 32, 3, "squash")
    whole = np.asarray(Image.open(tmp_path / "a.jpg").resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    # Measured: at most 3 levels of 255; the two ways average the same pixels with other weights.
    assert np.abs(read_picture(str(tmp_path / "a.jpg"), form) - whole).max() <= 8
