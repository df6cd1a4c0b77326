import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.data import (
    color_jitter,
    compose,
    cutout,
    feature_mask,
    random_crop,
    random_flip,
    random_noise,
    random_shift,
    time_mask,
)
from accelnet.data.augment import bits
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


@pytest.mark.parametrize(("vertical", "horizontal"), [(2, 1), (0, 3), (3, 0)])
def test_a_shift_moves_the_image_and_repeats_its_edges(vertical, horizontal):
    batch, key = images(batch=40), jax.random.key(3)
    got = np.asarray(jax.jit(random_shift(vertical, horizontal))(key, batch)["inputs"])
    moves = np.asarray(bits(key, (40, 2))) % np.array([2 * vertical + 1, 2 * horizontal + 1])
    for one, original, (down, right) in zip(got, np.asarray(batch["inputs"]), moves, strict=True):
        rows = np.clip(np.arange(6) + down - vertical, 0, 5)
        columns = np.clip(np.arange(7) + right - horizontal, 0, 6)
        np.testing.assert_array_equal(one, original[rows][:, columns])
    assert moves.max(0).tolist() == [2 * vertical, 2 * horizontal]


@pytest.mark.parametrize("size", [1, 4, 9])
def test_cutout_sets_a_square_around_a_random_pixel_to_zero(size):
    batch, key = images(batch=60), jax.random.key(4)
    got = np.asarray(jax.jit(cutout(size))(key, batch)["inputs"])
    centres = np.asarray(bits(key, (60, 2))).astype(np.int64) % np.array([6, 7])
    for one, original, centre in zip(got, np.asarray(batch["inputs"]).copy(), centres, strict=True):
        (top, left) = np.maximum(centre - size // 2, 0)
        (bottom, right) = centre - size // 2 + size
        original[top:bottom, left:right] = 0
        np.testing.assert_array_equal(one, original)
    assert len({tuple(one) for one in centres}) > 20


@pytest.mark.parametrize(("direction", "axis"), [("horizontal", 1), ("vertical", 0)])
def test_a_flip_mirrors_about_half_of_the_images(direction, axis):
    batch = images(batch=200)
    got = np.asarray(jax.jit(random_flip(direction))(jax.random.key(0), batch)["inputs"])
    original = np.asarray(batch["inputs"])
    flipped = np.array([np.array_equal(one, np.flip(other, axis)) for one, other in zip(got, original, strict=True)])
    same = np.array([np.array_equal(one, other) for one, other in zip(got, original, strict=True)])
    assert np.array_equal(flipped, ~same)
    # 100 expected with a standard deviation of 7.
    assert 65 < flipped.sum() < 135


EVERY = {
    "crop": random_crop(3),
    "flip": random_flip(),
    "shift": random_shift(2, 3),
    "cutout": cutout(3),
    "colours": color_jitter(0.3, 0.5, 0.5, 0.2),
    "noise": random_noise(5.0),
    "time": time_mask(3),
    "features": feature_mask(2),
    "two": compose(random_crop(2), random_flip()),
}


@pytest.mark.parametrize("augment", EVERY.values(), ids=list(EVERY))
def test_an_example_depends_on_the_key_and_its_position_only(augment):
    batch = images(channels=3)
    compiled = jax.jit(augment)
    whole = compiled(jax.random.key(5), batch)["inputs"]
    # Not compiled, so that this is also jit against eager.
    part = augment(jax.random.key(5), jax.tree.map(lambda x: x[:3], batch))["inputs"]
    # Products and sums are fused, or not: rounding of the largest numbers.
    np.testing.assert_allclose(whole[:3], part, rtol=1e-6, atol=1e-6 * float(np.abs(batch["inputs"][:3]).max()))
    changed = {**batch, "inputs": batch["inputs"].at[1:].set(7.0)}
    assert jnp.array_equal(compiled(jax.random.key(5), changed)["inputs"][0], whole[0])
    assert not jnp.array_equal(compiled(jax.random.key(6), batch)["inputs"], whole)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16])
@pytest.mark.parametrize("name", EVERY)
def test_types_and_other_entries_stay(dtype, name):
    batch = images(channels=3)
    batch["inputs"] = batch["inputs"].astype(dtype)
    if dtype == jnp.uint8 and name in ("colours", "noise", "time", "features"):
        with pytest.raises(UserError, match=r"inputs are uint8, expected .* of floats.*: let the data's prepare cast"):
            EVERY[name](jax.random.key(0), batch)
        return
    got = jax.jit(EVERY[name])(jax.random.key(0), batch)
    assert (got["inputs"].dtype, got["inputs"].shape) == (dtype, batch["inputs"].shape)
    assert jnp.array_equal(got["targets"], batch["targets"])


def test_composed_augmentations_have_keys_of_their_own():
    twice = jax.jit(compose(random_flip(), random_flip()))
    batch = images(batch=100)
    flipped_back = jnp.all(twice(jax.random.key(0), batch)["inputs"] == batch["inputs"], axis=(1, 2, 3))
    # With one key for both every image would come back.
    assert 20 < int(flipped_back.sum()) < 80


def test_composed_augmentations_get_what_they_ask_for():
    def asking(key, batch, progress, num_classes):
        return {**batch, "inputs": progress * num_classes * batch["inputs"]}

    augment = compose(random_flip(), asking)
    got = augment(jax.random.key(0), {"inputs": jnp.ones((1, 2, 2, 1))}, progress=0.5, num_classes=4, task="classes")
    assert got["inputs"].ravel().tolist() == [2.0] * 4
    with pytest.raises(UserError, match=r"augment, .*asking, asks for progress, num_classes, which it cannot have"):
        augment(jax.random.key(0), {"inputs": jnp.ones((1, 2, 2, 1))})


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (random_crop(8), "images of 8 pixels are to be moved by up to 8, out of sight"),
        (random_shift(0, 9), "images of 9 pixels are to be moved by up to 9"),
        (cutout(18), "size is 18, which covers whole images of 8 x 9 pixels"),
    ],
)
def test_moves_that_leave_nothing_of_an_image_are_refused(augment, message):
    with pytest.raises(UserError, match=message):
        augment(jax.random.key(0), {"inputs": jnp.ones((2, 8, 9, 1))})


def test_what_is_not_an_image_is_refused():
    with pytest.raises(UserError, match=r"inputs are of shape \(4, 3\)"):
        random_flip()(jax.random.key(0), {"inputs": jnp.zeros((4, 3))})
    with pytest.raises(UserError, match="inputs are a dict"):
        random_crop(2)(jax.random.key(0), {"inputs": {}})
    with pytest.raises(UserError, match="padding is 0"):
        random_crop(0)
    with pytest.raises(UserError, match="size is 0"):
        cutout(0)
    with pytest.raises(UserError, match="horizontal is -1"):
        random_shift(1, -1)
    with pytest.raises(UserError, match="direction is 'up', expected one of 'horizontal', 'vertical'"):
        random_flip("up")
