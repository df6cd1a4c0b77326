"""The parts of a batch, each on devices of its own, and the collectives between them.

A part is treated as a microbatch that is computed elsewhere: every device takes the gradient of its own examples, and
one exchange per step adds them up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

Tree = Any

# The placement of what is the same on every device.
SAME = PartitionSpec()


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a batch. A function that runs on one of them calls all methods but `map`.

    Args:
        axes: the mesh's axes along which a batch is cut.
        count: number of parts that they make.
        mesh: mesh of `map`; None under pmap, which maps by itself, and without devices to share a batch.

    Example:
        >>> alone = Parts((), 1, None)
        >>> alone.index(), float(alone.total(jnp.float32(2)))
        (0, 2.0)
    """

    axes: tuple[str, ...]
    count: int
    mesh: Mesh | None

    def index(self) -> Any:
        """Return which part of the batch this device has, an int32 scalar."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Run a function on every part of a batch at once.

        Args:
            function: function of what one device sees.
            in_specs: `PartitionSpec`s of its arguments along the batch axes, as of `jax.shard_map`.
            out_specs: those of its results; what is whole must be the same on every device.

        Returns:
            The function of whole arrays. Under pmap, and where there is one part, `function` itself.
        """
        if not self.axes or self.mesh is None:
            return function
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axes),
            check_vma=False,  # accelnet's operations with gradients of their own do not track it
        )

    def gather(self, params: Tree, cuts: Tree) -> Tree:
        """Collect the parameters from the devices that they are cut over: one all-gather each."""

        def collect(array: jax.Array, cut: PartitionSpec) -> jax.Array:
            for axis, name in enumerate(cut):
                if name is not None:
                    array = jax.lax.all_gather(array, name, axis=axis, tiled=True)
            return array

        return jax.tree.map(collect, params, cuts)

    def total(self, tree: Tree, cuts: Tree = None) -> Tree:
        """Add up arrays over the parts: an all-reduce, or a reduce-scatter where the result is cut."""
        if not self.axes:
            return tree
        if cuts is None:
            return jax.lax.psum(tree, self.axes)
        kept, scattered = [], {}
        leaves, structure = jax.tree.flatten(tree)
        for index, (leaf, cut) in enumerate(zip(leaves, structure.flatten_up_to(cuts), strict=True)):
            axis = next((i for i, name in enumerate(cut) if name is not None), None)
            if axis is None:
                kept.append(index)
                continue
            leaf = jax.lax.psum_scatter(leaf, cut[axis], scatter_dimension=axis, tiled=True)
            others = tuple(name for name in self.axes if name != cut[axis])
            scattered[index] = jax.lax.psum(leaf, others) if others else leaf
        # One call for all: XLA makes one all-reduce of it.
        summed = dict(zip(kept, jax.lax.psum([leaves[i] for i in kept], self.axes), strict=True))
        return structure.unflatten([(summed | scattered)[i] for i in range(len(leaves))])

    def agreed(self, tree: Tree) -> Tree:
        """Make a model's state the same on every device: the mean of numbers, the largest of integers."""
        if not self.axes:
            return tree

        def agree(array: jax.Array) -> jax.Array:
            if jnp.issubdtype(array.dtype, jnp.floating):
                return jax.lax.pmean(array, self.axes)
            return jax.lax.pmax(array.astype(jnp.int32), self.axes).astype(array.dtype)

        return jax.tree.map(agree, tree)

    def merged(self, tree: Tree, merge: Callable[[Tree, Tree], Tree], empty: Tree) -> Tree:
        """Merge what every part has seen, in the order of the parts."""
        if not self.axes:
            return tree
        parts = jax.lax.all_gather(tree, self.axes)

        def add(index: jax.Array, seen: Tree) -> Tree:
            return merge(seen, jax.tree.map(lambda a: a[index], parts))

        return jax.lax.fori_loop(0, self.count, add, empty)
