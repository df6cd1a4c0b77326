"""The CPU's program for channels-last convolutions: a compiled kernel, whose meaning is products of patches."""

import jax.numpy as jnp
from jax import Array, lax

from accelnet.ops import kernels, patches
from accelnet.ops.geometry import Geometry, Shape


def convolve(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    """Convolve by the compiled kernel, or by `patches.convolve` in other types than these and above three axes.

    The types are float32 and bfloat16, which the kernel gets as float32.

    Which loop the kernel takes (a product, depthwise, Winograd's, or products of patches that it does not write down)
    is chosen in kernels.cc, by the shape alone. Where programs hold no kernels, they convolve by patches: see
    `accelnet.ops.kernels`.

    Example:
        >>> plain = Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1)
        >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), plain).shape
        (1, 2, 2, 5)
    """
    if not _has_kernel(lhs, geometry):
        return patches.convolve(lhs, rhs, geometry)
    whole = geometry.of_three_axes()
    meaning = kernels.Meaning(patches.convolve, (whole,))
    kernel = kernels.Kernel("accelnet_convolve", _numbers(whole, rhs.shape), meaning)
    (out,) = kernels.call(kernel, with_three_axes(lhs, 1), with_three_axes(rhs, 0))
    return out.reshape(lhs.shape[0], *geometry.output_sizes(lhs.shape, rhs.shape), rhs.shape[-1])


def kernel_gradient(lhs: Array, gradient: Array, rhs_shape: Shape, geometry: Geometry) -> Array:
    """Compute the gradient of the kernels, as `convolve` computes the output; arguments as in `patches`."""
    if not _has_kernel(lhs, geometry):
        return patches.kernel_gradient(lhs, gradient, rhs_shape, geometry)
    whole = geometry.of_three_axes()
    meaning = kernels.Meaning(patches.kernel_gradient, (_three_axes(rhs_shape, 0), whole))
    kernel = kernels.Kernel("accelnet_kernel_gradient", _numbers(whole, rhs_shape), meaning)
    (out,) = kernels.call(kernel, with_three_axes(lhs, 1), with_three_axes(gradient, 1))
    return out.reshape(rhs_shape)


def _has_kernel(lhs: Array, geometry: Geometry) -> bool:
    has_type = lhs.dtype in (jnp.float32, jnp.bfloat16) and geometry.preferred_element_type in (None, lhs.dtype)
    return has_type and len(geometry.strides) <= 3


def _numbers(geometry: Geometry, rhs_shape: Shape) -> tuple[int, ...]:
    """Return what kernels.cc asks of a convolution: whether its transforms may round, and the geometry."""
    given = geometry.precision
    is_exact = lax.Precision.HIGHEST in (given if isinstance(given, tuple) else (given,))
    return (int(not is_exact), *geometry_numbers(geometry, _three_axes(rhs_shape, 0)[:3]))


def geometry_numbers(geometry: Geometry, taps: Shape) -> tuple[int, ...]:
    """Return a geometry of three axes, with the sizes of its kernels, as `make_convolution` of convolution.h reads it.

    Example:
        >>> plain = Geometry((1, 1, 1), ((1, 1), (1, 1), (0, 0)), (1, 1, 1), (1, 1, 1), 1)
        >>> geometry_numbers(plain, (3, 3, 1))
        (1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 3, 3, 1)
    """
    lows = (low for low, _ in geometry.padding)
    return (geometry.groups, *geometry.strides, *lows, *geometry.lhs_dilation, *geometry.rhs_dilation, *taps)


def _three_axes(shape: Shape, first: int) -> Shape:
    """Put axes of one pixel behind the spatial axes of a shape, which begin at `first`: 1 for images, 0 for kernels."""
    end = len(shape) - 2 + first
    return (*shape[:end], *(1,) * (3 + first - end), *shape[end:])


def with_three_axes(array: Array, first: int) -> Array:
    """Put axes of one pixel behind the spatial axes of an array, which begin at `first`: 1 for images, 0 for kernels.

    Example:
        >>> with_three_axes(jnp.ones((2, 4, 3)), 1).shape
        (2, 4, 1, 1, 3)
    """
    return array.reshape(_three_axes(array.shape, first))
