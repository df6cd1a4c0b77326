"""The convolutional network in its classic order."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from accelnet import ops
from accelnet.arguments import flag, integer, sizes, word
from accelnet.errors import UserError
from accelnet.models.initialization import he_normal
from accelnet.models.layers import (
    ConvNorm,
    Convolve,
    check_activation,
    check_convolution,
    check_dropout,
    check_inputs,
    check_rngs,
    make_dropout,
)
from accelnet.models.normalization import Norm, check_norm
from accelnet.models.sharding import SHARDING_RULES


class CNN(nnx.Module):
    """Classify images by stages of convolutions and pooling, then dense layers.

        stage(x) = pool([activation(norm(conv(x)))] * num_convolutions)
        out      = dense(dropout(... activation(dense(dropout(head(stage(... stage(x))))))))

    A separable convolution is depthwise, norm, activation, 1x1, norm, activation; the very first convolution,
    which has few input channels, stays an ordinary one.

    Args:
        image_shape: height, width and channels of the images.
        channels: output channels per stage, first to last.
        out_features: number of outputs.
        kernel_size: height and width of each kernel, in pixels; the padding is "SAME".
        strides: step of each stage's first convolution: one integer, or one per stage.
        num_convolutions: convolutions per stage.
        separable: whether convolutions are depthwise-separable.
        norm: None, "batch", "layer" (over the channels of each pixel) or "group".
        activation: elementwise nonlinearity.
        pooling: "max", "average" or None, over 2x2 pixels.
        head: "flatten", or "average" over all pixels (then any image size fits).
        dense_features: widths of the dense layers before the output; may be empty.
        dropout: rate of dropout before each dense layer, in [0, 1).
        conv_general_dilated: the convolution, with the arguments of jax.lax.conv_general_dilated.
        rngs: source of keys (streams `params` and `dropout`).

    Raises:
        UserError: for an image too small for the stages, or an argument out of range.

    Example:
        >>> model = CNN((28, 28, 1), [4, 8], 10, dense_features=[16], rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 28, 28, 1))).shape
        (2, 10)

    Source: LeCun et al. 1998, section II; separable: Howard et al. 2017, figure 3.
    """

    sharding_rules = SHARDING_RULES

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: Sequence[int],
        out_features: int,
        *,
        kernel_size: int = 3,
        strides: int | Sequence[int] = 1,
        num_convolutions: int = 1,
        separable: bool = False,
        norm: Norm = None,
        activation: Callable[[Array], Array] = nnx.relu,
        pooling: Literal["max", "average"] | None = "max",
        head: Literal["flatten", "average"] = "flatten",
        dense_features: Sequence[int] = (128,),
        dropout: float = 0.0,
        conv_general_dilated: Convolve = ops.conv_general_dilated,
        rngs: nnx.Rngs,
    ) -> None:
        sizes("channels", channels)
        one_step = isinstance(strides, int) or not isinstance(strides, Sequence) or isinstance(strides, str)
        steps = [integer("strides", strides, 1)] * len(channels) if one_step else sizes("strides", strides)
        _check_sizes(image_shape, channels, steps)
        for name, size in {"out_features": out_features, "kernel_size": kernel_size}.items():
            integer(name, size, low=1)
        integer("num_convolutions", num_convolutions, low=1)
        sizes("dense_features", dense_features)
        word("head", head, ("flatten", "average"))
        if pooling is not None:
            word("pooling", pooling, ("max", "average"))
        flag("separable", separable)
        check_activation(activation)
        check_convolution(conv_general_dilated)
        check_norm(norm)
        check_dropout(dropout)
        check_rngs(rngs)
        self.image_shape, self.head = tuple(image_shape), head
        common = {"norm": norm, "activation": activation, "conv_general_dilated": conv_general_dilated, "rngs": rngs}
        stages, shape = [], tuple(image_shape)
        for index, (features, step) in enumerate(zip(channels, steps, strict=True)):
            layers = []
            for i in range(num_convolutions):
                width, stride = (shape[-1], step) if i == 0 else (features, 1)
                kind = _Separable if separable and (index, i) != (0, 0) else ConvNorm
                layers.append(kind(width, features, kernel_size, strides=stride, **common))
            height, width = (-(-side // step) // (1 if pooling is None else 2) for side in shape[:2])
            if 0 in (height, width):
                raise UserError(
                    f"image_shape {tuple(image_shape)} is too small: stage {index + 1} of {len(channels)} "
                    f"gets {shape[0]}x{shape[1]} pixels, too few to pool; use fewer stages or pooling=None"
                )
            shape = height, width, features
            stages.append(_Stage(layers, pooling))
        self.stages = nnx.List(stages)
        flat = shape[-1] if head == "average" else math.prod(shape)
        widths = [flat, *dense_features]
        linear = partial(nnx.Linear, dot_general=ops.dot_general, rngs=rngs)
        self.dense = nnx.List([linear(a, b, kernel_init=he_normal) for a, b in pairwise(widths)])
        self.activation = activation
        self.dropout = make_dropout(dropout, rngs)
        self.output = linear(widths[-1], out_features)

    def __call__(self, inputs: Array) -> Array:
        """Compute outputs [B, out_features] of images, float [B, H, W, C]."""
        axes = slice(1, None) if self.head == "flatten" else slice(3, None)

        def fits(shape: tuple[int, ...]) -> bool:
            return len(shape) == 4 and shape[axes] == (0, *self.image_shape)[axes]

        sides = self.image_shape[:2] if self.head == "flatten" else ("height", "width")
        expected = f"images [batch, {sides[0]}, {sides[1]}, {self.image_shape[2]}]: reshape the data"
        check_inputs(inputs, fits, expected)
        x = inputs
        for stage in self.stages:
            x = stage(x)
        x = jnp.mean(x, axis=(1, 2)) if self.head == "average" else x.reshape(x.shape[0], -1)
        for layer in self.dense:
            x = self.activation(layer(self.dropout(x)))
        return self.output(self.dropout(x))


class _Separable(nnx.Module):
    """A depthwise convolution, then a 1x1 convolution, each with norm and activation."""

    def __init__(self, in_features: int, out_features: int, kernel_size: int, *, strides: int, **common: Any) -> None:
        self.depthwise = ConvNorm(in_features, in_features, kernel_size, strides=strides, groups=in_features, **common)
        self.pointwise = ConvNorm(in_features, out_features, 1, **common)

    def __call__(self, x: Array) -> Array:
        return self.pointwise(self.depthwise(x))


class _Stage(nnx.Module):
    def __init__(self, layers: list[Any], pooling: str | None) -> None:
        self.layers = nnx.List(layers)
        self.pooling = pooling

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        if self.pooling is not None:
            pool = ops.max_pool if self.pooling == "max" else ops.avg_pool
            x = pool(x, (2, 2), (2, 2))
        return checkpoint_name(x, "block")


def _check_sizes(image_shape: Sequence[int], channels: Sequence[int], strides: Sequence[int]) -> None:
    if len(sizes("image_shape", image_shape)) != 3:
        raise UserError(f"image_shape is {tuple(image_shape)}, expected (height, width, channels)")
    if not channels or len(strides) != len(channels):
        raise UserError(f"strides {tuple(strides)} and channels {tuple(channels)}: expected one of each per stage")
