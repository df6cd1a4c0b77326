"""Random numbers of a part of a batch: those that the whole batch would have drawn there.

A layer draws its noise for the examples that it sees. Where a batch lies on several devices, each must draw other
numbers, and the same as one device that sees all examples; otherwise the layout would decide what is learned.
"""

import math
from collections.abc import Hashable
from functools import cache
from typing import Any

import jax
import jax.extend.random as jex_random
import jax.numpy as jnp

from accelnet.errors import UserError


def shard_key(key: jax.Array, index: jax.Array, count: int, num_examples: int) -> jax.Array:
    """Return a key whose draws are one device's part of what `key` draws for the whole batch.

    The examples' axis of a draw is its first axis of `num_examples`, or else a first axis that is a multiple of it
    (examples and steps flattened). A draw without one (noise on weights) is the same on every device, as it should.

    Args:
        key: typed Threefry key, the same on every device.
        index: number of this device's part, int32 scalar.
        count: number of parts of the batch, at least 1.
        num_examples: number of examples of one part, at least 1.

    Returns:
        A typed key for `jax.random`; `key` itself if there is one part.

    Raises:
        UserError: when more than 32 bits per number, or 2**32 numbers at once, are drawn with it.

    Example:
        >>> whole = jax.random.bits(jax.random.key(0), (6, 2))
        >>> part = jax.random.bits(shard_key(jax.random.key(0), jnp.int32(1), 3, 2), (2, 2))
        >>> (part == whole[2:4]).all().item()
        True

    Source: the generator is Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011, whose
    numbers depend on the key and a counter alone.
    """
    if count == 1:
        return key
    words = jnp.concatenate([jax.random.key_data(key), jnp.asarray(index, jnp.uint32).reshape(1)])
    return jax.random.wrap_key_data(words, impl=_implementation(count, num_examples))


@cache
def _implementation(count: int, num_examples: int) -> Hashable:
    """A generator whose keys are a Threefry key and the number of the part."""

    def random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
        if bit_width not in (8, 16, 32):
            raise UserError(
                f"noise of {bit_width} bits is drawn on a mesh, expected 32 at most: draw float32 or narrower"
            )
        # Narrow draws are the low bits of 32, as in jax.
        return _bits(key[:2], _positions(key[2], shape)).astype(jnp.dtype(f"uint{bit_width}"))

    def split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        positions = _positions(key[2], shape)
        high, low = jex_random.threefry2x32_p.bind(
            *jnp.broadcast_arrays(key[0], key[1]), jnp.zeros_like(positions), positions
        )
        return jnp.stack([high, low, jnp.broadcast_to(key[2], high.shape)], axis=-1)

    def fold_in(key: jax.Array, number: Any) -> jax.Array:
        folded = jax.random.fold_in(jax.random.wrap_key_data(key[:2], impl="threefry2x32"), number)
        return jnp.concatenate([jax.random.key_data(folded), key[2:]])

    def seed(number: jax.Array) -> jax.Array:
        words = jax.random.key_data(jax.random.key(number, impl="threefry2x32"))
        return jnp.concatenate([words, jnp.zeros(1, jnp.uint32)])

    def _positions(part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Count as the whole batch would: uint32 of this shape."""
        whole, axis = list(shape), _examples_axis(shape, num_examples)
        if axis is not None:
            whole[axis] *= count
        if math.prod(whole) >= 2**32:
            raise UserError(
                f"noise of shape {tuple(whole)} is drawn at once, expected below 2**32 numbers: take a smaller batch"
            )
        positions = jnp.zeros(shape, jnp.uint32)
        for i in range(len(shape)):
            along = jax.lax.broadcasted_iota(jnp.uint32, shape, i)
            along = along + part * jnp.uint32(shape[i]) if i == axis else along
            positions = positions * jnp.uint32(whole[i]) + along
        return positions

    return jex_random.define_prng_impl(
        key_shape=(3,),
        seed=seed,
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,
        name=f"accelnet_part_of_{count}x{num_examples}",
        tag="part",
    )


def _examples_axis(shape: tuple[int, ...], num_examples: int) -> int | None:
    if num_examples in shape:
        return shape.index(num_examples)
    return 0 if shape and shape[0] and shape[0] % num_examples == 0 else None


def _bits(key: jax.Array, positions: jax.Array) -> jax.Array:
    first, second = jex_random.threefry2x32_p.bind(
        jnp.broadcast_to(key[0], positions.shape),
        jnp.broadcast_to(key[1], positions.shape),
        jnp.zeros_like(positions),
        positions,
    )
    return first ^ second
