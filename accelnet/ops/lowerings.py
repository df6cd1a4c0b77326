"""The CPU's programs for convolutions of channels-last images, and which of them is taken."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from accelnet.ops import kernels, patches, winograd
from accelnet.ops.geometry import Geometry, Shape


class Lowering(NamedTuple):
    """Name a program for convolutions of channels-last images."""

    name: str
    convolve: Callable[[Array, Array, Geometry], Array]
    kernel_gradient: Callable[[Array, Array, Shape, Geometry], Array]


def make_winograd(forward_tile: int, gradient_tile: int) -> Lowering:
    """Make the lowering with tiles of 2 or 4 pixels in `winograd.convolve` and in its kernel gradient."""
    return Lowering(
        f"winograd {forward_tile}, {gradient_tile}",
        functools.partial(winograd.convolve, tile=forward_tile),
        functools.partial(winograd.kernel_gradient, tile=gradient_tile),
    )


class _Output(NamedTuple):
    """The convolution of a kernel's operands, whose spatial axes are three, by XLA's operations."""

    geometry: Geometry

    def __call__(self, lhs: Array, rhs: Array) -> tuple[Array]:
        lhs, rhs = _fewer_axes(lhs, self.geometry, 1), _fewer_axes(rhs, self.geometry, 0)
        lowering = choose_plain_lowering(lhs.shape, rhs.shape, self.geometry, lhs.dtype)
        return (_three_axes(lowering.convolve(lhs, rhs, self.geometry), 1),)


class _KernelGradient(NamedTuple):
    """The kernels' gradient of a kernel's operands, whose spatial axes are three, by XLA's operations."""

    rhs_shape: Shape
    geometry: Geometry

    def __call__(self, lhs: Array, gradient: Array) -> tuple[Array]:
        lhs, gradient = _fewer_axes(lhs, self.geometry, 1), _fewer_axes(gradient, self.geometry, 1)
        lowering = choose_plain_lowering(lhs.shape, self.rhs_shape, self.geometry, lhs.dtype)
        return (_three_axes(lowering.kernel_gradient(lhs, gradient, self.rhs_shape, self.geometry), 0),)


def _three_axes(array: Array, first: int) -> Array:
    spatial = array.shape[first:-1] if first else array.shape[:-2]
    spatial, rest = (*spatial, *(1,) * (3 - len(spatial))), array.shape[first + len(spatial) :]
    return array.reshape(*array.shape[:first], *spatial, *rest)


def _fewer_axes(array: Array, geometry: Geometry, first: int) -> Array:
    rank = len(geometry.strides)
    return array.reshape(*array.shape[: first + rank], *array.shape[first + 3 :])


def _numbers(rhs_shape: Shape, geometry: Geometry) -> tuple[int, ...]:
    """Say what kernels.cc wants to know of a convolution: whether Winograd's rounding is allowed, and the geometry."""
    rounds = winograd.fits(rhs_shape, geometry) and not _is_exact(geometry) and min(rhs_shape[-2:]) >= 16
    fill = (1,) * (3 - len(geometry.strides))
    lows = (*(low for low, _ in geometry.padding), *(0 for _ in fill))
    return (
        int(rounds),
        geometry.groups,
        *(*geometry.strides, *fill),
        *lows,
        *(*geometry.lhs_dilation, *fill),
        *(*geometry.rhs_dilation, *fill),
    )


def _is_exact(geometry: Geometry) -> bool:
    """Say whether "highest" is asked for, of one operand or of both, so that no transform may round."""
    given = geometry.precision
    return lax.Precision.HIGHEST in (given if isinstance(given, tuple) else (given,))


def _convolve_by_kernel(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    kernel = kernels.Kernel("accelnet_convolve", _numbers(rhs.shape, geometry), _Output(geometry))
    (out,) = kernels.call(kernel, _three_axes(lhs, 1), _three_axes(rhs, 0))
    return _fewer_axes(out, geometry, 1)


def _kernel_gradient_by_kernel(lhs: Array, gradient: Array, rhs_shape: Shape, geometry: Geometry) -> Array:
    meaning = _KernelGradient(rhs_shape, geometry)
    kernel = kernels.Kernel("accelnet_kernel_gradient", _numbers(rhs_shape, geometry), meaning)
    (out,) = kernels.call(kernel, _three_axes(lhs, 1), _three_axes(gradient, 1))
    return out.reshape(rhs_shape)


KERNELS = Lowering("kernels", _convolve_by_kernel, _kernel_gradient_by_kernel)
PATCHES = Lowering("patches", patches.convolve, patches.kernel_gradient)
DEPTHWISE = Lowering("depthwise", patches.convolve_depthwise, patches.depthwise_kernel_gradient)
WINOGRAD_2 = make_winograd(2, 4)
WINOGRAD_4 = make_winograd(4, 4)


def choose_lowering(lhs_shape: Shape, rhs_shape: Shape, geometry: Geometry, dtype: Any = jnp.float32) -> Lowering:
    """Pick the CPU's program for a channels-last convolution of these shapes.

    Args:
        lhs_shape: [N, spatial..., C].
        rhs_shape: [spatial..., C / groups, O].
        geometry: strides, padding, dilations, groups.
        dtype: of the images and kernels.

    Returns:
        The compiled kernels for float32 and up to three spatial axes, else what `choose_plain_lowering` picks. All
        compute the same.

    Example:
        >>> plain = Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1)
        >>> choose_lowering((8, 32, 32, 16), (1, 1, 16, 64), plain).name
        'kernels'
    """
    fits = dtype == jnp.float32 and geometry.preferred_element_type in (None, jnp.float32)
    if fits and len(geometry.strides) <= 3:
        return KERNELS
    return choose_plain_lowering(lhs_shape, rhs_shape, geometry, dtype)


def choose_plain_lowering(lhs_shape: Shape, rhs_shape: Shape, geometry: Geometry, dtype: Any) -> Lowering:
    """Pick the CPU's program of XLA's own operations for a channels-last convolution, as `choose_lowering` does.

    Returns:
        A lowering. The thresholds are those of `scripts/bench_ops.py`: with 64 images of
        14x14x32 to 64 channels, patches, tiles of 2 and tiles of 4 take 5.0, 2.3 and 3.6 ms for the output and
        6.4, 4.0 and 3.1 ms for the kernels' gradient; with 16x16x128 to 128, 53, 22 and 15 ms and 64, 36 and
        20 ms; with 32x32x3 to 16, 2.1, 3.9 and 4.8 ms and 1.9, 3.1 and 3.1 ms (two cores, AMD EPYC, jax 0.10.2).

    Example:
        >>> plain = Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1)
        >>> choose_plain_lowering((8, 32, 32, 16), (1, 1, 16, 64), plain, jnp.float32).name
        'patches'
    """
    if geometry.groups == lhs_shape[-1] > 1:
        return DEPTHWISE
    narrowest = min(rhs_shape[-2:])
    wide = jnp.finfo(dtype).bits >= 32 and geometry.preferred_element_type in (None, dtype)
    fits = wide and not _is_exact(geometry) and len(rhs_shape) == 4 and winograd.fits(rhs_shape, geometry)
    if narrowest < 16 or not fits:
        return PATCHES
    return WINOGRAD_2 if narrowest < 64 else WINOGRAD_4
