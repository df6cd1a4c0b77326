"""Random changes of training batches, inside the compiled step: what they have in common.

Each is a function (key, batch) -> batch. It may ask for more by name, as a loss does: `step`, `progress`, `num_classes`
of the data and the `task` of the objective.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.errors import UserError
from accelnet.signature import call
from accelnet.wording import shown

Augment = Callable[..., Any]


def compose(*augments: Augment) -> Augment:
    """Make an augmentation that applies others one after the other, each with a key of its own.

    Args:
        augments: (key, batch) -> batch each, in the order of their use.

    Returns:
        (key, batch) -> batch.

    Raises:
        UserError: if one is no function.

    Example:
        >>> from accelnet.data import random_crop, random_flip
        >>> augment = jax.jit(compose(random_crop(2), random_flip()))
        >>> augment(jax.random.key(0), {"inputs": jnp.ones((2, 8, 8, 1))})["inputs"].shape
        (2, 8, 8, 1)
    """
    for one in augments:
        if not callable(one):
            raise UserError(f"compose was given {shown(one)}, expected functions (key, batch), such as random_flip()")

    def augment(
        key: jax.Array, batch: Any, *, step: Any = None, progress: Any = None, num_classes: Any = None, task: Any = None
    ) -> Any:
        offered = {"step": step, "progress": progress, "num_classes": num_classes, "task": task}
        offered = {name: value for name, value in offered.items() if value is not None}
        for index, one in enumerate(augments):
            batch = call("augment", one, jax.random.fold_in(key, index), batch, **offered)
        return batch

    return augment


def images_of(batch: Any) -> jax.Array:
    """Return the inputs, [B, height, width, channels]; what are no images raises `UserError`."""
    images = batch["inputs"]
    shape = getattr(images, "shape", None)
    if shape is None or len(shape) != 4:
        came = f"of shape {tuple(shape)}" if shape is not None else f"a {type(images).__name__}"
        raise UserError(f"inputs are {came}, expected images [batch, height, width, channels]: set augment=None")
    return jnp.asarray(images)


def floats_of(inputs: Any, expected: str) -> jax.Array:
    """Return inputs that are an array of floats; another thing raises `UserError`, which says what is expected."""
    if isinstance(inputs, Mapping) or not hasattr(inputs, "dtype"):
        raise UserError(f"inputs are a {type(inputs).__name__}, expected {expected}: set augment=None")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise UserError(f"inputs are {inputs.dtype}, expected {expected}: let the data's prepare cast them")
    return jnp.asarray(inputs)


def bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw uint32, each of which depends on the key and its position, not on the first axis' length.

    One call of the generator for all examples: a key per example took two to four times as long to compile.
    """
    # The default of jax, spelled out because the promise rests on it.
    with jax.threefry_partitionable(True):
        return jax.random.bits(key, shape, jnp.uint32)


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw float32 in [0, 1), multiples of 2**-24, each by the key and its position as in `bits`."""
    return (bits(key, shape) >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def whole_number(share: jax.Array, count: Any) -> jax.Array:
    """Return int32 in [0, count) of draws in [0, 1).

    Example:
        >>> whole_number(jnp.array([0.0, 0.49, 0.99]), 4).tolist()
        [0, 1, 3]
    """
    return jnp.floor(share * jnp.asarray(count, jnp.float32)).astype(jnp.int32)
