"""Layers that several models are made of."""

from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx
from jax import Array

from accelnet import ops
from accelnet.arguments import function, instance, number
from accelnet.errors import UserError
from accelnet.models.initialization import he_normal
from accelnet.models.normalization import Norm, Normalization
from accelnet.signature import described

Convolve = Callable[..., Array]
T = TypeVar("T")


def identity(x: T) -> T:
    """Return what came."""
    return x


def check_dropout(rate: float) -> None:
    """Refuse what is no rate of dropout."""
    number("dropout", rate, 0, below=1, varies=True)


def check_rngs(rngs: Any) -> None:
    """Refuse what is no source of keys."""
    instance("rngs", rngs, nnx.Rngs, "an nnx.Rngs, as nnx.Rngs(0)")


def check_activation(activation: Any) -> None:
    """Refuse what is no function of an array."""
    function("activation", activation, "a function of an array, such as nnx.relu")


def check_convolution(convolve: Any) -> None:
    """Refuse what is no convolution."""
    function("conv_general_dilated", convolve, "a function with the arguments of jax.lax.conv_general_dilated")


def check_inputs(inputs: Any, fits: Callable[[tuple[int, ...]], bool], expected: str) -> None:
    """Refuse inputs whose shape does not fit.

    Args:
        inputs: What the model was called with.
        fits: Function of the shape, which has one axis at least.
        expected: What it takes, in words.

    Raises:
        UserError: if they do not fit, or are no array.

    Example:
        >>> import numpy as np
        >>> check_inputs(np.zeros((2, 3)), lambda shape: shape[1:] == (4,), "[batch, 4]")
        Traceback (most recent call last):
        accelnet.errors.UserError: the model's inputs are float64[2,3], expected [batch, 4]
    """
    shape = getattr(inputs, "shape", ())
    if not (shape and fits(shape)):
        raise UserError(f"the model's inputs are {described([inputs])}, expected {expected}")


def make_dropout(rate: float, rngs: nnx.Rngs) -> Callable[[Array], Array]:
    """Return a layer of dropout, or for rate 0 a function that changes nothing.

    Args:
        rate: Share of the features that training zeroes, in [0, 1).
        rngs: Source of keys (stream `dropout`).

    Raises:
        UserError: For another rate.

    Example:
        >>> make_dropout(0.0, nnx.Rngs(0))(3)
        3
    """
    check_dropout(rate)
    return nnx.Dropout(rate, rngs=rngs) if rate else identity


class ConvNorm(nnx.Module):
    """Convolve images with square kernels, "SAME" padding, then normalize and activate.

    Args:
        in_features: Channels of the images.
        out_features: Channels of the outputs.
        kernel_size: Height and width of each kernel, in pixels.
        strides: Step of the kernel, in pixels.
        groups: Groups of channels.
        norm: As in `Normalization`; None leaves it out, and gives the convolution a bias.
        activation: Elementwise nonlinearity.
        conv_general_dilated: The convolution, with the arguments of jax.lax.conv_general_dilated.
        rngs: Source of keys (stream `params`).

    Example:
        >>> import jax.numpy as jnp
        >>> ConvNorm(3, 4, 3, strides=2, norm="layer", rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 3))).shape
        (2, 4, 4, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        norm: Norm = None,
        activation: Callable[[Array], Array] = identity,
        conv_general_dilated: Convolve = ops.conv_general_dilated,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            strides,
            feature_group_count=groups,
            use_bias=norm is None,
            kernel_init=he_normal,
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )
        self.norm = None if norm is None else Normalization(norm, out_features, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        """Compute outputs [B, H / strides, W / strides, out_features] of images [B, H, W, in_features]."""
        x = self.conv(x)
        return self.activation(x if self.norm is None else self.norm(x))
