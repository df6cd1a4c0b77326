"""Pictures of any kind to arrays of one size: decoding, alpha, rotation, resizing."""

import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from accelnet.data.png import plain_png
from accelnet.errors import UserError
from accelnet.wording import shown

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZES = ("crop", "squash", "pad")
# A file of another format is not opened: some of Pillow's readers start programs or reach for the network.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif", ".jp2",
))  # fmt: skip


@dataclass(frozen=True)
class PictureForm:
    """Say what all pictures of a data set become.

    Attributes:
        height: Rows of pixels.
        width: Columns of pixels.
        channels: 1 for grey, 3 for red, green and blue.
        resize: "crop" (scaled to cover, the middle is taken), "squash" (both sides scaled on their own), "pad" (scaled
            to fit, black around it), or "none": pictures of another size are refused.
    """

    height: int
    width: int
    channels: int
    resize: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one picture."""
        return self.height, self.width, self.channels

    def values(self) -> dict[str, Any]:
        """Return plain values, from which `PictureForm(**values)` is the same again."""
        return asdict(self)


def read_picture(path: str, form: PictureForm, *, refuse_colour: bool = False) -> np.ndarray:
    """Read the picture of a file, upright, of an animation the first one, and what is transparent over white.

    Args:
        path: File of one of the formats JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, AVIF and JPEG 2000.
        form: Size and channels that it gets.
        refuse_colour: Whether a picture in colour is an error where `form` has one channel.

    Returns:
        uint8 [height, width, channels]; of 16 bits the upper 8.

    Raises:
        UserError: if the file cannot be read, or its picture is damaged, of another size where `form` does not resize,
            or in colour where that is refused.

    Example:
        >>> read_picture("/not/there.png", PictureForm(8, 8, 3, "crop"))
        Traceback (most recent call last):
        accelnet.errors.UserError: picture /not/there.png cannot be read: No such file or directory
    """
    return decode_picture(_content(path), form, path, refuse_colour=refuse_colour)


def decode_picture(
    content: bytes, form: PictureForm, where: str, *, refuse_colour: bool = False, most_pixels: int | None = None
) -> np.ndarray:
    """Read the picture of a file's content, as `read_picture` does.

    Args:
        content: Bytes of the file.
        form: Size and channels that it gets.
        where: What the picture is called in messages.
        refuse_colour: Whether a picture in colour is an error where `form` has one channel.
        most_pixels: Pixels that it may have before it is scaled. None: as many as Pillow allows.

    Raises:
        UserError: as of `read_picture`.

    Example:
        >>> decode_picture(b"GIF8", PictureForm(8, 8, 3, "crop"), "picture 0")
        Traceback (most recent call last):
        accelnet.errors.UserError: picture 0 is no picture that can be read (no known format): remove it or get it again
    """
    try:
        plain = plain_png(content)
        with _opened(content) if plain is None else plain as image:
            width, height = image.size
            if most_pixels is not None and width * height > most_pixels:
                raise UserError(f"{where} has {width} x {height} pixels, expected {most_pixels:,} at most")
            return _formed(_upright(image, form) if plain is None else image, form, where, refuse_colour)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001, damaged files make decoders fail in any way
        raise _damaged(where, error) from None


def look_at(path: str) -> tuple[int, int, bool]:
    """Return (height, width, whether it is grey) of a picture, once upright, without decoding it.

    Raises:
        UserError: if the file cannot be read or holds no picture.
    """
    from PIL import ExifTags

    try:
        with _opened(_content(path)) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (width, height, _is_grey(image)) if turned else (height, width, _is_grey(image))
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001, as above
        raise _damaged(path, error) from None


def encode_pictures(inputs: Any, picture: Mapping[str, Any]) -> Any:
    """Turn raw pictures into arrays as a data set of pictures holds them.

    Args:
        inputs: One picture or a list of pictures: paths, images of Pillow, arrays uint8 [h, w], [h, w, 1], [h, w, 3] or
            [h, w, 4]. Arrays [B, ...] of pictures are returned as they are.
        picture: Values of a `PictureForm`.

    Returns:
        uint8 [B, height, width, channels].

    Raises:
        UserError: if one of them is of another kind, or a file that cannot be read.

    Example:
        >>> encode_pictures(np.zeros((50, 80), np.uint8), PictureForm(8, 8, 3, "crop").values()).shape
        (1, 8, 8, 3)
    """
    form = PictureForm(**picture)
    several = isinstance(inputs, list | tuple)
    if not several and np.ndim(inputs) == 4:
        return inputs
    ones = list(inputs) if several else [inputs]
    if several and all(not isinstance(one, str | os.PathLike) and np.shape(one) == form.shape for one in ones):
        return inputs
    return np.stack([_encoded(one, form, f"picture {index}") for index, one in enumerate(ones)]) if ones else inputs


def _encoded(one: Any, form: PictureForm, where: str) -> np.ndarray:
    from PIL import Image

    if isinstance(one, str | os.PathLike):
        return read_picture(os.fspath(one), form)
    if not isinstance(one, Image.Image):
        array = np.asarray(one)
        whole = array.dtype == np.uint8 and array.size
        if not whole or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
            raise UserError(
                f"{where} is {shown(one)}, expected the path of a picture, an image of Pillow, or an array of uint8 "
                f"[h, w], [h, w, 1], [h, w, 3] or [h, w, 4]"
            )
        one = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    try:
        return _formed(_upright(one.copy() if one.getexif() else one, form), form, where, False)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001, as above
        raise _damaged(where, error) from None


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123, a Path costs as much as reading a small file
            return file.read()
    except (OSError, ValueError) as error:
        raise UserError(f"picture {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _opened(content: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(content), formats=_formats())


@lru_cache(1)
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _damaged(where: str, error: Exception) -> UserError:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        most = Image.MAX_IMAGE_PIXELS
        return UserError(f"{where} has more pixels than PIL.Image.MAX_IMAGE_PIXELS={most} allows: make it smaller")
    reason = "no known format" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return UserError(f"{where} is no picture that can be read ({reason}): remove it or get it again")


def _upright(image: "Image", form: PictureForm) -> "Image":
    """Load a picture, turned as its camera says; a JPEG file is decoded no larger than twice the size, for speed."""
    from PIL import ImageOps

    if form.resize != "none":
        side = 2 * max(form.height, form.width)
        image.draft(None, (side, side))
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _is_grey(image: "Image") -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _formed(image: "Image", form: PictureForm, where: str, refuse_colour: bool) -> np.ndarray:
    if refuse_colour and form.channels == 1 and not _is_grey(image):
        raise UserError(
            f"{where} is in colour, and the first pictures are grey: give channels=3, or channels=1 to make all grey"
        )
    image = _resized(_converted(image, form.channels, where), form, where)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(form.shape)  # half the time of np.asarray


def _converted(image: "Image", channels: int, where: str) -> "Image":
    """Make a picture grey or red, green and blue, of 8 bits."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and not image.info:
        return image
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"{where} holds numbers of 32 bits, whose range is not known: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image if image.mode == mode else image.convert(mode)


def _resized(image: "Image", form: PictureForm, where: str) -> "Image":
    from PIL import Image

    (width, height), size = image.size, (form.width, form.height)
    if (width, height) == size:
        return image
    if form.resize == "none":
        raise UserError(
            f"{where} has {width} x {height} pixels, expected {form.width} x {form.height} as the data has: make it as "
            f"large, or give size=({form.height}, {form.width}) where the data is made"
        )
    if form.resize == "squash":
        return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    ratios = width / form.width, height / form.height
    if form.resize == "crop":
        across, down = form.width * min(ratios), form.height * min(ratios)
        left, top = max(0.0, (width - across) / 2), max(0.0, (height - down) / 2)
        box = left, top, min(width, left + across), min(height, top + down)
        return image.resize(size, Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    inner = max(1, round(width / max(ratios))), max(1, round(height / max(ratios)))
    canvas = Image.new(image.mode, size)
    canvas.paste(
        image.resize(inner, Image.Resampling.BILINEAR, reducing_gap=2.0),
        ((form.width - inner[0]) // 2, (form.height - inner[1]) // 2),
    )
    return canvas
