"""Convolutions of images, rounded to 8 bits each, with kernels of 8 or 4 bits."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from accelnet.ops import kernels, patches
from accelnet.ops.convolution import conv_general_dilated, native
from accelnet.ops.cpu_convolution import geometry_numbers, with_three_axes
from accelnet.ops.geometry import Geometry, Shape
from accelnet.ops.quantized import instruction_set, pack, round_rows, unpack


def pack_kernels(whole: Any, bits: int) -> Array:
    """Lay kernels [spatial..., channels, features] of whole numbers out as `quantized.pack` does, tap after tap.

    The channels of each tap are filled up to a multiple of four, or of 4 bits of eight.

    Example:
        >>> pack_kernels(jnp.ones((3, 3, 6, 20), jnp.int8), 8).shape
        (2, 18, 16, 4)
    """
    width = _width(whole.shape[-2], bits == 8)
    padded = jnp.pad(whole, [(0, 0)] * (whole.ndim - 2) + [(0, width - whole.shape[-2]), (0, 0)])
    return pack(padded.reshape(-1, whole.shape[-1]), bits)


def unpack_kernels(packed: Array, shape: Shape) -> Array:
    """Undo `pack_kernels`; int8 of a shape [spatial..., channels, features].

    Example:
        >>> unpack_kernels(pack_kernels(jnp.full((1, 2, 3, 5), -2), 4), (1, 2, 3, 5))[0, 1, 2].tolist()
        [-2, -2, -2, -2, -2]
    """
    *taps, channels, features = shape
    width = _width(channels, packed.dtype == jnp.int8)
    depth = width * math.prod(taps)
    return unpack(packed, depth, features).reshape(*taps, width, features)[..., :channels, :]


def _width(channels: int, whole: bool) -> int:
    step = 4 if whole else 8
    return -(-channels // step) * step


def quantized_convolution(
    x: Array, packed: Array, scale: Array, bias: Array | None, taps: Shape, geometry: Geometry
) -> Array:
    """Convolve channels-last images with kernels of 8 or 4 bits.

    Each image is rounded by its own largest number: q(x) = round(x / s_x), s_x = max |x| / 127. On the CPU it is a
    compiled kernel; elsewhere a convolution of the whole numbers as floats, which are exact in every type that
    platforms multiply in. The gradient is that of the convolution without rounding (straight-through).

    Args:
        x: float [N, spatial..., channels], of one to three spatial axes. It is computed with in float32.
        packed: Kernels, as of `pack_kernels`.
        scale: float32 [features].
        bias: float32 [features], or None.
        taps: Spatial shape of the kernels.
        geometry: As of `geometry.resolve`, with one group and images that are not dilated.

    Returns:
        float [N, spatial..., features], in the dtype of x.

    Example:
        >>> plain = Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
        >>> weights = pack_kernels(jnp.ones((3, 3, 2, 5), jnp.int8), 8)
        >>> quantized_convolution(jnp.ones((1, 4, 4, 2)), weights, jnp.ones(5), None, (3, 3), plain)[
        ...     0, 0, :, 0
        ... ].tolist()
        [8.0, 12.0, 12.0, 8.0]
    """
    assert geometry.groups == 1
    assert set(geometry.lhs_dilation) == {1}
    out: Any = _convolve((taps, geometry), x.astype(jnp.float32), packed, scale, bias)
    return out.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(settings: Any, x: Array, packed: Array, scale: Array, bias: Array | None) -> Array:
    return _portable(settings, instruction_set(), x, packed, scale, *(() if bias is None else (bias,)))


def _forward(settings: Any, x: Array, packed: Array, scale: Array, bias: Array | None) -> Any:
    return _convolve(settings, x, packed, scale, bias), (x, packed, scale, bias)


def _backward(settings: Any, operands: Any, cotangent: Array) -> Any:
    taps, geometry = settings
    x, packed, scale, bias = operands
    whole = unpack_kernels(packed, (*taps, x.shape[-1], scale.shape[0])).astype(jnp.float32)

    def plain(x: Array, scale: Array) -> Array:
        spatial = "DHW"[3 - len(taps) :]
        layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
        steps, dilation = geometry.strides, geometry.rhs_dilation
        rhs = whole * scale.reshape((1,) * (whole.ndim - 1) + (-1,))
        return conv_general_dilated(x, rhs, steps, geometry.padding, rhs_dilation=dilation, dimension_numbers=layout)

    dx, dscale = jax.vjp(plain, x, scale)[1](cotangent)
    return dx, None, dscale, None if bias is None else cotangent.sum(tuple(range(cotangent.ndim - 1)))


_convolve.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _portable(settings: Any, instructions: int, *operands: Array) -> Array:
    cpu = functools.partial(_by_kernel, settings, instructions)
    default = functools.partial(_by_floats, settings, native)
    return lax.platform_dependent(*operands, cpu=cpu, default=default)


def _by_kernel(settings: Any, instructions: int, x: Array, packed: Array, scale: Array, *bias: Array) -> Array:
    taps, geometry = settings
    ones, whole = (1,) * (3 - len(taps)), geometry.of_three_axes()
    numbers = (instructions, *geometry_numbers(whole, (*taps, *ones)))
    meaning = kernels.Meaning(_meaning, (((*taps, *ones), whole),))
    kernel = kernels.Kernel("accelnet_convolve_rounded", numbers, meaning)
    out = kernels.call(kernel, with_three_axes(x, 1), packed, scale, *bias)[0]
    return out.reshape(x.shape[0], *geometry.output_sizes(x.shape, (*taps, 1, 1)), scale.shape[0])


def _meaning(*operands: Any) -> Array:
    return _by_floats(operands[-1], patches.convolve, *operands[:-1])


def _by_floats(settings: Any, convolve: Any, x: Array, packed: Array, scale: Array, *bias: Array) -> Array:
    taps, geometry = settings
    rounded, row_scale = round_rows(x.reshape(x.shape[0], -1))
    whole = unpack_kernels(packed, (*taps, x.shape[-1], scale.shape[0])).astype(jnp.float32)
    sums = convolve(rounded.reshape(x.shape), whole, geometry)
    channels = (1,) * (sums.ndim - 1) + (-1,)
    out = sums * (row_scale.reshape(x.shape[0], *(1,) * (sums.ndim - 1)) * scale.reshape(channels))
    return out + bias[0].reshape(channels) if bias else out
