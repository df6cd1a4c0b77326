import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import accelnet as an
from accelnet.data.feed import DeviceFeed, make_feed
from accelnet.data.order import Order
from accelnet.data.stream_feed import StreamFeed


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    arrays = {
        "inputs": {
            "inputs": rng.normal(size=(40, 5, 2)).astype(np.float32),
            "lengths": np.arange(40) % 5 + 1,
        },
        "targets": np.arange(40),
    }
    return an.data.Data("toy", arrays, {"train": range(23), "validation": range(23, 40)})


def make(kind, data, micro):
    return kind(data, Order(23, 6, micro), eval_batch_size=5)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    chex.assert_trees_all_equal(a, b)


@pytest.mark.parametrize("micro", [6, 4])
def test_streaming_gives_the_batches_of_the_device_in_the_same_order(data, micro):
    device, stream = make(DeviceFeed, data, micro), make(StreamFeed, data, micro)
    stream.max_steps = 3
    step = 2  # a run that was resumed
    for length in (1, 3, 2, 3):
        operands = device.train_operand(step, length, 4), stream.train_operand(step, length, 4)
        for index, part in itertools.product(range(length), range(-(-6 // micro))):
            numbers = jnp.int32(index), jnp.int32(step + index), jnp.int32(part), jnp.uint32(4), 0
            equal(device.train_batch(operands[0], *numbers), stream.train_batch(operands[1], *numbers))
        step += length
    stream.close()


def test_evaluation_batches_cover_a_split_once(data):
    for feed in (make(DeviceFeed, data, 6), make(StreamFeed, data, 6)):
        rows = data.splits["validation"]
        operand, seen = feed.eval_operand(rows, 0, 4), []
        for index in range(4):
            numbers = [jnp.int32(n) for n in (index, 0, rows.start, rows.stop)]
            batch = feed.eval_batch(operand, *numbers, 0)
            seen.extend(np.asarray(batch["targets"])[np.asarray(batch["mask"])].tolist())
        assert seen == list(rows)
        feed.close()


@pytest.mark.parametrize("kind", [DeviceFeed, StreamFeed])
def test_the_abstract_operands_are_those_of_the_run(data, kind):
    feed = make(kind, data, 4)

    def shape(array):
        return array.shape, array.dtype

    train, evaluate = feed.abstract()
    assert jax.tree.map(shape, feed.train_operand(0, 2)) == jax.tree.map(shape, train)
    assert jax.tree.map(shape, feed.eval_operand(data.splits["train"], 0, 2)) == jax.tree.map(shape, evaluate)
    feed.close()


def test_a_memmap_is_streamed_without_being_read_whole(tmp_path, data):
    np.save(tmp_path / "inputs.npy", np.arange(24, dtype=np.float32).reshape(12, 2))
    inputs = np.load(tmp_path / "inputs.npy", mmap_mode="r")
    mapped = an.data.Data("mapped", {"inputs": inputs, "targets": np.arange(12)}, {"train": range(12)})
    feed = make_feed(mapped, Order(12, 4, 4), eval_batch_size=4, on_device=False)
    assert isinstance(feed, StreamFeed)
    batch = feed.train_batch(feed.train_operand(0, 1), jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.uint32(0), 0)
    np.testing.assert_array_equal(batch["inputs"][:, 0], 2.0 * batch["targets"])
    feed.close()


def test_small_data_stays_on_the_device_by_default(data):
    feed = make_feed(data, Order(23, 6, 6), eval_batch_size=5, on_device=None)
    assert isinstance(feed, DeviceFeed)
