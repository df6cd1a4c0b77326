"""Convolution by products of patches with kernels, and by sums of shifted products where every channel is its own."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet.ops.geometry import Geometry, Shape, interleave, views


def convolve(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    """Convolve images [N, spatial..., C] with kernels [spatial..., C / groups, O] to [N, spatial..., O].

    It is one product of every output pixel's patch with the kernels as a matrix. The patches are static slices side by
    side in the channel axis. Of a dilated image (a transposed convolution, or the input gradient of a strided one) only
    pixels that are there are multiplied: every `dilation`-th output pixel meets the same few taps, and is a convolution
    of its own. Depthwise convolutions are sums of shifted elementwise products, which XLA fuses into one loop, kept in
    at least float32.

    Source: Chellapilla et al., High performance convolutional neural networks for document processing
        (2006), section 3.1.
    """
    if _is_depthwise(lhs, geometry):
        return _convolve_depthwise(lhs, rhs, geometry)
    dilation = geometry.lhs_dilation
    if math.prod(dilation) == 1 or math.prod(geometry.strides) > 1:
        gathered = jnp.stack(_tap_views(lhs, rhs.shape, geometry), axis=-2)
        return _product(gathered, rhs.reshape(-1, *rhs.shape[-2:]), geometry)
    parts, sizes = [], geometry.output_sizes(lhs.shape, rhs.shape)
    phase_sizes = [-(-size // step) for size, step in zip(sizes, dilation, strict=True)]
    for phase in np.ndindex(*dilation):
        taps, starts = [], []
        for tap in np.ndindex(*rhs.shape[:-2]):
            places = [
                divmod(p + t * step - low, spread)
                for p, t, step, (low, _), spread in zip(
                    phase, tap, geometry.rhs_dilation, geometry.padding, dilation, strict=True
                )
            ]
            if all(remainder == 0 for _, remainder in places):
                taps.append(tap)
                starts.append([place for place, _ in places])
        if taps:
            gathered = jnp.stack(views(lhs, starts, phase_sizes, (1,) * len(dilation)), axis=-2)
            parts.append(_product(gathered, jnp.stack([rhs[tap] for tap in taps]), geometry))
        else:
            dtype = geometry.preferred_element_type or lhs.dtype
            parts.append(jnp.zeros((lhs.shape[0], *phase_sizes, rhs.shape[-1]), dtype))
    return interleave(parts, dilation, sizes)


def kernel_gradient(lhs: Array, gradient: Array, rhs_shape: Shape, geometry: Geometry) -> Array:
    """Compute the gradient of the kernels: the product of the patches and the output's gradient [N, spatial..., O]."""
    shifted = _tap_views(lhs, rhs_shape, geometry)
    if _is_depthwise(lhs, geometry):
        return _depthwise_kernel_gradient(shifted, gradient, lhs.shape[-1]).reshape(rhs_shape)
    num_taps, (width, features) = len(shifted), rhs_shape[-2:]
    # One axis is contracted, not three: for three XLA:CPU transposes both operands first.
    gathered = jnp.stack(shifted, axis=-2).reshape(-1, num_taps * lhs.shape[-1])
    gradient = gradient.reshape(-1, features)
    if geometry.groups == 1:
        return _dot(gathered, gradient, ((0,), (0,)), ((), ()), geometry).reshape(rhs_shape)
    groups = geometry.groups
    gathered = gathered.reshape(-1, num_taps, groups, width)
    gradient = gradient.reshape(-1, groups, features // groups)
    # The product's axes: groups, taps, C / groups, O / groups.
    product = _dot(gathered, gradient, ((0,), (0,)), ((2,), (1,)), geometry)
    return jnp.moveaxis(product, 0, -2).reshape(num_taps, width, features).reshape(rhs_shape)


def _is_depthwise(lhs: Array, geometry: Geometry) -> bool:
    return geometry.groups == lhs.shape[-1] > 1


def _convolve_depthwise(lhs: Array, rhs: Array, geometry: Geometry) -> Array:
    channels, features = lhs.shape[-1], rhs.shape[-1]
    out_dtype = geometry.preferred_element_type or lhs.dtype
    sum_dtype = jnp.promote_types(out_dtype, jnp.float32)
    kernels = rhs.reshape(-1, channels, features // channels).astype(sum_dtype)

    def term(view: Array, kernel: Array) -> Array:
        kernel = kernel[:, 0] if features == channels else kernel
        view = view.astype(sum_dtype) if features == channels else view.astype(sum_dtype)[..., None]
        return view * kernel.reshape((1,) * (lhs.ndim - 1) + kernel.shape)

    out = functools.reduce(jnp.add, map(term, _tap_views(lhs, rhs.shape, geometry), kernels))
    return out.reshape(*out.shape[: lhs.ndim - 1], features).astype(out_dtype)


def _depthwise_kernel_gradient(shifted: list[Array], gradient: Array, channels: int) -> Array:
    """Sum over the pixels, per tap; [taps, C, multiplier]."""
    sum_dtype = jnp.promote_types(gradient.dtype, jnp.float32)
    gradient = gradient.astype(sum_dtype).reshape(*gradient.shape[:-1], channels, -1)
    pixels = tuple(range(gradient.ndim - 2))
    return jnp.stack([jnp.sum(view.astype(sum_dtype)[..., None] * gradient, axis=pixels) for view in shifted])


def _tap_views(lhs: Array, rhs_shape: Shape, geometry: Geometry) -> list[Array]:
    """Return, for every tap of the kernel in row-major order, the pixels it meets: [N, out spatial..., C]."""
    sizes = geometry.output_sizes(lhs.shape, rhs_shape)
    if math.prod(geometry.lhs_dilation) > 1:
        config = [(0, 0, 0), *((0, 0, spread - 1) for spread in geometry.lhs_dilation), (0, 0, 0)]
        lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), config)
    starts = [
        [t * step - low for t, step, (low, _) in zip(tap, geometry.rhs_dilation, geometry.padding, strict=True)]
        for tap in np.ndindex(*rhs_shape[:-2])
    ]
    return views(lhs, starts, sizes, geometry.strides)


def _product(gathered: Array, kernels: Array, geometry: Geometry) -> Array:
    """Multiply patches [N, spatial..., taps, C] by kernels [taps, C / groups, O]."""
    num_taps, width, features = kernels.shape
    if geometry.groups == 1:
        gathered = gathered.reshape(*gathered.shape[:-2], -1)
        contracted = ((gathered.ndim - 1,), (0,))
        return _dot(gathered, kernels.reshape(-1, features), contracted, ((), ()), geometry)
    groups = geometry.groups
    gathered = gathered.reshape(*gathered.shape[:-1], groups, width)
    kernels = kernels.reshape(num_taps, width, groups, features // groups)
    rank = gathered.ndim
    # The product's axes: groups, N, spatial..., O / groups.
    product = _dot(gathered, kernels, ((rank - 3, rank - 1), (0, 1)), ((rank - 2,), (2,)), geometry)
    product = jnp.moveaxis(product, 0, -2)
    return product.reshape(*product.shape[:-2], features)


def _dot(a: Array, b: Array, contracted: tuple, batch: tuple, geometry: Geometry) -> Array:
    settings = {"precision": geometry.precision, "preferred_element_type": geometry.preferred_element_type}
    return lax.dot_general(a, b, (contracted, batch), **settings)
