"""How batches reach the compiled program: the data lies on the device, or the host streams it there.

Both feeds give the same microbatches in the same order. The program asks for them through the same two
functions, so nothing else knows which of the two it is.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.sharding import PartitionSpec

from accelnet.data.abstract_feed import AbstractFeed, Tree, shape_struct
from accelnet.data.dataset import Data
from accelnet.data.order import Order, eval_rows
from accelnet.data.rows import LazyArray
from accelnet.data.stream_feed import BatchFeed, StreamFeed
from accelnet.ops.rows import take_rows


class DeviceFeed(AbstractFeed):
    """Keep all of the data on the device and gather the batches inside the program."""

    _arrays: Tree = None
    _tickets: Any = None  # of an order that draws by weight

    def _on_device(self) -> Tree:
        if self._arrays is None:
            self._arrays = jax.tree.map(self._put, dict(self.data.arrays))
        return self._arrays

    def _put(self, a: np.ndarray) -> jax.Array:
        a = np.asarray(a[:] if isinstance(a, LazyArray) else a, canonicalize_dtype(a.dtype))
        sharding = self._sharding(PartitionSpec())
        return jax.device_put(a) if sharding is None else jax.make_array_from_callback(a.shape, sharding, a.__getitem__)

    def train_operand(self, step: int, num_steps: int, seed: int = 0) -> Tree:
        if self._tickets is None and self.order.tickets is not None:
            self._tickets = self._put(self.order.tickets)
        return self._on_device(), self._tickets

    def with_eval_batch_size(self, size: int) -> Self:
        """Return a feed of the same arrays on the device."""
        other = super().with_eval_batch_size(size)
        other._arrays = self._on_device()
        return other

    def train_batch(
        self, operand: Tree, index: jax.Array, step: jax.Array, microbatch: Any, seed: jax.Array, part: Any
    ) -> Tree:
        (arrays, tickets), order = operand, self.order
        if order.is_whole and self.num_parts == 1:
            stop = order.first_row + order.num_examples
            batch = jax.tree.map(lambda a: a[order.first_row : stop], arrays)
            return batch | {"mask": jnp.ones((order.num_examples,), bool)}
        rows, mask = order.rows(
            step, microbatch, seed=seed, part=part, num_parts=self.num_parts, tickets=tickets, xp=jnp
        )
        return jax.tree.map(lambda a: take_rows(a, rows), arrays) | {"mask": mask}

    def eval_operand(self, rows: range, first: int, num_batches: int) -> Tree:
        return self._on_device()

    def eval_batch(
        self, operand: Tree, index: jax.Array, first: jax.Array, start: jax.Array, stop: jax.Array, part: Any
    ) -> Tree:
        size = self.eval_batch_size // self.num_parts
        within = part * size + jnp.arange(size, dtype=jnp.int32)
        rows, mask = eval_rows(start, stop, (first + index) * self.eval_batch_size + within, jnp)
        return jax.tree.map(lambda a: take_rows(a, rows), operand) | {"mask": mask}

    def abstract(self) -> tuple[Tree, Tree]:
        sharding = self._sharding(PartitionSpec())
        shapes = jax.tree.map(lambda a: shape_struct(a.shape, a.dtype, sharding), dict(self.data.arrays))
        tickets = self.order.tickets
        return (shapes, None if tickets is None else shape_struct(tickets.shape, tickets.dtype, sharding)), shapes

    def close(self) -> None:
        self._arrays = self._tickets = None


def make_feed(
    data: Data, order: Order, *, on_device: bool | None = None, device_memory_bytes: int | None = None, **settings: Any
) -> AbstractFeed:
    """Choose the feed: on every device if the data is in memory and takes at most a quarter of theirs, else streamed.

    Args:
        data: Data to feed.
        order: Batches of the training split.
        on_device: True or False overrides the choice.
        device_memory_bytes: Memory of a device that the program is for. None: of one that is here.
        settings: `eval_batch_size`, `mesh` and `axes` of `AbstractFeed`.

    Returns:
        A `DeviceFeed` or a `StreamFeed`.
    """
    if on_device is None and data.is_lazy:
        on_device = False  # all of it was not to be read at once
    elif on_device is None:
        stats = jax.local_devices()[0].memory_stats() or {}
        # The CPU client reports nothing: its memory is the host's, where the data lies already.
        on_device = data.nbytes <= (device_memory_bytes or stats.get("bytes_limit", 16 << 30)) // 4
    if data.stream is not None:
        return BatchFeed(data, order, **settings)
    return (DeviceFeed if on_device else StreamFeed)(data, order, **settings)
