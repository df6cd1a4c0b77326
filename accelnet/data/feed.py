"""How batches reach the compiled program: the data lies on the device, or the host streams it there.

Both feeds give the same microbatches in the same order. The program asks for them through the same two
functions, so nothing else knows which of the two it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.data.dataset import Data
from accelnet.data.order import Order

Tree = Any

# Batches of a chunk lie on the device together; beyond this there is nothing to win (measured: none from 8 on).
_CHUNK_BYTES = 64 << 20
_CHUNK_STEPS = 32
_BLOCK_STEPS = 16
# Enough to cover a slow read; batches wait in memory, so no more than this many bytes of them.
_PREFETCH_BYTES = 128 << 20


class AbstractFeed(ABC):
    """Give microbatches to the compiled program.

    `train_*` follow the training order, `eval_*` go through the rows of a split from its beginning.
    The `*_operand` methods run on the host and return a pytree of arrays, an operand of the program; the
    `*_batch` methods are traced inside it.

    Attributes:
        max_steps: most steps that one operand holds, None for any number.
    """

    max_steps: int | None

    def __init__(self, data: Data, order: Order, *, seed: int, eval_batch_size: int) -> None:
        self.data = data
        self.order = order
        self.seed = seed
        self.eval_batch_size = eval_batch_size

    @abstractmethod
    def train_operand(self, step: int, num_steps: int) -> Tree:
        """Return what the steps `step` to `step + num_steps` need."""

    @abstractmethod
    def train_batch(self, operand: Tree, index: jax.Array, step: jax.Array, microbatch: Any, seed: jax.Array) -> Tree:
        """Return a microbatch of the step, which is the `index`-th that the operand holds."""

    @abstractmethod
    def eval_operand(self, rows: range, first: int, num_batches: int) -> Tree:
        """Return what the evaluation batches `first` to `first + num_batches` of a split need."""

    @abstractmethod
    def eval_batch(self, operand: Tree, index: jax.Array, first: jax.Array, start: jax.Array, stop: jax.Array) -> Tree:
        """Return evaluation batch `first + index` of the rows `start` to `stop`."""

    def eval_rows(self, start: Any, stop: Any, number: Any, xp: Any = np) -> tuple[Any, Any]:
        """Give the rows and the mask of an evaluation batch; padding repeats the last row."""
        rows = start + number * self.eval_batch_size + xp.arange(self.eval_batch_size, dtype=xp.int32)
        return xp.minimum(rows, stop - 1), rows < stop

    def abstract(self) -> tuple[Tree, Tree]:
        """Return the shapes of the training operand and of the evaluation operand."""
        shapes = jax.eval_shape(lambda: (self.train_operand(0, 1), self.eval_operand(self.data.splits["train"], 0, 1)))
        return shapes

    @abstractmethod
    def close(self) -> None:
        """Stop what runs in the background."""


class DeviceFeed(AbstractFeed):
    """Keep all of the data on the device and gather the batches inside the program.

    Source: original.
    """

    max_steps = None

    def __init__(self, data: Data, order: Order, *, seed: int, eval_batch_size: int) -> None:
        super().__init__(data, order, seed=seed, eval_batch_size=eval_batch_size)
        self._arrays: Tree = None

    def _on_device(self) -> Tree:
        if self._arrays is None:
            self._arrays = jax.device_put(dict(self.data.arrays))
        return self._arrays

    def train_operand(self, step: int, num_steps: int) -> Tree:
        return self._on_device()

    def train_batch(self, operand: Tree, index: jax.Array, step: jax.Array, microbatch: Any, seed: jax.Array) -> Tree:
        order = self.order
        if order.is_whole:
            stop = order.first_row + order.num_examples
            batch = jax.tree.map(lambda a: a[order.first_row : stop], operand)
            return batch | {"mask": jnp.ones((order.num_examples,), bool)}
        rows, mask = order.rows(step, microbatch, seed=seed, xp=jnp)
        return _gather(operand, rows) | {"mask": mask}

    def eval_operand(self, rows: range, first: int, num_batches: int) -> Tree:
        return self._on_device()

    def eval_batch(self, operand: Tree, index: jax.Array, first: jax.Array, start: jax.Array, stop: jax.Array) -> Tree:
        rows, mask = self.eval_rows(start, stop, first + index, jnp)
        return _gather(operand, rows) | {"mask": mask}

    def abstract(self) -> tuple[Tree, Tree]:
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, _device_dtype(a.dtype)), dict(self.data.arrays))
        return shapes, shapes

    def close(self) -> None:
        self._arrays = None


class StreamFeed(AbstractFeed):
    """Read batches on the host, ahead of time in threads of grain's, and send a chunk's worth at once.

    Memory is bounded by the prefetched batches and two chunks, whatever the size of the data.

    Source: original.
    """

    def __init__(self, data: Data, order: Order, *, seed: int, eval_batch_size: int) -> None:
        super().__init__(data, order, seed=seed, eval_batch_size=eval_batch_size)
        step_bytes = max(1, data.nbytes // data.num_rows) * max(order.batch_size, eval_batch_size)
        self.max_steps = int(np.clip(_CHUNK_BYTES // step_bytes, 1, _CHUNK_STEPS))
        # Steps are read in blocks, since reading one costs as much as reading sixteen small ones.
        self._block_steps = min(_BLOCK_STEPS, self.max_steps)
        self._prefetch = int(np.clip(_PREFETCH_BYTES // (step_bytes * self._block_steps), 2, 8))
        self._step: int | None = None  # the next one that is read
        self._blocks: Iterator[Tree] = iter(())
        self._rest: Tree = None  # what is left of the last block

    def _read_block(self, first: int) -> Tree:
        rows, mask = self.order.block(range(first, first + self._block_steps), seed=self.seed)
        return self._take(rows) | {"mask": mask}

    def _take(self, rows: np.ndarray) -> dict[str, Any]:
        """Read rows of any shape: arrays [*rows.shape, ...]."""
        return jax.tree.map(lambda a: a.reshape(*rows.shape, *a.shape[1:]), self.data.take(rows.reshape(-1)))

    def train_operand(self, step: int, num_steps: int) -> Tree:
        if self._step != step:
            self._blocks = _prefetched(self._read_block, step, self._block_steps, self._prefetch)
            self._rest = None
        parts, missing = [], num_steps
        while missing:
            block = next(self._blocks) if self._rest is None else self._rest
            length = min(missing, len(block["mask"]))
            parts.append(jax.tree.map(lambda a, n=length: a[:n], block))
            rest = jax.tree.map(lambda a, n=length: a[n:], block)
            self._rest = rest if len(rest["mask"]) else None
            missing -= length
        self._step = step + num_steps
        return self._filled(parts)

    def train_batch(self, operand: Tree, index: jax.Array, step: jax.Array, microbatch: Any, seed: jax.Array) -> Tree:
        return jax.tree.map(lambda a: a[index, microbatch], operand)

    def eval_operand(self, rows: range, first: int, num_batches: int) -> Tree:
        numbers = np.arange(first, first + num_batches, dtype=np.int32)[:, None]
        index, mask = self.eval_rows(rows.start, rows.stop, numbers)
        return self._filled([self._take(index) | {"mask": mask}])

    def eval_batch(self, operand: Tree, index: jax.Array, first: jax.Array, start: jax.Array, stop: jax.Array) -> Tree:
        return jax.tree.map(lambda a: a[index], operand)

    def abstract(self) -> tuple[Tree, Tree]:
        def shapes(*lead: int) -> Tree:
            arrays = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((*lead, *a.shape[1:]), _device_dtype(a.dtype)),
                dict(self.data.arrays),
            )
            return arrays | {"mask": jax.ShapeDtypeStruct(lead, jnp.bool_)}

        assert self.max_steps is not None
        train = shapes(self.max_steps, self.order.num_microbatches, self.order.microbatch_size)
        return train, shapes(self.max_steps, self.eval_batch_size)

    def _filled(self, parts: list[Tree]) -> Tree:
        """Join parts to the fixed length of an operand; what lies behind them is never read."""
        length = self.max_steps
        assert length is not None

        def join(*parts: np.ndarray) -> np.ndarray:
            operand = np.empty((length, *parts[0].shape[1:]), _device_dtype(parts[0].dtype))
            np.concatenate(parts, out=operand[: sum(map(len, parts))], casting="unsafe")
            return operand

        return jax.device_put(jax.tree.map(join, *parts))

    def close(self) -> None:
        self._step, self._blocks, self._rest = None, iter(()), None


def make_feed(data: Data, order: Order, *, seed: int, eval_batch_size: int, on_device: bool | None) -> AbstractFeed:
    """Choose the feed: on the device if the data takes at most a quarter of its memory, else streamed.

    Args:
        data: what to feed.
        order: batches of the training split.
        seed: of the order, uint32.
        eval_batch_size: examples per evaluation batch.
        on_device: True or False overrides the choice.

    Returns:
        A `DeviceFeed` or a `StreamFeed`.

    Source: original.
    """
    if on_device is None:
        on_device = data.nbytes <= _device_memory_bytes() // 4
    kind = DeviceFeed if on_device else StreamFeed
    return kind(data, order, seed=seed, eval_batch_size=eval_batch_size)


def _device_memory_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats()
    # The CPU client reports nothing: its memory is the host's, where the data lies already.
    return stats["bytes_limit"] if stats and "bytes_limit" in stats else 16 << 30


def _device_dtype(dtype: np.dtype) -> np.dtype:
    return jax.dtypes.canonicalize_dtype(dtype)


def _gather(arrays: Tree, rows: jax.Array) -> Tree:
    return jax.tree.map(lambda a: jnp.take(a, rows, axis=0, mode="clip"), arrays)


def _prefetched(read: Any, start: int, stride: int, buffer_size: int) -> Iterator[Tree]:
    import grain  # imported where it is needed: 0.25 s

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=buffer_size)
    return iter(grain.MapDataset.range(start, 2**31 - 1 - stride, stride).map(read).to_iter_dataset(options))
