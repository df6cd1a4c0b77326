"""The residual network for small images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from accelnet import ops
from accelnet.arguments import flag, integer, sizes, word
from accelnet.errors import UserError
from accelnet.models.layers import ConvNorm, Convolve, check_convolution, check_inputs, check_rngs
from accelnet.models.sharding import SHARDING_RULES


class ResNet(nnx.Module):
    """Classify images with the residual network known from CIFAR, of depth 6n + 2.

        stem -> 3 stages of n blocks -> average over all pixels -> dense
        block(x) = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))

    Convolutions are 3x3; the first block of stages 2 and 3 halves the image.

    Args:
        in_features: number of channels of the images.
        depth: number of layers with weights: 8, 14, 20, 32, 44, 56, 110, ...
        out_features: number of classes.
        widths: channels of the three stages.
        norm: "batch" (the paper's), "layer" or "group".
        shortcut: where the shape changes, "identity" (every second pixel, channels padded with zeros: the
            paper's option A) or "projection" (a 1x1 convolution and a norm: option B).
        shared: whether the blocks after the first of each stage are one block applied repeatedly, its running
            statistics included. Needs depth 14 or more.
        conv_general_dilated: the convolution, with the arguments of jax.lax.conv_general_dilated.
        rngs: source of keys (stream `params`).

    Raises:
        UserError: for another depth, or an unknown choice.

    Example:
        >>> model = ResNet(3, 8, 10, widths=(4, 8, 16), rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 32, 32, 3))).shape
        (2, 10)

    Source: He et al. 2015, section 4.2.
    """

    sharding_rules = SHARDING_RULES

    def __init__(
        self,
        in_features: int,
        depth: int,
        out_features: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        norm: Literal["batch", "layer", "group"] = "batch",
        shortcut: Literal["identity", "projection"] = "identity",
        shared: bool = False,
        conv_general_dilated: Convolve = ops.conv_general_dilated,
        rngs: nnx.Rngs,
    ) -> None:
        for name, size in {"in_features": in_features, "depth": depth, "out_features": out_features}.items():
            integer(name, size, low=1)
        if depth < 8 or (depth - 2) % 6:
            near = max(8, depth - (depth - 2) % 6)
            raise UserError(f"depth is {depth}, expected 6n + 2 with n >= 1: the nearest are {near} and {near + 6}")
        num_blocks = (depth - 2) // 6
        if len(sizes("widths", widths)) != 3:
            raise UserError(f"widths are {tuple(widths)}, expected three, one per stage")
        word("norm", norm, ("batch", "layer", "group"))
        word("shortcut", shortcut, ("identity", "projection"))
        flag("shared", shared)
        check_convolution(conv_general_dilated)
        check_rngs(rngs)
        if shortcut == "identity" and list(widths) != sorted(widths):
            raise UserError(
                f'widths are {tuple(widths)}: shortcut="identity" pads channels, so widths must not shrink; '
                'order them or pass shortcut="projection"'
            )
        if shared and num_blocks < 2:
            raise UserError(
                f"shared=True with depth {depth}: one block per stage leaves nothing to share; use 14 or more"
            )
        layer = partial(ConvNorm, norm=norm, conv_general_dilated=conv_general_dilated, rngs=rngs)
        self.stem = layer(in_features, widths[0], 3)
        blocks = []
        for stage, width in enumerate(widths):
            for i in range(2 if shared else num_blocks):
                features = widths[max(0, stage - 1)] if i == 0 else width
                strides = 2 if stage > 0 and i == 0 else 1
                blocks.append(_Block(layer, features, width, strides, shortcut))
        self.blocks = nnx.List(blocks)
        self.repeats = num_blocks - 1 if shared else 1
        self.head = nnx.Linear(widths[-1], out_features, dot_general=ops.dot_general, rngs=rngs)

    def __call__(self, inputs: Array) -> Array:
        """Compute outputs [B, out_features] of images, float [B, H, W, in_features]."""
        channels = self.stem.conv.in_features
        expected = f"images [batch, height, width, {channels}]: reshape the data"
        check_inputs(inputs, lambda shape: len(shape) == 4 and shape[3] == channels, expected)
        x = nnx.relu(self.stem(inputs))
        for i, block in enumerate(self.blocks):
            for _ in range(self.repeats if i % 2 else 1):
                x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


class _Block(nnx.Module):
    def __init__(
        self, layer: Callable[..., ConvNorm], in_features: int, out_features: int, strides: int, shortcut: str
    ) -> None:
        self.first = layer(in_features, out_features, 3, strides=strides)
        self.second = layer(out_features, out_features, 3)
        projects = shortcut == "projection" and (strides > 1 or in_features != out_features)
        self.projection = layer(in_features, out_features, 1, strides=strides) if projects else None
        self.strides = strides
        self.extra_features = out_features - in_features

    def __call__(self, inputs: Array) -> Array:
        x = self.second(nnx.relu(self.first(inputs)))
        if self.projection is not None:
            skip = self.projection(inputs)
        else:
            skip = lax.slice(inputs, (0, 0, 0, 0), inputs.shape, (1, self.strides, self.strides, 1))
            skip = jnp.pad(skip, ((0, 0), (0, 0), (0, 0), (0, self.extra_features)))
        return checkpoint_name(nnx.relu(x + skip), "block")
