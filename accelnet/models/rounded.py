"""Layers that compute as those of 8 or 4 bits do, and are trained: their weights are floats that the call rounds.

A rounding has no derivative, and is given that of the identity (straight-through).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from accelnet.errors import UserError
from accelnet.models.quantized import kernels_of
from accelnet.models.recurrent_layer import Recurrence
from accelnet.ops.quantized import MOST, nearest, round_rows

_KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, Recurrence)


def rounded(layer: Any, bits: int) -> Any:
    """Let a layer round its kernels and its inputs whenever it is called; its parameters stay what they are.

    The stored form of its weights, `quantized(layer, bits)`, computes the same, but that a recurrent layer's state is
    not rounded here.

    Args:
        layer: `nnx.Linear`, `nnx.LinearGeneral` over the last axes, `nnx.Conv` of one group, or `Recurrence`.
        bits: 8 or 4.

    Raises:
        UserError: for another layer, or other bits.

    Example:
        >>> layer = rounded(nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0)), 4)
        >>> layer.kernel[...] = jnp.array([[7.0, 1.0], [2.2, 0.0], [0.0, -0.6]])
        >>> (layer(jnp.eye(3)) * 7).round().tolist()
        [[49.0, 7.0], [14.0, 0.0], [0.0, -4.0]]
    """
    kind = next((kind for kind in _KINDS if isinstance(layer, kind)), None)
    if kind is None or not kernels_of(layer):
        raise UserError(
            f"a {type(layer).__name__} cannot be trained with rounded weights: nnx.Linear, nnx.LinearGeneral over the "
            "last axes, nnx.Conv (one group, zeros around, at least 8 channels) and accelnet's recurrent layers can"
        )
    if bits not in MOST:
        raise UserError(f"bits is {bits!r}, expected 8 or 4")
    object.__setattr__(layer, "__class__", _rounding(type(layer), bits, isinstance(layer, nnx.Conv)))
    return layer


@functools.cache
def _rounding(kind: type, bits: int, images: bool) -> type:
    @functools.wraps(kind.__call__)  # the signature, by which a call is given what it names
    def call(self: Any, inputs: Array, *args: Any, **kwargs: Any) -> Any:
        axes = len(self.kernel_size) + 1 if images else len(self.axis) if isinstance(self, nnx.LinearGeneral) else 1
        with _rounded_kernels(self, bits):
            return kind.__call__(self, _rounded_rows(inputs, axes), *args, **kwargs)

    return type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _rounded_rows(x: Array, axes: int) -> Array:
    """Round what lies along the last axes together."""
    rows = x.reshape(*x.shape[: x.ndim - axes], -1).astype(jnp.float32)
    whole, scale = round_rows(lax.stop_gradient(rows))
    return x + lax.stop_gradient((whole * scale - rows).reshape(x.shape).astype(x.dtype))


@contextmanager
def _rounded_kernels(layer: Any, bits: int) -> Iterator[None]:
    """Put rounded kernels in the place of a layer's own."""
    own: dict[str, Callable[[], None]] = {}
    try:
        for name, matrix in kernels_of(layer).items():
            variable = getattr(layer, name)
            kernel = variable[...]
            own[name] = functools.partial(variable.set_value, kernel)
            whole, scale = nearest(lax.stop_gradient(matrix), bits)
            change = whole.astype(jnp.float32) * scale[None, :] - lax.stop_gradient(matrix).astype(jnp.float32)
            variable.set_value(kernel + change.reshape(kernel.shape).astype(kernel.dtype))
        yield
    finally:
        for restore in own.values():
            restore()
