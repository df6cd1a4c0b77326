"""Images as parts of a page: what is one, and how large it becomes."""

import base64

import numpy as np
from matplotlib.image import imread

from accelnet.report.pictures import is_images, picture


def test_pictures_are_made_of_images_alone():
    assert is_images(np.zeros((2, 8, 8, 3))) and is_images(np.zeros((2, 8, 8), np.uint8))
    assert not is_images(np.zeros((2, 8, 8))) and not is_images(np.zeros((2, 30, 12, 12)))
    assert not is_images(np.zeros((2, 2, 2, 1)))
    assert picture(np.zeros((8, 8, 1))) != picture(np.eye(8)[..., None])


def test_a_large_image_takes_no_more_than_256_pixels_a_side():
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (1000, 300, 3), np.uint8)
    made = imread(io.BytesIO(base64.b64decode(picture(pixels).partition(",")[2])))
    assert made.shape[:2] == (250, 75)
