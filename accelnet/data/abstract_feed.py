"""What the compiled program asks for batches through, wherever these come from."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from accelnet.data.dataset import Data
from accelnet.data.order import Order

Tree = Any


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


def shape_struct(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
    """Return the shape of an array on the device."""
    return jax.ShapeDtypeStruct(shape, canonicalize_dtype(dtype), sharding=sharding)
