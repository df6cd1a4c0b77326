"""The choice of a normalization by name."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from accelnet.arguments import word

Norm = Literal["batch", "layer", "group"] | None


def check_norm(norm: Any) -> None:
    """Refuse what is no normalization's name, nor None."""
    if norm is not None:
        word("norm", norm, ("batch", "layer", "group"))


class Normalization(nnx.Module):
    """Normalize activations by batch, layer or group statistics, and keep their dtype.

        out = scale * (x - mean) / sqrt(variance + 1e-5) + bias

    Statistics are computed in float32, whatever the activations' dtype.

    Args:
        norm: "batch" (running statistics of momentum 0.9 in evaluation), "layer" (over the channels of each
            example or pixel) or "group" (over the pixels and channels of gcd(8, num_features) groups).
        num_features: number of channels, the last axis.
        rngs: source of keys.

    Raises:
        UserError: for another norm.

    Example:
        >>> layer = Normalization("layer", 2, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0, 3.0]])).round(2).tolist()
        [[-1.0, 1.0]]

    Source: Ioffe & Szegedy 2015, algorithm 1; Ba et al. 2016, equation 4; Wu & He 2018, section 3.1.
    """

    def __init__(self, norm: Norm, num_features: int, *, rngs: nnx.Rngs) -> None:
        word("norm", norm, ("batch", "layer", "group"))
        if norm == "batch":
            self.layer = BatchNorm(num_features, momentum=0.9, rngs=rngs)
        elif norm == "layer":
            self.layer = nnx.LayerNorm(num_features, epsilon=1e-5, rngs=rngs)
        else:
            groups = math.gcd(8, num_features)
            self.layer = nnx.GroupNorm(num_features, groups, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Normalize `x`, [B, ..., num_features], to the same shape and dtype."""
        return self.layer(x).astype(x.dtype)


_mask: ContextVar[Array | None] = ContextVar("mask", default=None)


@contextmanager
def without_padding(mask: Array | None) -> Iterator[None]:
    """Let the batch normalizations that are called inside leave out the examples where `mask`, bool[B], is False."""
    token = _mask.set(mask)
    try:
        yield
    finally:
        _mask.reset(token)


def _moments(x: Array, mask: Array | None, axis_name: Any) -> Array:
    """Return the means of x, [B, ..., C], and of its square over all axes but the last, [2, C]."""
    axes = tuple(range(x.ndim - 1))
    if mask is not None and len(mask) != len(x):
        mask = None  # the first axis is not that of the examples
    if mask is not None:
        x = jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0.0)
    moments = jnp.stack([x.mean(axes), jnp.square(x).mean(axes)])
    if axis_name is not None:
        moments = jax.lax.pmean(moments, axis_name)
    if mask is None:
        return moments
    share = jnp.mean(mask, dtype=jnp.float32)  # exactly 1 where no example is padding: the bits of no mask
    if axis_name is not None:
        share = jax.lax.pmean(share, axis_name)
    return moments / jnp.where(share > 0, share, 1.0)


class BatchNorm(nnx.BatchNorm):
    """Flax's batch normalization with fewer passes over the activations.

    With a = scale / sqrt(variance + epsilon) and b = bias - mean * a per channel,

        out = x * a + b

    so that the backward pass is two sums per channel and one pass, gradient * a + x * c + d, and what it keeps is x.
    Flax's form subtracts the mean first, and XLA writes four arrays of the activations' size: with it a step of the
    benchmark's `separable_cnn` took 1.13 times as long (in turns, two cores, AMD EPYC). The two differ by rounding,
    relative to the mean.

    Args: those of `flax.nnx.BatchNorm`, whose variables it has; the channels are the last axis, and statistics those of
        all examples but padding (see `without_padding`): no `mask`, no `axis_index_groups`.

    Example:
        >>> layer = BatchNorm(1, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0], [3.0]])).round(2).tolist()
        [[-1.0], [1.0]]

    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalize `x`, [B, ..., num_features], in float32."""
        average = self.use_running_average if use_running_average is None else use_running_average
        x = x.astype(jnp.float32)
        if average:
            mean, variance = self.mean[...], self.var[...]
        else:
            moments = _moments(x, _mask.get(), self.axis_name)
            mean = moments[0]
            variance = jnp.maximum(moments[1] - jnp.square(mean), 0.0)
            for kept, new in ((self.mean, mean), (self.var, variance)):
                kept[...] = jax.lax.stop_gradient(self.momentum * kept[...] + (1 - self.momentum) * new)
        a = jax.lax.rsqrt(variance + self.epsilon)
        a = a if self.scale is None else a * self.scale[...]
        b = -mean * a if self.bias is None else self.bias[...] - mean * a
        whole = (1,) * (x.ndim - 1) + (-1,)
        return x * a.reshape(whole) + b.reshape(whole)
