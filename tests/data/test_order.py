import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import accelnet as an
from accelnet.data.order import Order, permute


@pytest.mark.parametrize("num_examples", [1, 2, 3, 5, 16, 97, 1437, 60000])
def test_every_epoch_is_a_permutation_of_its_own(num_examples):
    positions = np.arange(num_examples, dtype=np.uint32)
    orders = [
        permute(positions, seed=seed, epoch=epoch, num_examples=num_examples)
        for seed in (0, 2**32 - 1)
        for epoch in (0, 1)
    ]
    for order in orders:
        assert np.array_equal(np.sort(order), positions)
    if num_examples > 50:
        assert len({order.tobytes() for order in orders}) == 4


def test_small_sets_take_all_their_orders_about_equally_often():
    positions = np.arange(3, dtype=np.uint32)
    counts = {}
    for epoch in range(1200):
        order = tuple(permute(positions, seed=5, epoch=epoch, num_examples=3).tolist())
        counts[order] = counts.get(order, 0) + 1
    # 200 of each are expected; 5 standard deviations are 65.
    assert len(counts) == 6 and all(135 < count < 265 for count in counts.values())


def test_neighbours_are_unrelated_and_positions_uniform():
    n = 60000
    order = permute(np.arange(n, dtype=np.uint32), seed=1, epoch=0, num_examples=n).astype(np.int64)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / np.sqrt(n)
    assert np.sum(np.diff(order) == 1) <= 6  # 1 is expected
    thirds = np.histogram(order[: n // 3], bins=20, range=(0, n))[0]
    assert np.all(np.abs(thirds - n / 60) < 6 * np.sqrt(n / 60))


@pytest.mark.parametrize(("n", "batch", "micro"), [(50, 8, 8), (50, 8, 3), (7, 7, 7), (7, 7, 2), (1437, 64, 64)])
def test_an_epoch_holds_every_example_once_and_host_and_device_agree(n, batch, micro):
    order = Order(n, batch, micro, first_row=100)
    device = jax.jit(lambda step, part: order.rows(step, part, seed=jnp.uint32(3), xp=jnp))
    for epoch in range(2):
        seen = []
        for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
            for part in range(order.num_microbatches):
                rows, mask = order.rows(np.int32(step), part, seed=3)
                on_device = device(jnp.int32(step), jnp.int32(part))
                np.testing.assert_array_equal(rows, on_device[0])
                np.testing.assert_array_equal(mask, on_device[1])
                chex.assert_shape([rows, mask], (micro,))
                seen.extend(rows[mask].tolist())
        assert sorted(seen) == list(range(100, 100 + n))


@pytest.mark.parametrize(("n", "batch", "micro"), [(50, 8, 3), (7, 7, 2), (1437, 64, 64)])
def test_a_block_holds_the_rows_of_its_steps_across_epochs(n, batch, micro):
    order = Order(n, batch, micro, first_row=5)
    steps = range(2, 2 + 3 * order.steps_per_epoch)
    rows, mask = order.block(steps, seed=7)
    chex.assert_shape([rows, mask], (len(steps), order.num_microbatches, micro))
    for index, step in enumerate(steps):
        for part in range(order.num_microbatches):
            expected = order.rows(np.int32(step), part, seed=7)
            np.testing.assert_array_equal(rows[index, part], expected[0])
            np.testing.assert_array_equal(mask[index, part], expected[1])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 11, 11), "batch_size 11 is larger than the training split of 10 examples"),
        ((10, 0, 1), "batch_size is 0, expected at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(an.UserError, match=message):
        Order(*sizes)
