import colorsys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.data import color_jitter
from accelnet.data.augment import uniform
from accelnet.errors import UserError

KEY = jax.random.key(7)
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def drawn(count):
    return 2.0 * np.asarray(uniform(KEY, (count, 4)), np.float64) - 1.0


@pytest.mark.parametrize(
    "amounts", [(0.5, 0, 0, 0), (0, 0.5, 0, 0), (0, 0, 0.9, 0), (0, 0, 0, 0.5), (0.3, 0.4, 0.5, 0.1)]
)
def test_colours_change_as_in_plain_numpy(amounts):
    images = np.random.default_rng(0).normal(size=(9, 5, 4, 3))
    got = jax.jit(color_jitter(*amounts))(KEY, {"inputs": jnp.asarray(images, jnp.float32)})["inputs"]
    for one, image, (b, c, s, h) in zip(got, images, drawn(9) * np.array(amounts), strict=True):
        luma, i, q = np.moveaxis(image @ YIQ.T, -1, 0)
        turn = np.exp(2j * np.pi * h) * (1 + s) * (i + 1j * q)
        x = np.stack([luma, turn.real, turn.imag], -1) @ np.linalg.inv(YIQ).T
        x = x.mean() + (1 + c) * (x - x.mean()) + b
        np.testing.assert_allclose(one, x, rtol=1e-4, atol=1e-5)
    assert not np.allclose(got, images, atol=1e-2)


def test_a_turn_of_the_colours_keeps_grey_and_goes_the_way_of_the_hue():
    colour = np.array([[0.8, 0.4, 0.4], [0.5, 0.5, 0.5]])
    images = jnp.asarray(np.broadcast_to(colour[None, :, None, :], (20, 2, 1, 3)), jnp.float32)
    got = np.asarray(color_jitter(hue=0.1)(KEY, {"inputs": images})["inputs"], np.float64)
    np.testing.assert_allclose(got[:, 1], 0.5, rtol=1e-4)
    for one, turn in zip(got[:, 0, 0], 0.1 * drawn(20)[:, 3], strict=True):
        hue = (colorsys.rgb_to_hsv(*one)[0] + 0.5) % 1 - 0.5
        # YIQ's circle runs against that of HSV, and not evenly.
        assert np.sign(hue) == -np.sign(turn) and abs(hue) < 0.25


def test_images_of_one_channel_have_light_but_no_colours():
    images = {"inputs": jnp.ones((2, 3, 3, 1))}
    chex.assert_shape(color_jitter(brightness=0.5, contrast=0.5)(KEY, images)["inputs"], (2, 3, 3, 1))
    with pytest.raises(UserError, match="inputs have 1 channels, and saturation and hue need 3"):
        color_jitter(hue=0.1)(KEY, images)
    for name, wrong in {"brightness": -1, "contrast": 2, "saturation": 1.5, "hue": 0.6}.items():
        with pytest.raises(UserError, match=f"{name} is {wrong}"):
            color_jitter(**{name: wrong})
