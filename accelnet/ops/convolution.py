"""Convolution with one meaning and, per platform, the program that is fast there."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name


class Geometry(NamedTuple):
    """Hold everything about a channels-last convolution that is known before its arrays are (hashable)."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: Any
    preferred_element_type: Any


Lowering = Callable[[Array, Array, Geometry], Array]


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

    XLA's CPU convolution is about twenty times slower inside a loop than outside. So on the CPU,
    channels-last convolutions of floats become matrix products or shifted products (`choose_lowering`); every
    other platform, layout and type gets XLA's own. Works under jit, vmap over images and over weights, grad,
    jvp, scan and remat.

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

    Source: patches times a matrix: Chellapilla et al. 2006, section 3.1; the rest original.
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


def choose_lowering(lhs_shape: tuple[int, ...], rhs_shape: tuple[int, ...], geometry: Geometry) -> Lowering:
    """Pick the CPU's program for a channels-last convolution of these shapes.

    Args:
        lhs_shape: [N, spatial..., C].
        rhs_shape: [spatial..., C / groups, O].
        geometry: strides, padding, dilations, groups.

    Returns:
        One of `pointwise`, `depthwise`, `patches`, `native`; all compute the same.

    Example:
        >>> plain = Geometry((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1, None, None)
        >>> choose_lowering((8, 32, 32, 16), (1, 1, 16, 64), plain).__name__
        'pointwise'
    """
    if 0 in _output_shape(lhs_shape, rhs_shape, geometry) or 0 in lhs_shape or 0 in rhs_shape:
        return native
    if math.prod(rhs_shape[:-2]) == 1 and geometry.groups == 1:
        return pointwise
    if geometry.groups == lhs_shape[-1] > 1:
        return depthwise
    return patches


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


def pointwise(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    """Convolve with a kernel of one tap by a single product over the channels."""
    (pixels,) = _shifted_views(lhs, rhs.shape, geometry)
    return _product(pixels, rhs.reshape(rhs.shape[-2:]), geometry)


def patches(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    """Convolve by one product of every output pixel's patch with the kernels as a matrix.

    The patches are static slices side by side in the channel axis, so the gradients are products, pads and
    additions, never a scatter.
    """
    views = _shifted_views(lhs, rhs.shape, geometry)
    gathered = jnp.concatenate(views, axis=-1)
    if geometry.groups == 1:
        return _product(gathered, rhs.reshape(-1, rhs.shape[-1]), geometry)
    groups, taps, (width, features) = geometry.groups, len(views), rhs.shape[-2:]
    gathered = gathered.reshape(*gathered.shape[:-1], taps, groups, width)
    kernels = rhs.reshape(taps, width, groups, features // groups)
    rank = gathered.ndim
    # The product's axes: groups, N, spatial..., O / groups.
    out = lax.dot_general(
        gathered,
        kernels,
        (((rank - 3, rank - 1), (0, 1)), ((rank - 2,), (2,))),
        precision=geometry.precision,
        preferred_element_type=geometry.preferred_element_type,
    )
    out = jnp.moveaxis(out, 0, -2)
    return out.reshape(*out.shape[:-2], features)


def depthwise(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    """Convolve every channel on its own by a sum of shifted elementwise products."""
    channels, features = lhs.shape[-1], rhs.shape[-1]
    out_dtype = geometry.preferred_element_type or lhs.dtype
    # Sums of half-precision products are kept in float32, as XLA's convolution does.
    sum_dtype = jnp.promote_types(out_dtype, jnp.float32)
    kernels = rhs.reshape(-1, channels, features // channels).astype(sum_dtype)
    out = None
    for view, kernel in zip(_shifted_views(lhs, rhs.shape, geometry), kernels, strict=True):
        view = view.astype(sum_dtype)
        if features == channels:
            term = view * kernel.reshape((1,) * (lhs.ndim - 1) + (channels,))
        else:
            term = view[..., None] * kernel.reshape((1,) * (lhs.ndim - 1) + kernel.shape)
        out = term if out is None else out + term
    assert out is not None
    return out.reshape(*out.shape[: lhs.ndim - 1], features).astype(out_dtype)


# One trace per shape also outside jit: an eager platform_dependent would compile anew on every call.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _convolve(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    if choose_lowering(lhs.shape, rhs.shape, geometry) is native:
        return native(lhs, rhs, geometry)
    return _portable(lhs, rhs, geometry)


# The platform is chosen within the two passes: a `platform_dependent` that autodiff takes apart keeps what the
# backward pass of every platform needs, zeros for all but one, and the patches, nine times the image.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _portable(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    lowering = choose_lowering(lhs.shape, rhs.shape, geometry)
    return lax.platform_dependent(
        lhs,
        rhs,
        cpu=lambda lhs, rhs: lowering(lhs, rhs, geometry),
        default=lambda lhs, rhs: native(lhs, rhs, geometry),
    )


def _portable_forward(lhs: Array, rhs: Array, geometry: Geometry) -> tuple[Array, tuple[Array, Array]]:
    # The name lets a rematerialization policy keep it: a product is hidden from policies by the custom gradient.
    return checkpoint_name(_portable(lhs, rhs, geometry), "product"), (lhs, rhs)


def _portable_backward(geometry: Geometry, operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    def backward(lowering: Lowering) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
        return lambda lhs, rhs, gradient: jax.vjp(lambda a, b: lowering(a, b, geometry), lhs, rhs)[1](gradient)

    lowering = choose_lowering(operands[0].shape, operands[1].shape, geometry)
    return lax.platform_dependent(*operands, gradient, cpu=backward(lowering), default=backward(native))


_portable.defvjp(_portable_forward, _portable_backward)


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    spatial = tuple(range(1, rank - 1))
    image = (0, rank - 1, *spatial)
    return lax.ConvDimensionNumbers(image, (rank - 1, rank - 2, *range(rank - 2)), image)


def _product(pixels: Array, matrix: Array, geometry: Geometry) -> Array:
    return lax.dot_general(
        pixels,
        matrix,
        (((pixels.ndim - 1,), (0,)), ((), ())),
        precision=geometry.precision,
        preferred_element_type=geometry.preferred_element_type,
    )


def _output_shape(lhs_shape: tuple[int, ...], rhs_shape: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    sizes = []
    for axis, size in enumerate(lhs_shape[1:-1]):
        padded = max(0, (size - 1) * geometry.lhs_dilation[axis] + 1) + sum(geometry.padding[axis])
        extent = (rhs_shape[axis] - 1) * geometry.rhs_dilation[axis] + 1
        sizes.append(max(0, (padded - extent) // geometry.strides[axis] + 1))
    return tuple(sizes)


def _shifted_views(lhs: Array, rhs_shape: tuple[int, ...], geometry: Geometry) -> list[Array]:
    """Return, for every tap of the kernel in row-major order, the pixels it meets: [N, out spatial..., C]."""
    out_shape = _output_shape(lhs.shape, rhs_shape, geometry)
    pads = [(low, high, d - 1) for (low, high), d in zip(geometry.padding, geometry.lhs_dilation, strict=True)]
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    views = []
    for tap in np.ndindex(*rhs_shape[:-2]):
        starts = [i * d for i, d in zip(tap, geometry.rhs_dilation, strict=True)]
        limits = [a + (n - 1) * s + 1 for a, n, s in zip(starts, out_shape, geometry.strides, strict=True)]
        views.append(
            lax.slice(
                padded,
                (0, *starts, 0),
                (padded.shape[0], *limits, padded.shape[-1]),
                (1, *geometry.strides, 1),
            )
        )
    return views
