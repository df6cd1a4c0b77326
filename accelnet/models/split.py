"""Layers of low rank: two products in the place of one."""

import math
from collections.abc import Sequence
from typing import Any

from flax import nnx
from flax.nnx.nn.linear import canonicalize_padding
from jax import Array
from jax.sharding import PartitionSpec

from accelnet.arguments import integer
from accelnet.errors import UserError
from accelnet.models.recurrent_layer import Recurrence
from accelnet.models.split_recurrence import SplitRecurrence, settings_of

_SHARED = ("dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type")


class SplitLinear(nnx.Module):
    """Multiply features by a matrix of low rank: `y = (x D) U + b`.

    Args:
        in_features: Number of features of the inputs; a tuple for inputs of several axes.
        out_features: Number of outputs; a tuple for outputs of several axes.
        rank: Numbers between the two products.
        use_bias: Whether there is a bias.
        rngs: Source of keys (stream `params`).
        **settings: What both products take of `nnx.Linear`'s: `dtype`, `param_dtype`, `precision`, `dot_general`,
            `promote_dtype`, `preferred_element_type`.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = SplitLinear(64, 32, 8, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 64))).shape, layer.down.kernel.shape, layer.up.kernel.shape
        ((5, 32), (64, 8), (8, 32))

    Source: Denil et al., "Predicting parameters in deep learning", 2013, section 2.
    """

    # Cut by columns and by rows in turn: between the two nothing has to be exchanged.
    sharding_rules = (
        (r"down\.kernel", PartitionSpec(None, "model")),
        (r"up\.kernel", PartitionSpec("model", None)),
    )

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        rank: int,
        *,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **settings: Any,
    ) -> None:
        self.in_features, self.out_features, self.use_bias = in_features, out_features, use_bias
        self.in_shape, self.out_shape = _shape(in_features), _shape(out_features)
        self.rank = integer("rank", rank, 1)
        self.down = nnx.Linear(math.prod(self.in_shape), rank, use_bias=False, rngs=rngs, **settings)
        self.up = nnx.Linear(rank, math.prod(self.out_shape), use_bias=use_bias, rngs=rngs, **settings)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Compute outputs [..., out_features] of inputs [..., in_features]."""
        outside = inputs.shape[: inputs.ndim - len(self.in_shape)]
        flat = self.up(self.down(inputs.reshape(*outside, math.prod(self.in_shape))), out_sharding=out_sharding)
        return flat.reshape(*outside, *self.out_shape)


class SplitConv(nnx.Module):
    """Convolve images with kernels of low rank: to few channels, whose mixtures are the outputs.

    Where it costs less for each channel in between, the kernels of images are separated: columns to few channels, then
    rows of these. Else the first convolution has the whole window, and the second one is of single pixels.

    Args:
        in_features: Channels of the images.
        out_features: Channels of the outputs.
        kernel_size: Size of each kernel, in pixels of each spatial axis.
        rank: Channels between the two convolutions.
        strides: As of `nnx.Conv`, and so are `padding`, `input_dilation` and `kernel_dilation`.
        padding: As above.
        input_dilation: As above.
        kernel_dilation: As above.
        use_bias: Whether there is a bias.
        rngs: Source of keys (stream `params`).
        **settings: What both convolutions take of `nnx.Conv`'s: `dtype`, `param_dtype`, `precision`,
            `conv_general_dilated`, `promote_dtype`, `preferred_element_type`.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = SplitConv(16, 32, (3, 3), 8, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 6, 6, 16))).shape, layer.down.kernel.shape, layer.up.kernel.shape
        ((2, 6, 6, 32), (3, 1, 16, 8), (1, 3, 8, 32))
        >>> SplitConv(1, 32, (3, 3), 4, rngs=nnx.Rngs(0)).up.kernel.shape
        (1, 1, 4, 32)

    Source: Jaderberg, Vedaldi and Zisserman, "Speeding up convolutional neural networks with low rank expansions",
    2014, scheme 2; Zhang et al., "Accelerating very deep convolutional networks for classification and detection",
    2015, section 2.1, for the other.
    """

    sharding_rules = (
        (r"down\.kernel", PartitionSpec(None, None, None, "model")),
        (r"up\.kernel", PartitionSpec(None, None, "model", None)),
    )

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        rank: int,
        strides: Any = 1,
        *,
        padding: Any = "SAME",
        input_dilation: Any = 1,
        kernel_dilation: Any = 1,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **settings: Any,
    ) -> None:
        self.in_features, self.out_features, self.use_bias = in_features, out_features, use_bias
        self.rank = integer("rank", rank, 1)
        sizes = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        down = {"kernel_size": sizes, "strides": strides, "padding": padding, "kernel_dilation": kernel_dilation}
        up: dict[str, Any] = {"kernel_size": (1,) * len(sizes)}
        if _is_separated(in_features, out_features, sizes, strides, input_dilation):
            along = {"kernel_size": sizes, "strides": strides, "kernel_dilation": kernel_dilation}
            halves = [{name: _along(axis, value) for name, value in along.items()} for axis in (0, 1)]
            pads = canonicalize_padding(padding, 2)
            both = (pads, pads) if isinstance(pads, str) else ((pads[0], (0, 0)), ((0, 0), pads[1]))
            down, up = ({**half, "padding": pad} for half, pad in zip(halves, both, strict=True))
        down["input_dilation"] = input_dilation
        self.down = nnx.Conv(in_features, rank, use_bias=False, rngs=rngs, **down, **settings)
        self.up = nnx.Conv(rank, out_features, use_bias=use_bias, rngs=rngs, **up, **settings)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Compute outputs [..., spatial..., out_features] of images [..., spatial..., in_features]."""
        return self.up(self.down(inputs), out_sharding=out_sharding)


def is_separated(layer: nnx.Conv) -> bool:
    """Say whether the kernels of a convolution become columns and rows when it is split.

    Example:
        >>> is_separated(nnx.Conv(8, 8, (3, 3), rngs=nnx.Rngs(0))), is_separated(nnx.Conv(8, 8, (3,), rngs=nnx.Rngs(0)))
        (True, False)
    """
    given = layer.in_features, layer.out_features, tuple(layer.kernel_size), layer.strides, layer.input_dilation
    return _is_separated(*given)


def _is_separated(width: int, outputs: int, sizes: tuple[int, ...], strides: Any, dilation: Any) -> bool:
    if len(sizes) != 2 or 1 in sizes or set(each(dilation, 2)) != {1}:
        return False
    height, length = sizes
    # Columns are computed between the steps along the rows, too.
    return each(strides, 2)[1] * height * width + length * outputs < height * length * width + outputs


def _along(axis: int, value: Any) -> tuple[int, ...]:
    """Keep the value of one of two axes, and 1 for the other."""
    return tuple(one if index == axis else 1 for index, one in enumerate(each(value, 2)))


def each(value: Any, count: int) -> tuple[int, ...]:
    """Return a setting of a convolution for each of its spatial axes.

    Example:
        >>> each(2, 3), each(None, 2), each((1, 2), 2)
        ((2, 2, 2), (1, 1), (1, 2))
    """
    return (value or 1,) * count if value is None or isinstance(value, int) else tuple(value)


def split_kernel(layer: Any) -> str | None:
    """Return the name of a layer's kernel that can be split; None of a layer that has none.

    Example:
        >>> split_kernel(nnx.Linear(4, 3, rngs=nnx.Rngs(0))), split_kernel(nnx.LayerNorm(3, rngs=nnx.Rngs(0)))
        ('kernel', None)
    """
    call = type(layer).__call__ if callable(layer) else None
    if isinstance(layer, Recurrence) and call is Recurrence.__call__:
        return "input_kernel" if layer.input_kernel.ndim == 2 else None
    if isinstance(layer, nnx.Linear) and call is nnx.Linear.__call__:
        return "kernel" if layer.kernel.ndim == 2 else None
    if isinstance(layer, nnx.LinearGeneral) and call is nnx.LinearGeneral.__call__:
        inner, outer = len(layer.in_features), len(layer.out_features)
        last = tuple(layer.axis) == tuple(range(-inner, 0)) and not layer.batch_axis
        return "kernel" if last and layer.kernel.ndim == inner + outer else None
    if isinstance(layer, nnx.Conv) and call is nnx.Conv.__call__:
        plain = layer.feature_group_count == 1 and layer.mask is None
        return "kernel" if plain and layer.kernel.ndim == len(layer.kernel_size) + 2 else None
    return None


def split(layer: Any, rank: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Make the layer of low rank that takes the place of one, with new weights.

    Args:
        layer: `nnx.Linear`, `nnx.LinearGeneral` over the last axes, `nnx.Conv` of one group, or `Recurrence`.
        rank: Numbers between the two products.
        rngs: Source of keys (stream `params`).

    Raises:
        UserError: for another layer.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> type(split(nnx.Conv(8, 8, (3, 3), rngs=rngs), 2, rngs=rngs)).__name__
        'SplitConv'
        >>> split(nnx.LayerNorm(3, rngs=rngs), 2, rngs=rngs)
        Traceback (most recent call last):
        accelnet.errors.UserError: a LayerNorm cannot be split into two products: ...
    """
    if split_kernel(layer) is None:
        raise UserError(
            f"a {type(layer).__name__} cannot be split into two products: nnx.Linear, nnx.LinearGeneral over the last "
            "axes, nnx.Conv of one group of channels and accelnet's recurrent layers can"
        )
    if isinstance(layer, Recurrence):
        return SplitRecurrence(rank=rank, rngs=rngs, **settings_of(layer))
    settings: dict[str, Any] = {name: getattr(layer, name) for name in _SHARED} | {"use_bias": layer.use_bias}
    if isinstance(layer, nnx.Conv):
        place = {name: getattr(layer, name) for name in ("strides", "padding", "input_dilation", "kernel_dilation")}
        settings |= place | {"conv_general_dilated": layer.conv_general_dilated}
        return SplitConv(layer.in_features, layer.out_features, layer.kernel_size, rank, rngs=rngs, **settings)
    given = getattr(layer, "dot_general", None)
    settings |= {} if given is None else {"dot_general": given}
    return SplitLinear(layer.in_features, layer.out_features, rank, rngs=rngs, **settings)


def _shape(features: int | Sequence[int]) -> tuple[int, ...]:
    return (features,) if isinstance(features, int) else tuple(features)
