import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from accelnet.data import cutmix, mixup
from accelnet.data.augment import uniform
from accelnet.errors import UserError

KEY = jax.random.key(11)
OTHER = np.array([1, 0, 3, 2, 5, 4, 7, 6])


def batch_of(**changes):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 6, 5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 3, 1, 0, 2], np.int32)
    return {"inputs": jnp.asarray(images), "targets": jnp.asarray(labels)} | changes


def shares(alpha, draws):
    return stats.beta.ppf(np.asarray(draws, np.float64), alpha, alpha)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_mixes_neighbours_and_their_labels_by_a_share_of_the_beta_distribution(alpha):
    batch = batch_of()
    got = jax.jit(mixup(alpha, num_classes=4))(KEY, batch)
    share = shares(alpha, uniform(KEY, (8,)))
    x, y = np.asarray(batch["inputs"]), np.eye(4)[np.asarray(batch["targets"])]
    mixed = share[:, None] * y + (1 - share)[:, None] * y[OTHER]
    np.testing.assert_allclose(got["targets"], mixed, atol=2e-4)  # the table's steps
    exact = np.asarray(got["targets"])[np.arange(8), np.asarray(batch["targets"])][:, None, None, None]
    np.testing.assert_allclose(got["inputs"], exact * x + (1 - exact) * x[OTHER], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["targets"].sum(1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])  # of less, float32 has many that are 1
def test_shares_follow_the_beta_distribution(alpha):
    batch = {"inputs": jnp.tile(jnp.array([1.0, 0.0]), 5000)[:, None], "targets": jnp.zeros(10000)}
    first = np.asarray(mixup(alpha)(KEY, batch)["inputs"])[::2, 0]
    assert stats.kstest(first, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_cutmix_puts_a_box_of_the_neighbour_into_the_image_and_counts_its_pixels():
    batch = batch_of()
    got = jax.jit(cutmix(num_classes=4))(KEY, batch)
    draws = np.asarray(uniform(KEY, (8, 3)), np.float64)
    x, y = np.asarray(batch["inputs"]), np.eye(4)[np.asarray(batch["targets"])]
    for i, (area, row, column) in enumerate(draws):
        side = np.sqrt(1 - area)  # Beta(1, 1) is even
        height, width = int(6 * side), int(5 * side)
        top, left = int(6 * row) - height // 2, int(5 * column) - width // 2
        expected, box = x[i].copy(), np.zeros((6, 5), bool)
        box[max(top, 0) : top + height, max(left, 0) : left + width] = True
        expected[box] = x[OTHER[i]][box]
        np.testing.assert_array_equal(got["inputs"][i], expected)
        np.testing.assert_allclose(got["targets"][i], (1 - box.mean()) * y[i] + box.mean() * y[OTHER[i]], rtol=1e-6)
    assert not np.array_equal(got["inputs"], x)


BOTH = pytest.mark.parametrize("augment", [mixup(1.0, num_classes=4), cutmix(num_classes=4)], ids=["mixup", "cutmix"])


@BOTH
def test_padding_and_examples_of_no_weight_are_never_mixed_in(augment):
    batch = batch_of(mask=jnp.arange(8) < 5, weights=jnp.array([1.0, 2.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    for row in (2, 5, 6, 7):  # what does not count may be anything
        batch["inputs"] = batch["inputs"].at[row].set(jnp.nan)
    got = jax.jit(augment)(KEY, batch)
    assert np.isfinite(got["inputs"][jnp.array([0, 1, 3, 4])]).all()
    for row in (3, 4):
        assert jnp.array_equal(got["inputs"][row], batch["inputs"][row])
        assert got["targets"][row].tolist() == np.eye(4)[3].tolist()
    assert not jnp.array_equal(got["inputs"][0], batch["inputs"][0])
    share = got["targets"][0, 0]
    assert got["weights"][0] == pytest.approx(float(share + 2 * (1 - share)))
    assert got["weights"][2:].tolist() == batch["weights"][2:].tolist()


@BOTH
def test_a_pair_depends_on_the_key_and_its_place_only(augment):
    batch = batch_of()
    whole, part = jax.jit(augment)(KEY, batch), augment(KEY, jax.tree.map(lambda leaf: leaf[:4], batch))
    for name in ("inputs", "targets"):
        np.testing.assert_allclose(whole[name][:4], part[name], rtol=1e-5, atol=1e-6)
    low = jax.jit(augment)(KEY, {**batch, "inputs": batch["inputs"].astype(jnp.bfloat16)})
    assert low["inputs"].dtype == jnp.bfloat16 and low["targets"].dtype == jnp.float32
    np.testing.assert_allclose(low["inputs"].astype(np.float32), whole["inputs"], rtol=0.02, atol=0.02)


def test_numbers_are_mixed_as_numbers_and_classes_as_the_data_and_the_task_say():
    inputs = jnp.arange(2.0)[:, None]
    share = mixup()(KEY, {"inputs": inputs, "targets": jnp.zeros(2)})["inputs"][:, 0]
    numbers = mixup()(KEY, {"inputs": inputs, "targets": jnp.array([10.0, 30.0])})["targets"]
    np.testing.assert_allclose(numbers, 10 + 20 * share, rtol=1e-6)
    yes = mixup()(KEY, {"inputs": inputs, "targets": jnp.array([False, True])})["targets"]
    np.testing.assert_allclose(yes, share, rtol=1e-6)
    whole = {"inputs": inputs, "targets": jnp.array([0, 1])}
    np.testing.assert_allclose(mixup()(KEY, whole, num_classes=2, task="labels")["targets"], share, rtol=1e-6)
    np.testing.assert_allclose(mixup()(KEY, whole, num_classes=2, task="classes")["targets"][:, 1], share, rtol=1e-6)
    assert np.isnan(mixup(num_classes=1)(KEY, whole)["targets"]).any()  # a label that is no class


def test_what_cannot_be_mixed_is_refused():
    def refuses(match, augment, batch, **offered):
        with pytest.raises(UserError, match=match):
            augment(KEY, batch, **offered)

    refuses("the number of classes is not known: give num_classes", mixup(), batch_of())
    refuses("num_classes is 3, and the data has 4", mixup(num_classes=3), batch_of(), num_classes=4)
    odd = jax.tree.map(lambda leaf: leaf[:7], batch_of())
    refuses("has 7 examples, and neighbours are mixed: expected an even number", cutmix(num_classes=4), odd)
    refuses("targets are a dict of a, and one array", mixup(), batch_of(targets={"a": jnp.zeros(8)}))
    refuses("targets are tokens", mixup(num_classes=4), batch_of(), task="tokens")
    refuses("inputs are a dict", mixup(num_classes=4), batch_of(inputs={"x": jnp.zeros(8)}))
    refuses("inputs are uint8, expected an array of floats", mixup(), batch_of(inputs=jnp.zeros((8, 2), jnp.uint8)))
    refuses("inputs are of shape", cutmix(num_classes=4), batch_of(inputs=jnp.zeros((8, 2))))
    refuses("mixes those of whole images", cutmix(), batch_of(targets=jnp.zeros((8, 6, 5))))
    refuses(r"weights have shape \(8, 2\)", mixup(num_classes=4), batch_of(weights=jnp.ones((8, 2))))
    for alpha in (0, -1.0, "a"):
        with pytest.raises(UserError, match="alpha is"):
            mixup(alpha)
