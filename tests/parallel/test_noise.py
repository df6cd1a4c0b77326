"""A part of a batch draws what the whole batch draws there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.errors import UserError
from accelnet.parallel.noise import shard_key

PARTS, SIZE = 4, 6


@pytest.mark.parametrize(
    ("draw", "axis"),
    [
        (lambda key, n: jax.random.uniform(key, (n, 3)), 0),
        (lambda key, n: jax.random.bernoulli(jax.random.fold_in(key, 7), 0.3, (n, 3)), 0),
        (lambda key, n: jax.random.uniform(key, (5, n, 3)), 1),
        (lambda key, n: jax.random.uniform(key, (5 * n, 3)), 0),
        (lambda key, n: jax.random.uniform(jax.random.split(key)[1], (n,)), 0),
        (lambda key, n: jax.vmap(lambda k: jax.random.uniform(k, (3,)))(jax.random.split(key, n)), 0),
        (lambda key, n: jax.random.bits(key, (n, 3), jnp.uint8), 0),
        (lambda key, n: jax.random.bits(key, (n, 3), jnp.uint16), 0),
        (lambda key, n: jax.random.randint(key, (n, 3), 0, 10), 0),
    ],
    ids=["draw", "folded", "second axis", "flattened", "split", "a key each", "uint8", "uint16", "integers"],
)
def test_the_parts_together_are_the_whole(draw, axis):
    key = jax.random.fold_in(jax.random.key(3), 5)
    parts = [draw(shard_key(key, jnp.int32(i), PARTS, SIZE), SIZE) for i in range(PARTS)]
    np.testing.assert_array_equal(np.concatenate(parts, axis), draw(key, PARTS * SIZE))


@pytest.mark.parametrize("draw", [lambda k: jax.random.uniform(k, (7, 3)), lambda k: jax.random.permutation(k, 9)])
def test_noise_that_is_not_of_examples_is_the_same_everywhere(draw):
    key = jax.random.key(3)
    for index in range(PARTS):
        np.testing.assert_array_equal(draw(shard_key(key, jnp.int32(index), PARTS, SIZE)), draw(key))


def test_parts_are_independent_and_one_part_is_the_key_itself():
    key = jax.random.key(0)
    draws = {jax.random.uniform(shard_key(key, jnp.int32(i), PARTS, 1), (1,)).item() for i in range(PARTS)}
    assert len(draws) == PARTS
    assert shard_key(key, jnp.int32(0), 1, SIZE) is key


def test_what_32_bits_cannot_count_is_refused():
    key = shard_key(jax.random.key(0), jnp.int32(0), 2, 2)
    with pytest.raises(UserError, match=r"expected below 2\*\*32 numbers"):
        jax.jit(lambda: jax.random.uniform(key, (2, 2**31))).lower()
