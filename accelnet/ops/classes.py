"""What follows from the scores of classes, as layers of a chain where a program has one."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from accelnet.ops import kernels


def softmax(scores: Array) -> Array:
    """Return probabilities of scores [..., classes], `jax.nn.softmax(scores, axis=-1)`.

    Example:
        >>> softmax(jnp.array([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    return kernels.call(_SOFTMAX, scores)[0]


def argmax(scores: Array) -> Array:
    """Return the first of the largest scores [..., classes], `jnp.argmax(scores, axis=-1)` in int32.

    Example:
        >>> argmax(jnp.array([[0.0, 2.0, 1.0]])).tolist()
        [1]
    """
    return kernels.call(_ARGMAX, scores)[0]


def _first_largest(scores: Array) -> Array:
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


_SOFTMAX = kernels.Kernel("accelnet_softmax", (), kernels.Meaning(functools.partial(jax.nn.softmax, axis=-1)))
_ARGMAX = kernels.Kernel("accelnet_argmax", (), kernels.Meaning(_first_largest))
