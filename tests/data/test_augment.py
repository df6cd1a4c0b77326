import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.data import compose, random_crop, random_flip
from accelnet.errors import UserError


def images(batch=16, height=6, width=7, channels=2):
    # No zeros, so that padding can be told from the image.
    values = np.arange(1, 1 + batch * height * width * channels, dtype=np.float32)
    return {
        "inputs": jnp.asarray(values.reshape(batch, height, width, channels)),
        "targets": jnp.arange(batch),
    }


def test_a_crop_is_the_image_moved_and_filled_with_zeros():
    batch = images(batch=300)
    got = np.asarray(jax.jit(random_crop(2))(jax.random.key(0), batch)["inputs"])
    padded = np.pad(np.asarray(batch["inputs"]), ((0, 0), (2, 2), (2, 2), (0, 0)))
    moves = np.zeros((5, 5), int)
    for index in range(300):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if np.array_equal(got[index], padded[index, row : row + 6, column : column + 7])
        ]
        assert len(found) == 1
        moves[found[0]] += 1
    # 12 expected of each of the 25 moves; a uniform draw leaves none out with probability 0.9999.
    assert moves.min() > 0


def test_a_flip_mirrors_about_half_of_the_images():
    batch = images(batch=200)
    got = np.asarray(jax.jit(random_flip())(jax.random.key(0), batch)["inputs"])
    original = np.asarray(batch["inputs"])
    flipped = np.array([np.array_equal(one, other[:, ::-1]) for one, other in zip(got, original, strict=True)])
    same = np.array([np.array_equal(one, other) for one, other in zip(got, original, strict=True)])
    assert np.array_equal(flipped, ~same)
    # 100 expected with a standard deviation of 7.
    assert 65 < flipped.sum() < 135


@pytest.mark.parametrize("augment", [random_crop(3), random_flip(), compose(random_crop(2), random_flip())])
def test_an_example_depends_on_the_key_and_its_position_only(augment):
    batch = images()
    compiled = jax.jit(augment)
    whole = compiled(jax.random.key(5), batch)["inputs"]
    # Not compiled, so that this is also jit against eager.
    part = augment(jax.random.key(5), jax.tree.map(lambda x: x[:3], batch))["inputs"]
    assert jnp.array_equal(whole[:3], part)
    changed = {**batch, "inputs": batch["inputs"].at[1:].set(7.0)}
    assert jnp.array_equal(compiled(jax.random.key(5), changed)["inputs"][0], whole[0])
    assert not jnp.array_equal(compiled(jax.random.key(6), batch)["inputs"], whole)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16])
def test_types_and_other_entries_stay(dtype):
    batch = images()
    batch["inputs"] = batch["inputs"].astype(dtype)
    got = jax.jit(compose(random_crop(1), random_flip()))(jax.random.key(0), batch)
    assert (got["inputs"].dtype, got["inputs"].shape) == (dtype, batch["inputs"].shape)
    assert jnp.array_equal(got["targets"], batch["targets"])


def test_composed_augmentations_have_keys_of_their_own():
    twice = jax.jit(compose(random_flip(), random_flip()))
    batch = images(batch=100)
    flipped_back = jnp.all(twice(jax.random.key(0), batch)["inputs"] == batch["inputs"], axis=(1, 2, 3))
    # With one key for both every image would come back.
    assert 20 < int(flipped_back.sum()) < 80


def test_what_is_not_an_image_is_refused():
    with pytest.raises(UserError, match=r"inputs are of shape \(4, 3\)"):
        random_flip()(jax.random.key(0), {"inputs": jnp.zeros((4, 3))})
    with pytest.raises(UserError, match="inputs are a dict"):
        random_crop(2)(jax.random.key(0), {"inputs": {}})
    with pytest.raises(UserError, match="padding is 0"):
        random_crop(0)
