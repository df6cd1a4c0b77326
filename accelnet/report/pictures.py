"""Images as parts of a page."""

import base64
import io
import math
from typing import Any

import numpy as np

_LEAST_PIXELS = 5  # of height and width: smaller arrays are tables
_MOST_PIXELS = 256  # of height and width: a page holds dozens of them
_ENLARGED = 64


def is_images(inputs: Any) -> bool:
    """Say whether inputs are pictures: [N, height, width, 1 or 3], or bytes [N, height, width].

    Args:
        inputs: Array; its shape and type decide.

    Example:
        >>> is_images(np.zeros((2, 8, 8, 3))), is_images(np.zeros((2, 8, 8)))
        (True, False)
    """
    shape = inputs.shape[1:]
    channels = len(shape) == 3 and shape[2] in (1, 3)
    grey = len(shape) == 2 and inputs.dtype == np.uint8
    return (channels or grey) and min(shape[:2]) >= _LEAST_PIXELS


def picture(pixels: np.ndarray) -> str:
    """Return an image as a PNG in a data URI, from its least to its largest value.

    Args:
        pixels: Image [height, width], [.., 1] or [.., 3]. Of one above 256 pixels, every second, third, ... is taken.

    Example:
        >>> picture(np.eye(8))[:22]
        'data:image/png;base64,'
    """
    from matplotlib.image import imsave

    every = math.ceil(max(pixels.shape[:2]) / _MOST_PIXELS)
    pixels = pixels[::every, ::every].astype(np.float64)
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / ((high - low) or 1.0)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    # Small ones are made larger here: not every browser keeps the edges of pixels that it enlarges itself.
    factor = max(1, math.ceil(_ENLARGED / max(pixels.shape[:2])))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    file = io.BytesIO()
    imsave(file, pixels, format="png", cmap="gray", vmin=0, vmax=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
