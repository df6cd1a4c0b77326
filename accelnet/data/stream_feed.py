"""The host reads batches ahead of time and streams them to the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.sharding import PartitionSpec

from accelnet.data.abstract_feed import AbstractFeed, Tree, shape_struct
from accelnet.data.checks import check_read
from accelnet.data.order import eval_rows

# Batches of a chunk lie on the device together; beyond this there is nothing to win (measured: none from 8 on).
_CHUNK_BYTES = 64 << 20
_CHUNK_STEPS = 32
_BLOCK_STEPS = 16
_ORDERED_ROWS = 1 << 18
# Enough to cover a slow read; batches wait in memory, so no more than this many bytes of them.
_PREFETCH_BYTES = 128 << 20


@dataclass(eq=False)
class StreamFeed(AbstractFeed):
    """Read batches on the host, ahead of time in threads of grain's, and send a chunk's worth at once.

    Memory is bounded by the prefetched batches and two chunks, whatever the size of the data. A host reads only the
    examples that its own devices compute.
    """

    def __post_init__(self) -> None:
        order, data = self.order, self.data
        if self.axes:
            self.train_spec, self.eval_spec = PartitionSpec(None, None, self.axes), PartitionSpec(None, self.axes)
        self._train_columns = self._own(order.microbatch_size)
        self._eval_columns = self._own(self.eval_batch_size)
        step_bytes = max(1, data.nbytes // data.num_rows) * max(order.batch_size, self.eval_batch_size)
        self.max_steps = int(np.clip(_CHUNK_BYTES // step_bytes, 1, _CHUNK_STEPS))
        # Steps are read in blocks, since reading one costs as much as reading sixteen small ones; but the first step
        # does not wait for others where each row takes computing.
        self._block_steps = min(_BLOCK_STEPS, self.max_steps) if data.is_stored else 1
        self._prefetch = int(np.clip(_PREFETCH_BYTES // (step_bytes * self._block_steps), 2, 8))
        self._step: int | None = None  # the next one that is read
        self._seed = 0
        self._blocks: Iterator[Tree] = iter(())
        self._rest: Tree = None  # what is left of the last block

    def _own(self, size: int) -> np.ndarray:
        """Return which of `size` examples lie on this host's devices, ascending."""
        sharding = self._sharding(PartitionSpec(self.axes) if self.axes else PartitionSpec())
        if sharding is None:
            return np.arange(size)
        slices = sharding.addressable_devices_indices_map((size,)).values()
        return np.unique(np.concatenate([np.arange(size)[index] for index in slices]))

    def _prefetched(self, step: int) -> Iterator[Tree]:
        import grain  # imported where it is needed: 0.25 s

        stride, seed, columns = self._block_steps, self._seed, self._train_columns
        # Where batches are large, fewer steps: their rows lie in memory.
        several = stride * int(
            np.clip(_ORDERED_ROWS // (stride * self.order.batch_size), 1, -(-_BLOCK_STEPS // stride))
        )

        @lru_cache(maxsize=4)  # more than threads: the order of one step costs as much as that of seven
        def order(number: int) -> tuple[np.ndarray, np.ndarray]:
            first = step + number * several
            return self.order.block(range(first, first + several), seed=seed)

        def read(number: int) -> Tree:
            first = number * stride
            own = slice(first % several, first % several + stride)
            rows, mask = (one[own][:, :, columns] for one in order(first // several))
            return self._take(rows) | {"mask": mask}

        options = grain.ReadOptions(num_threads=self.data.readers, prefetch_buffer_size=self._prefetch)
        blocks = grain.MapDataset.range(0, (2**31 - 1 - step - several) // stride).map(read)
        return iter(blocks.to_iter_dataset(options))

    def _take(self, rows: np.ndarray) -> dict[str, Any]:
        """Read rows of any shape: arrays [*rows.shape, ...]."""
        return jax.tree.map(lambda a: a.reshape(*rows.shape, *a.shape[1:]), self.data.take(rows.reshape(-1)))

    def train_operand(self, step: int, num_steps: int, seed: int = 0) -> Tree:
        if self._step != step or self._seed != seed:
            self._seed = seed
            self._blocks = self._prefetched(step)
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
        return self._filled(parts, 2, self._train_columns, self.order.microbatch_size)

    def train_batch(
        self, operand: Tree, index: jax.Array, step: jax.Array, microbatch: Any, seed: jax.Array, part: Any
    ) -> Tree:
        return jax.tree.map(lambda a: a[index, microbatch], operand)

    def eval_operand(self, rows: range, first: int, num_batches: int) -> Tree:
        numbers = np.arange(first, first + num_batches, dtype=np.int32)[:, None]
        index, mask = eval_rows(rows.start, rows.stop, numbers * self.eval_batch_size + self._eval_columns, np)
        return self._filled([self._take(index) | {"mask": mask}], 1, self._eval_columns, self.eval_batch_size)

    def eval_batch(
        self, operand: Tree, index: jax.Array, first: jax.Array, start: jax.Array, stop: jax.Array, part: Any
    ) -> Tree:
        return jax.tree.map(lambda a: a[index], operand)

    def abstract(self) -> tuple[Tree, Tree]:
        def shapes(spec: PartitionSpec, *lead: int) -> Tree:
            sharding = self._sharding(spec)
            arrays = jax.tree.map(
                lambda a: shape_struct((*lead, *a.shape[1:]), a.dtype, sharding), dict(self.data.arrays)
            )
            return arrays | {"mask": shape_struct(lead, np.dtype(bool), sharding)}

        assert self.max_steps is not None
        train = shapes(self.train_spec, self.max_steps, self.order.num_microbatches, self.order.microbatch_size)
        return train, shapes(self.eval_spec, self.max_steps, self.eval_batch_size)

    def _filled(self, parts: list[Tree], axis: int, columns: np.ndarray, size: int) -> Tree:
        """Join parts to an operand of fixed length, of which this host has `columns` of the `size` on `axis`."""
        length, sharding = self.max_steps, self._sharding(self.train_spec if axis == 2 else self.eval_spec)
        assert length is not None

        def join(*parts: np.ndarray) -> jax.Array:
            operand = np.empty((length, *parts[0].shape[1:]), canonicalize_dtype(parts[0].dtype))
            # What lies behind the parts is never read.
            np.concatenate(parts, out=operand[: sum(map(len, parts))], casting="unsafe")
            if sharding is None:
                return jax.device_put(operand)

            def own(index: Any) -> np.ndarray:
                start, stop, _ = index[axis].indices(size)
                held = slice(*np.searchsorted(columns, (start, stop)))
                return operand[(*index[:axis], held, *index[axis + 1 :])]

            shape = (*operand.shape[:axis], size, *operand.shape[axis + 1 :])
            return jax.make_array_from_callback(shape, sharding, own)

        return jax.tree.map(join, *parts)

    def close(self) -> None:
        self._step, self._blocks, self._rest = None, iter(()), None


class BatchFeed(StreamFeed):
    """Take the training batches of a stream as they come."""

    def _prefetched(self, step: int) -> Iterator[Tree]:
        order = self.order
        within = np.arange(order.num_microbatches * order.microbatch_size).reshape(1, order.num_microbatches, -1)
        mask = (within < order.batch_size)[:, :, self._train_columns]
        rows = np.minimum(within, order.batch_size - 1)[0][:, self._train_columns]
        data, size = self.data, order.batch_size
        for number, batch in enumerate(data.stream.batches(step), step):
            examples = number * size + np.arange(size)
            check_read(data.name, data.arrays, batch, examples, data.info.get("num_classes"))
            yield jax.tree.map(lambda a: a[rows][None], batch) | {"mask": mask}
