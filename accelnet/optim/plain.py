"""A state of plain arrays: strong types, and keys as their words."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.errors import UserError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyData:
    """A key of `jax.random.key` in a state of plain arrays.

    Attributes:
        data: Words of the key, uint32 [..., words].
        impl: Name of its generator.
    """

    data: jax.Array
    impl: str = field(metadata={"static": True})


def plain(state: Any) -> Any:
    """Return a state in which every leaf is an array of a strong type, and no key.

    Example:
        >>> plain({"rate": 0.5, "key": jax.random.key(7)})["key"].data.tolist()
        [0, 7]
    """
    return jax.tree_util.tree_map_with_path(_plain, state)


def with_keys(state: Any) -> Any:
    """Return the state with the keys that `plain` took apart.

    Example:
        >>> with_keys(plain(jax.random.key(7))) == jax.random.key(7)
        Array(True, dtype=bool)
    """

    def restore(node: Any) -> Any:
        return jax.random.wrap_key_data(node.data, impl=node.impl) if isinstance(node, KeyData) else node

    return jax.tree.map(restore, state, is_leaf=lambda node: isinstance(node, KeyData))


def shapes(tree: Any) -> Any:
    """Return the shapes and dtypes of a pytree of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def check_shapes(before: Any, after: Any) -> None:
    """Refuse a state that no loop can carry, since an update gives it another structure or other shapes."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise UserError(
            "the optimizer's update returns a state of another structure than its init, so no loop can carry it: "
            f"{jax.tree.structure(before)} becomes {jax.tree.structure(after)}"
        )
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        if old.shape != new.shape:
            raise UserError(
                f"the optimizer's update turns {jax.tree_util.keystr(path)} of its state from shape {old.shape} into "
                f"{new.shape}, so no loop can carry it"
            )


def _plain(path: Any, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return KeyData(jax.random.key_data(leaf), str(jax.random.key_impl(leaf)))
    if isinstance(leaf, jax.Array) and not leaf.weak_type:
        return leaf
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        raise UserError(
            f"the optimizer's state holds {leaf!r:.80} at {jax.tree_util.keystr(path) or 'its root'}, expected arrays "
            "and numbers only"
        )
    return jnp.asarray(leaf, jnp.result_type(leaf))
