"""PNG files of the plainest kind, decoded without Pillow's parser."""

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {0: "L", 2: "RGB"}
_HEADER, _CHUNK, _SUM = struct.Struct(">IIBBBBB"), struct.Struct(">I4s"), struct.Struct(">I")
# What may stand in a PNG file that is read without Pillow's own parser, beside its pixels: it changes none of them.
_PNG_NOTES = frozenset((b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"tEXt", b"bKGD", b"sBIT", b"iCCP", b"hIST"))


def plain_png(content: bytes) -> "Image | None":
    """Decode a PNG file of 8 bits, grey or in colour, by Pillow's decoder alone; None for any other file.

    Small files take a third of the time so: Pillow's parser is Python.

    Args:
        content: Bytes of the file.

    Example:
        >>> plain_png(b"GIF89a") is None
        True
    """
    if content[:8] != _PNG or len(content) < 45:
        return None
    width, height, bits, kind, compression, filters, interlaced = _HEADER.unpack_from(content, 16)
    mode = _PNG_MODES.get(kind)
    if mode is None or bits != 8 or compression or filters or interlaced or not 0 < width * height <= 1 << 24:
        return None
    pixels, position, view, last = [], 8, memoryview(content), len(content) - 12
    while position <= last:
        length, name = _CHUNK.unpack_from(content, position)
        end = position + 8 + length
        if end > last + 8 or zlib.crc32(view[position + 4 : end]) != _SUM.unpack_from(content, end)[0]:
            return None  # Pillow says what is wrong
        if name == b"IEND":
            from PIL import Image

            return Image.frombytes(mode, (width, height), b"".join(pixels), "zip", mode, 0) if pixels else None
        if name == b"IDAT":
            pixels.append(view[position + 8 : end])
        elif name != b"IHDR" and name not in _PNG_NOTES:
            return None
        position = end + 4
    return None
