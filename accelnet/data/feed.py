"""How batches reach the compiled program: the data lies on the device, or the host streams it there.

Both feeds give the same microbatches in the same order. The program asks for them through the same two
functions, so nothing else knows which of the two it is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from accelnet.data.dataset import Data
from accelnet.data.order import Order, eval_rows
from accelnet.data.rows import LazyArray
from accelnet.ops.rows import take_rows

Tree = Any

# Batches of a chunk lie on the device together; beyond this there is nothing to win (measured: none from 8 on).
_CHUNK_BYTES = 64 << 20
_CHUNK_STEPS = 32
_BLOCK_STEPS = 16
# Enough to cover a slow read; batches wait in memory, so no more than this many bytes of them.
_PREFETCH_BYTES = 128 << 20


@dataclass(eq=False)
class AbstractFeed(ABC):
    """Give microbatches to the compiled program.

    `train_*` follow the training order, `eval_*` go through the rows of a split from its beginning.
    The `*_operand` methods run on the host and return a pytree of arrays, an operand of the program; the
    `*_batch` methods are traced inside it, for one of the equal parts of a batch that lie on the mesh's batch axes.

    Attributes:
        order: Batches of the training split; a microbatch divides into as many parts as `axes` make.
        eval_batch_size: Examples per evaluation batch; divides likewise.
        axes: Axes of the mesh along which batches are cut.
        max_steps: Most steps that one operand holds, None for any number.
        train_spec: Cut of a training operand's arrays over the mesh.
        eval_spec: The same of an evaluation operand.
    """

    data: Data
    order: Order
    eval_batch_size: int
    mesh: Mesh | None = None
    axes: tuple[str, ...] = ()

    max_steps: int | None = field(default=None, init=False)
    train_spec = eval_spec = PartitionSpec()

    @property
    def num_parts(self) -> int:
        """Equal parts of a batch along the mesh's batch axes."""
        return math.prod(self.mesh.shape[name] for name in self.axes) if self.mesh else 1

    def _sharding(self, spec: PartitionSpec) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, spec)

    @abstractmethod
    def train_operand(self, step: int, num_steps: int, seed: int = 0) -> Tree:
        """Return what the steps `step` to `step + num_steps` of the order of a seed need."""

    def with_eval_batch_size(self, size: int) -> Self:
        """Return a feed of the same data with other evaluation batches, which reads for itself."""
        return replace(self, eval_batch_size=size)

    @abstractmethod
    def train_batch(
        self, operand: Tree, index: jax.Array, step: jax.Array, microbatch: Any, seed: jax.Array, part: Any
    ) -> Tree:
        """Return a part of a microbatch of the step, which is the `index`-th that the operand holds."""

    @abstractmethod
    def eval_operand(self, rows: range, first: int, num_batches: int) -> Tree:
        """Return what the evaluation batches `first` to `first + num_batches` of a split need."""

    @abstractmethod
    def eval_batch(
        self, operand: Tree, index: jax.Array, first: jax.Array, start: jax.Array, stop: jax.Array, part: Any
    ) -> Tree:
        """Return a part of evaluation batch `first + index` of the rows `start` to `stop`."""

    @abstractmethod
    def abstract(self) -> tuple[Tree, Tree]:
        """Return the shapes of the training operand and of the evaluation operand."""

    @abstractmethod
    def close(self) -> None:
        """Stop what runs in the background."""


class DeviceFeed(AbstractFeed):
    """Keep all of the data on the device and gather the batches inside the program."""

    _arrays: Tree = None

    def _on_device(self) -> Tree:
        if self._arrays is None:
            sharding = self._sharding(PartitionSpec())

            def put(a: np.ndarray) -> jax.Array:
                a = np.asarray(a[:] if isinstance(a, LazyArray) else a, canonicalize_dtype(a.dtype))
                if sharding is None:
                    return jax.device_put(a)
                return jax.make_array_from_callback(a.shape, sharding, a.__getitem__)

            self._arrays = jax.tree.map(put, dict(self.data.arrays))
        return self._arrays

    def train_operand(self, step: int, num_steps: int, seed: int = 0) -> Tree:
        return self._on_device()

    def with_eval_batch_size(self, size: int) -> Self:
        """Return a feed of the same arrays on the device."""
        other = super().with_eval_batch_size(size)
        other._arrays = self._on_device()
        return other

    def train_batch(
        self, operand: Tree, index: jax.Array, step: jax.Array, microbatch: Any, seed: jax.Array, part: Any
    ) -> Tree:
        order = self.order
        if order.is_whole and self.num_parts == 1:
            stop = order.first_row + order.num_examples
            batch = jax.tree.map(lambda a: a[order.first_row : stop], operand)
            return batch | {"mask": jnp.ones((order.num_examples,), bool)}
        rows, mask = order.rows(step, microbatch, seed=seed, part=part, num_parts=self.num_parts, xp=jnp)
        return jax.tree.map(lambda a: take_rows(a, rows), operand) | {"mask": mask}

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
        shapes = jax.tree.map(lambda a: _shape(a.shape, a.dtype, sharding), dict(self.data.arrays))
        return shapes, shapes

    def close(self) -> None:
        self._arrays = None


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
        # Steps are read in blocks, since reading one costs as much as reading sixteen small ones.
        self._block_steps = min(_BLOCK_STEPS, self.max_steps)
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

        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=self._prefetch)
        stride = self._block_steps
        blocks = grain.MapDataset.range(step, 2**31 - 1 - stride, stride).map(self._read_block)
        return iter(blocks.to_iter_dataset(options))

    def _read_block(self, first: int) -> Tree:
        rows, mask = self.order.block(range(first, first + self._block_steps), seed=self._seed)
        return self._take(rows[:, :, self._train_columns]) | {"mask": mask[:, :, self._train_columns]}

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
            arrays = jax.tree.map(lambda a: _shape((*lead, *a.shape[1:]), a.dtype, sharding), dict(self.data.arrays))
            return arrays | {"mask": _shape(lead, np.dtype(bool), sharding)}

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
    if on_device is None and not data.is_in_memory:
        on_device = False  # all of it was not to be read at once
    elif on_device is None:
        stats = jax.local_devices()[0].memory_stats() or {}
        # The CPU client reports nothing: its memory is the host's, where the data lies already.
        on_device = data.nbytes <= (device_memory_bytes or stats.get("bytes_limit", 16 << 30)) // 4
    return (DeviceFeed if on_device else StreamFeed)(data, order, **settings)


def _shape(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, canonicalize_dtype(dtype), sharding=sharding)
