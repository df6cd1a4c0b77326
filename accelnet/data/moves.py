"""Random moves of training images: crops, flips, shifts, and squares that are cut out."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from accelnet.arguments import integer, word
from accelnet.data.augment import Augment, bits, images_of
from accelnet.errors import UserError


def random_crop(padding: int = 4) -> Augment:
    """Make an augmentation that moves each image by up to `padding` pixels, filling with zeros.

    The same as padding by that many zeros on each side and cropping at random. After standardization zero
    is the mean of the training images.

    Args:
        padding: largest move, in pixels, at least 1.

    Returns:
        (key, batch) -> batch, for `batch["inputs"]` [B, height, width, channels]. What happens to example i
        depends on the key and i alone, not on B.

    Raises:
        UserError: if padding is below 1; when used, if inputs are not images, or not larger than the moves.

    Example:
        >>> batch = {"inputs": jnp.ones((2, 8, 8, 1))}
        >>> random_crop(padding=2)(jax.random.key(0), batch)["inputs"].shape
        (2, 8, 8, 1)

    Source: K. He et al., Deep Residual Learning, 2015, section 4.2 (arXiv:1512.03385).
    """
    padding = integer("padding", padding, low=1)
    return lambda key, batch: {**batch, "inputs": _moved(key, images_of(batch), (padding, padding), "constant")}


def random_shift(vertical: int = 2, horizontal: int = 2) -> Augment:
    """Make an augmentation that moves each image, repeating the pixels at its edges: for images without a background.

    Args:
        vertical: largest move up or down, in pixels, at least 0.
        horizontal: largest move to the left or right, in pixels, at least 0.

    Returns:
        (key, batch) -> batch, as of `random_crop`.

    Raises:
        UserError: if a move is below 0; when used, if inputs are not images, or not larger than the moves.

    Example:
        >>> batch = {"inputs": jnp.arange(3.0).reshape(1, 1, 3, 1)}
        >>> moved = {str(random_shift(0, 1)(jax.random.key(k), batch)["inputs"].ravel()) for k in range(9)}
        >>> sorted(moved)
        ['[0. 0. 1.]', '[0. 1. 2.]', '[1. 2. 2.]']
    """
    most = integer("vertical", vertical, low=0), integer("horizontal", horizontal, low=0)
    return lambda key, batch: {**batch, "inputs": _moved(key, images_of(batch), most, "edge")}


def _moved(key: jax.Array, images: jax.Array, most: tuple[int, int], mode: str) -> jax.Array:
    for move, side in zip(most, images.shape[1:3], strict=True):
        if move >= side:
            raise UserError(
                f"images of {side} pixels are to be moved by up to {move}, out of sight: take smaller moves"
            )
    padded = jnp.pad(images, ((0, 0), *((one, one) for one in most), (0, 0)), mode=mode)

    # 128 images in a loop on 2 cores: 0.06 ms (28x28x1) to 0.7 ms (32x32x3). Selecting among the moves
    # took 14 ms, products with shift matrices 2 ms.
    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], jnp.zeros_like(corner[0])), images.shape[1:])

    # The remainder favours small moves by (2 * most + 1) / 2**32, which nobody can measure.
    places = jnp.array([2 * one + 1 for one in most], jnp.uint32)
    corners = (bits(key, (len(images), 2)) % places[None, :]).astype(jnp.int32)
    return jax.vmap(crop)(padded, corners)


def random_flip(direction: Literal["horizontal", "vertical"] = "horizontal") -> Augment:
    """Make an augmentation that mirrors each image, with probability 1/2.

    Args:
        direction: "horizontal", left to right, or "vertical", upside down. `compose` does both.

    Returns:
        (key, batch) -> batch, as of `random_crop`.

    Raises:
        UserError: for another direction; when used, if inputs are not images.

    Example:
        >>> batch = {"inputs": jnp.arange(3.0).reshape(1, 1, 3, 1)}
        >>> sorted({random_flip()(jax.random.key(k), batch)["inputs"][0, 0, 0, 0].item() for k in range(9)})
        [0.0, 2.0]
    """
    axis = 2 if word("direction", direction, ("horizontal", "vertical")) == "horizontal" else 1

    def augment(key: jax.Array, batch: Any) -> Any:
        images = images_of(batch)
        flipped = bits(key, (len(images),)) < jnp.uint32(1 << 31)
        return {**batch, "inputs": jnp.where(flipped[:, None, None, None], jnp.flip(images, axis), images)}

    return augment


def cutout(size: int = 8) -> Augment:
    """Make an augmentation that sets a square of each image to zero, centred on a pixel drawn at random.

    What of the square lies outside of the image is lost. After standardization zero is the mean of the training images.

    Args:
        size: side of the square, in pixels, at least 1.

    Returns:
        (key, batch) -> batch, as of `random_crop`.

    Raises:
        UserError: if size is below 1; when used, if inputs are not images, or always covered.

    Example:
        >>> int(cutout(1)(jax.random.key(0), {"inputs": jnp.ones((1, 3, 3, 1))})["inputs"].sum())
        8

    Source: T. DeVries and G. Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017,
    section 3.2 (arXiv:1708.04552).
    """
    size = integer("size", size, low=1)

    def augment(key: jax.Array, batch: Any) -> Any:
        images = images_of(batch)
        shape = images.shape[1:3]
        if size >= 2 * max(shape):
            raise UserError(f"size is {size}, which covers whole images of {shape[0]} x {shape[1]} pixels: take less")
        centres = (bits(key, (len(images), 2)) % jnp.array(shape, jnp.uint32)[None, :]).astype(jnp.int32)
        first = centres - size // 2
        return {**batch, "inputs": jnp.where(inside(shape, first, first + size), 0, images)}

    return augment


def inside(shape: tuple[int, ...], first: jax.Array, last: jax.Array) -> jax.Array:
    """Mark the pixels of a box in each of B images.

    Args:
        shape: (height, width).
        first: int [B, 2], the box's first row and column.
        last: int [B, 2], those behind its last ones.

    Returns:
        bool [B, height, width, 1].

    Example:
        >>> inside((1, 4), jnp.array([[0, 1]]), jnp.array([[1, 3]])).ravel().tolist()
        [False, True, True, False]
    """
    rows, columns = (
        (first[:, axis, None] <= place) & (place < last[:, axis, None])
        for axis, place in enumerate(jnp.arange(size)[None, :] for size in shape)
    )
    return (rows[:, :, None] & columns[:, None, :])[..., None]
