"""The choice of a normalization by name."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from accelnet.arguments import word
from accelnet.models.batch_statistics import counted, moved, statistics

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


class BatchNorm(nnx.BatchNorm):
    """Flax's batch normalization with fewer passes over the activations.

    With a = scale / sqrt(variance + epsilon) and b = bias - mean * a per channel,

        out = x * a + b

    so that the backward pass is two sums per channel and one pass, gradient * a + x * c + d, and what it keeps is x.
    Flax's form subtracts the mean first, and XLA writes four arrays of the activations' size: with it a step of the
    benchmark's `separable_cnn` took 1.13 times as long (in turns, two cores, AMD EPYC). The two differ by rounding,
    relative to the mean.

    Args: those of `flax.nnx.BatchNorm`, whose variables it has, but for `axis` and `axis_index_groups`: the channels
        are the last axis, and statistics those of all examples but padding, on all devices.

    Example:
        >>> layer = BatchNorm(1, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0], [3.0]])).round(2).tolist()
        [[-1.0], [1.0]]
        >>> layer(jnp.array([[1.0], [3.0], [9.0]]), mask=jnp.array([[True], [True], [False]])).round(2).tolist()
        [[-1.0], [1.0], [7.0]]

    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        """Normalize `x`, [B, ..., num_features], in float32.

        Args:
            x: Activations of any float dtype.
            use_running_average: Whether to normalize by the running averages. None: as the mode of the module says.
            mask: bool that broadcasts to `x`, such as [B, steps, 1] of series of unequal lengths: False where the
                statistics leave out what is there. Padding is left out anyway.
        """
        average = self.use_running_average if use_running_average is None else use_running_average
        x = x.astype(jnp.float32)
        mean, variance = self.mean[...], self.var[...]
        if not average:
            axes = range(x.ndim - 1)
            new = statistics(x, axes, counted(x, mask, axes), self.axis_name)
            (mean, variance), after = moved(self.momentum, (mean, variance), new)
            self.mean[...], self.var[...] = after
        a = jax.lax.rsqrt(variance + self.epsilon)
        a = a if self.scale is None else a * self.scale[...]
        b = -mean * a if self.bias is None else self.bias[...] - mean * a
        whole = (1,) * (x.ndim - 1) + (-1,)
        return x * a.reshape(whole) + b.reshape(whole)
