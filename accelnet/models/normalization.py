"""The choice of a normalization by name."""

import math
from typing import Literal

from flax import nnx
from jax import Array

from accelnet.errors import UserError

Norm = Literal["batch", "layer", "group"] | None


class Normalization(nnx.Module):
    """Normalize activations by batch, layer or group statistics, and keep their dtype.

        out = scale * (x - mean) / sqrt(variance + 1e-5) + bias

    flax's BatchNorm holds float32 statistics, which would promote bfloat16 activations to float32; statistics
    are computed in float32 all the same.

    Args:
        norm: "batch" (running statistics of momentum 0.9 in evaluation), "layer" (over the channels of each
            example or pixel) or "group" (over the pixels and channels of gcd(8, num_features) groups).
        num_features: number of channels, the last axis.
        rngs: source of keys.

    Raises:
        UserError: for another norm.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = Normalization("layer", 2, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0, 3.0]])).round(2).tolist()
        [[-1.0, 1.0]]

    Source: Ioffe & Szegedy 2015, algorithm 1; Ba et al. 2016, equation 4; Wu & He 2018, section 3.1.
    """

    def __init__(self, norm: Norm, num_features: int, *, rngs: nnx.Rngs) -> None:
        if norm == "batch":
            self.layer = nnx.BatchNorm(num_features, momentum=0.9, rngs=rngs)
        elif norm == "layer":
            self.layer = nnx.LayerNorm(num_features, epsilon=1e-5, rngs=rngs)
        elif norm == "group":
            groups = math.gcd(8, num_features)
            self.layer = nnx.GroupNorm(num_features, groups, epsilon=1e-5, rngs=rngs)
        else:
            raise UserError(f'norm is {norm!r}, expected "batch", "layer", "group" or None')

    def __call__(self, x: Array) -> Array:
        """Normalize `x`, [B, ..., num_features], to the same shape and dtype."""
        return self.layer(x).astype(x.dtype)
