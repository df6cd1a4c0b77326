"""How batches reach the compiled program: the data lies on the device, or the host streams it there.

Both feeds give the same microbatches in the same order. The program asks for them through the same two
functions, so nothing else knows which of the two it is.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from accelnet.data.dataset import Data
from accelnet.data.order import Order
from accelnet.ops.rows import take_rows

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
    `*_batch` methods are traced inside it, for one of the equal parts of a batch that lie on the mesh's batch axes.

    Attributes:
        max_steps: most steps that one operand holds, None for any number.
        train_spec: how the mesh cuts a training operand's arrays.
        eval_spec: the same of an evaluation operand.
    """

    max_steps: int | None
    train_spec = eval_spec = PartitionSpec()

    def __init__(
        self,
        data: Data,
        order: Order,
        *,
        eval_batch_size: int,
        mesh: Mesh | None = None,
        axes: tuple[str, ...] = (),
    ) -> None:
        self.data = data
        self.order = order
        self.eval_batch_size = eval_batch_size
        self.mesh = mesh
        self.axes = axes
        self.num_parts = math.prod(mesh.shape[name] for name in axes) if mesh else 1

    def _sharding(self, spec: PartitionSpec) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, spec)

    @abstractmethod
    def train_operand(self, step: int, num_steps: int, seed: int = 0) -> Tree:
        """Return what the steps `step` to `step + num_steps` of the order of a seed need."""

    @abstractmethod
    def with_eval_batch_size(self, size: int) -> "AbstractFeed":
        """Return a feed of the same data with other evaluation batches."""

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

    max_steps = None

    def __init__(self, data: Data, order: Order, **settings: Any) -> None:
        super().__init__(data, order, **settings)
        self._arrays: Tree = None

    def _on_device(self) -> Tree:
        if self._arrays is None:
            arrays = dict(self.data.arrays)
            self._arrays = jax.tree.map(
                lambda a: _put(a, self._sharding(PartitionSpec()), lambda rows: a[rows]), arrays
            )
        return self._arrays

    def train_operand(self, step: int, num_steps: int, seed: int = 0) -> Tree:
        return self._on_device()

    def with_eval_batch_size(self, size: int) -> "DeviceFeed":
        """Return a feed of the same arrays on the device."""
        self._on_device()
        other = copy.copy(self)
        other.eval_batch_size = size
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
        return _gather(operand, rows) | {"mask": mask}

    def eval_operand(self, rows: range, first: int, num_batches: int) -> Tree:
        return self._on_device()

    def eval_batch(
        self, operand: Tree, index: jax.Array, first: jax.Array, start: jax.Array, stop: jax.Array, part: Any
    ) -> Tree:
        size = self.eval_batch_size // self.num_parts
        within = part * size + jnp.arange(size, dtype=jnp.int32)
        rows, mask = _eval_rows(start, stop, (first + index) * self.eval_batch_size + within, jnp)
        return _gather(operand, rows) | {"mask": mask}

    def abstract(self) -> tuple[Tree, Tree]:
        sharding = self._sharding(PartitionSpec())
        shapes = jax.tree.map(lambda a: _shape(a.shape, a.dtype, sharding), dict(self.data.arrays))
        return shapes, shapes

    def close(self) -> None:
        self._arrays = None


class StreamFeed(AbstractFeed):
    """Read batches on the host, ahead of time in threads of grain's, and send a chunk's worth at once.

    Memory is bounded by the prefetched batches and two chunks, whatever the size of the data. A host reads only the
    examples that its own devices compute.

    """

    def __init__(self, data: Data, order: Order, **settings: Any) -> None:
        super().__init__(data, order, **settings)
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

    def _read_block(self, first: int) -> Tree:
        rows, mask = self.order.block(range(first, first + self._block_steps), seed=self._seed)
        return self._take(rows[:, :, self._train_columns]) | {"mask": mask[:, :, self._train_columns]}

    def _take(self, rows: np.ndarray) -> dict[str, Any]:
        """Read rows of any shape: arrays [*rows.shape, ...]."""
        return jax.tree.map(lambda a: a.reshape(*rows.shape, *a.shape[1:]), self.data.take(rows.reshape(-1)))

    def with_eval_batch_size(self, size: int) -> "StreamFeed":
        """Return a feed that reads for itself."""
        return StreamFeed(self.data, self.order, eval_batch_size=size, mesh=self.mesh, axes=self.axes)

    def train_operand(self, step: int, num_steps: int, seed: int = 0) -> Tree:
        if self._step != step or self._seed != seed:
            self._seed = seed
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
        return self._filled(parts, 2, self._train_columns, self.order.microbatch_size)

    def train_batch(
        self, operand: Tree, index: jax.Array, step: jax.Array, microbatch: Any, seed: jax.Array, part: Any
    ) -> Tree:
        return jax.tree.map(lambda a: a[index, microbatch], operand)

    def eval_operand(self, rows: range, first: int, num_batches: int) -> Tree:
        numbers = np.arange(first, first + num_batches, dtype=np.int32)[:, None]
        index, mask = _eval_rows(rows.start, rows.stop, numbers * self.eval_batch_size + self._eval_columns, np)
        return self._filled([self._take(index) | {"mask": mask}], 1, self._eval_columns, self.eval_batch_size)

    def eval_batch(
        self, operand: Tree, index: jax.Array, first: jax.Array, start: jax.Array, stop: jax.Array, part: Any
    ) -> Tree:
        return jax.tree.map(lambda a: a[index], operand)

    def abstract(self) -> tuple[Tree, Tree]:
        def shapes(spec: PartitionSpec, *lead: int) -> Tree:
            sharding = self._sharding(spec)
            arrays = jax.tree.map(
                lambda a: _shape((*lead, *a.shape[1:]), a.dtype, sharding),
                dict(self.data.arrays),
            )
            return arrays | {"mask": _shape(lead, np.dtype(bool), sharding)}

        assert self.max_steps is not None
        train = shapes(self.train_spec, self.max_steps, self.order.num_microbatches, self.order.microbatch_size)
        return train, shapes(self.eval_spec, self.max_steps, self.eval_batch_size)

    def _filled(self, parts: list[Tree], axis: int, columns: np.ndarray, size: int) -> Tree:
        """Join parts to the fixed length of an operand, whose examples are on `axis`: of `size`, this host has some.

        What lies behind the parts is never read.
        """
        length, sharding = self.max_steps, self._sharding(self.train_spec if axis == 2 else self.eval_spec)
        assert length is not None

        def join(*parts: np.ndarray) -> jax.Array:
            operand = np.empty((length, *parts[0].shape[1:]), _device_dtype(parts[0].dtype))
            np.concatenate(parts, out=operand[: sum(map(len, parts))], casting="unsafe")
            if len(columns) == size:
                return _put(operand, sharding, lambda index: operand[index])

            def own(index: tuple[slice, ...]) -> np.ndarray:
                start, stop, _ = index[axis].indices(size)
                held = slice(*np.searchsorted(columns, (start, stop)))
                return operand[(*index[:axis], held, *index[axis + 1 :])]

            shape = (*operand.shape[:axis], size, *operand.shape[axis + 1 :])
            return _put(jax.ShapeDtypeStruct(shape, operand.dtype), sharding, own)

        return jax.tree.map(join, *parts)

    def close(self) -> None:
        self._step, self._blocks, self._rest = None, iter(()), None


def make_feed(
    data: Data,
    order: Order,
    *,
    eval_batch_size: int,
    on_device: bool | None = None,
    device_memory_bytes: int | None = None,
    mesh: Mesh | None = None,
    axes: tuple[str, ...] = (),
) -> AbstractFeed:
    """Choose the feed: on every device if the data takes at most a quarter of its memory, else streamed.

    Args:
        data: what to feed.
        order: batches of the training split; a microbatch divides into as many parts as `axes` make.
        eval_batch_size: examples per evaluation batch; divides likewise.
        on_device: True or False overrides the choice.
        device_memory_bytes: of the devices that it is for. None: of those that are here.
        mesh: the devices, None for the default one.
        axes: of the mesh, along which batches are cut.

    Returns:
        A `DeviceFeed` or a `StreamFeed`.

    """
    if on_device is None:
        on_device = data.nbytes <= (device_memory_bytes or _device_memory_bytes()) // 4
    kind = DeviceFeed if on_device else StreamFeed
    return kind(data, order, eval_batch_size=eval_batch_size, mesh=mesh, axes=axes)


def _eval_rows(start: Any, stop: Any, positions: Any, xp: Any) -> tuple[Any, Any]:
    """Give the rows and the mask at positions of a split; padding repeats the last row."""
    rows = start + positions
    return xp.minimum(rows, stop - 1), rows < stop


def _put(array: Any, sharding: NamedSharding | None, own: Callable[[Any], np.ndarray]) -> jax.Array:
    """Send an array, or what `own` gives of it, to the devices of this host."""
    if sharding is None:
        return jax.device_put(array)
    dtype = _device_dtype(array.dtype)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: own(index).astype(dtype, copy=False))


def _device_memory_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats()
    # The CPU client reports nothing: its memory is the host's, where the data lies already.
    return stats["bytes_limit"] if stats and "bytes_limit" in stats else 16 << 30


def _device_dtype(dtype: np.dtype) -> np.dtype:
    return jax.dtypes.canonicalize_dtype(dtype)


def _shape(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, _device_dtype(dtype), sharding=sharding)


def _gather(arrays: Tree, rows: jax.Array) -> Tree:
    return jax.tree.map(lambda a: take_rows(a, rows), arrays)


def _prefetched(read: Any, start: int, stride: int, buffer_size: int) -> Iterator[Tree]:
    import grain  # imported where it is needed: 0.25 s

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=buffer_size)
    return iter(grain.MapDataset.range(start, 2**31 - 1 - stride, stride).map(read).to_iter_dataset(options))
