"""Convolution with one meaning and, per platform, the program that is fast there."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from accelnet.ops import kernels, patches, winograd
from accelnet.ops.geometry import Geometry, Shape, transposed_kernels


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
    rounds = winograd.fits(rhs_shape, geometry) and geometry.precision not in _EXACT and min(rhs_shape[-2:]) >= 16
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


def _convolve_by_kernel(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    kernel = kernels.Kernel("accelnet_convolve", _numbers(rhs.shape, geometry), _Output(geometry))
    (out,) = kernels.call(kernel, _three_axes(lhs, 1), _three_axes(rhs, 0))
    return _fewer_axes(out, geometry, 1)


def _kernel_gradient_by_kernel(lhs: Array, gradient: Array, rhs_shape: Shape, geometry: Geometry) -> Array:
    meaning = _KernelGradient(rhs_shape, geometry)
    kernel = kernels.Kernel("accelnet_kernel_gradient", _numbers(rhs_shape, geometry), meaning)
    (out,) = kernels.call(kernel, _three_axes(lhs, 1), _three_axes(gradient, 1))
    return out.reshape(rhs_shape)


_EXACT = (lax.Precision.HIGHEST, (lax.Precision.HIGHEST, lax.Precision.HIGHEST))
KERNELS = Lowering("kernels", _convolve_by_kernel, _kernel_gradient_by_kernel)
PATCHES = Lowering("patches", patches.convolve, patches.kernel_gradient)
DEPTHWISE = Lowering("depthwise", patches.convolve_depthwise, patches.depthwise_kernel_gradient)
WINOGRAD_2 = make_winograd(2, 4)
WINOGRAD_4 = make_winograd(4, 4)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """Convolve `lhs` with `rhs`, a drop-in for `jax.lax.conv_general_dilated`.

    Stride 1, no dilation, one group, channels last:

        out[n, y, x, o] = sum_{i, j, c} padded[n, y + i, x + j, c] * rhs[i, j, c, o]

    Inside a loop, XLA's CPU convolution takes 40 to 400 times as long for the kernels' gradient as products do
    (`scripts/bench_ops.py`). So on the CPU, channels-last convolutions of floats become products of patches,
    Winograd's products or shifted products (`choose_lowering`); every other platform, layout and type gets
    XLA's own. Works under jit, vmap over images and over weights, grad, scan and remat; not under jvp.

    Args:
        lhs: images, float [N, spatial..., C] (the fast paths; any layout with `dimension_numbers`).
        rhs: kernels, float [spatial..., C / feature_group_count, O].
        window_strides: one integer >= 1 per spatial axis.
        padding: "SAME", "SAME_LOWER", "VALID" or (low, high) per spatial axis; negative numbers crop.
        lhs_dilation: spread of the image's pixels per spatial axis (a transposed convolution), or None.
        rhs_dilation: spread of the kernel's taps per spatial axis, or None.
        dimension_numbers: as in jax.lax; ("NHWC", "HWIO", "NHWC") is fast, and its like for 1 and 3
            spatial axes.
        feature_group_count: number of groups of channels; equal to C it is a depthwise convolution.
        batch_group_count: as in jax.lax; other than 1 gets XLA's own convolution.
        precision: as in jax.lax.
        preferred_element_type: dtype to accumulate in and return, or None for the inputs' own.
        out_sharding: as in jax.lax; other than None gets XLA's own convolution.

    Returns:
        The convolution, [N, spatial..., O].

    Raises:
        TypeError, ValueError: what jax.lax.conv_general_dilated raises for the same arguments.

    Example:
        >>> image, kernel = jnp.arange(4.0).reshape(1, 2, 2, 1), jnp.ones((2, 2, 1, 1))
        >>> out = conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        >>> float(out[0, 0, 0, 0])
        6.0

    Source: patches times a matrix: Chellapilla et al. 2006, section 3.1; tiles: Lavin and Gray 2016, section 4;
        the rest original.
    """
    native = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if out_sharding is not None:
        return native(lhs, rhs, out_sharding=out_sharding)
    jax.eval_shape(native, lhs, rhs)  # jax.lax's own checks and messages come before any lowering of ours
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if batch_group_count != 1 or layout != _channels_last(lhs.ndim) or not jnp.issubdtype(lhs.dtype, jnp.floating):
        return native(lhs, rhs)
    rank = lhs.ndim - 2
    strides = tuple(int(s) for s in window_strides)
    rhs_dilation = tuple(int(d) for d in rhs_dilation or (1,) * rank)
    if isinstance(padding, str):
        extents = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:rank], rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], extents, strides, padding)
    geometry = Geometry(
        strides=strides,
        padding=tuple((int(low), int(high)) for low, high in padding),
        lhs_dilation=tuple(int(d) for d in lhs_dilation or (1,) * rank),
        rhs_dilation=rhs_dilation,
        groups=int(feature_group_count),
        precision=tuple(precision) if isinstance(precision, list) else precision,
        preferred_element_type=None if preferred_element_type is None else jnp.dtype(preferred_element_type),
    )
    return _convolve(lhs, rhs, geometry)


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
    exact = jnp.finfo(dtype).bits >= 32 and geometry.preferred_element_type in (None, dtype)
    if narrowest < 16 or not exact or len(rhs_shape) != 4 or not winograd.fits(rhs_shape, geometry):
        return PATCHES
    return WINOGRAD_2 if narrowest < 64 else WINOGRAD_4


def native(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    """Convolve by XLA's own convolution."""
    return lax.conv_general_dilated(
        lhs,
        rhs,
        geometry.strides,
        geometry.padding,
        geometry.lhs_dilation,
        geometry.rhs_dilation,
        _channels_last(lhs.ndim),
        geometry.groups,
        precision=geometry.precision,
        preferred_element_type=geometry.preferred_element_type,
    )


# One trace per shape also outside jit: an eager platform_dependent would compile anew on every call.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _convolve(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    if 0 in (*lhs.shape, *rhs.shape, *geometry.output_sizes(lhs.shape, rhs.shape)):
        return native(lhs, rhs, geometry)
    return _portable(lhs, rhs, geometry)


# The platform is chosen within the two passes: a `platform_dependent` that autodiff takes apart keeps what the
# backward pass of every platform needs, zeros for all but one, and the patches, nine times the image.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _portable(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    lowering = choose_lowering(lhs.shape, rhs.shape, geometry, lhs.dtype)
    return lax.platform_dependent(
        lhs,
        rhs,
        cpu=lambda lhs, rhs: lowering.convolve(lhs, rhs, geometry),
        default=lambda lhs, rhs: native(lhs, rhs, geometry),
    )


def _portable_forward(lhs: Array, rhs: Array, geometry: Geometry) -> tuple[Array, tuple[Array, Array]]:
    # The name lets a rematerialization policy keep it: a product is hidden from policies by the custom gradient.
    return checkpoint_name(_portable(lhs, rhs, geometry), "product"), (lhs, rhs)


def _portable_backward(geometry: Geometry, operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    def portable(lhs: Array, rhs: Array, gradient: Array) -> tuple[Array, Array]:
        transposed = geometry.transposed(lhs.shape, rhs.shape)
        kernels = transposed_kernels(rhs, geometry.groups)
        lowering = choose_lowering(gradient.shape, kernels.shape, transposed, gradient.dtype)
        lhs_gradient = lowering.convolve(gradient, kernels.astype(gradient.dtype), transposed)
        lowering = choose_lowering(lhs.shape, rhs.shape, geometry, lhs.dtype)
        rhs_gradient = lowering.kernel_gradient(lhs.astype(gradient.dtype), gradient, rhs.shape, geometry)
        return lhs_gradient.astype(lhs.dtype), rhs_gradient.astype(rhs.dtype)

    def default(lhs: Array, rhs: Array, gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda lhs, rhs: native(lhs, rhs, geometry), lhs, rhs)[1](gradient)

    return lax.platform_dependent(*operands, gradient, cpu=portable, default=default)


_portable.defvjp(_portable_forward, _portable_backward)


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    spatial = tuple(range(1, rank - 1))
    image = (0, rank - 1, *spatial)
    return lax.ConvDimensionNumbers(image, (rank - 1, rank - 2, *range(rank - 2)), image)
