"""Pooling over windows, on the CPU by compiled kernels or by elementwise operations on the windows' pixels."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet.ops import cpu_pooling
from accelnet.ops.windows import Windows

Padding = str | Sequence[tuple[int, int]]


def max_pool(
    inputs: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Array:
    """Take the maximum of every window, as `flax.nnx.max_pool` does.

        out[n, y, x, c] = max_{i, j} padded[n, y * s + i, x * s + j, c],   padded with -inf

    Where several pixels tie, the gradient goes to the first in row-major order, on every platform. On the
    CPU the forward pass keeps one byte per window, which says whose maximum it was, instead of the image,
    and the backward pass needs no select-and-scatter, which is slow there.

    Args:
        inputs: images, float [batch..., spatial..., C].
        window_shape: size of the window per spatial axis.
        strides: step of the window per spatial axis, or None for 1 along each (flax's default).
        padding: "SAME", "VALID" or (low, high) per spatial axis.

    Returns:
        The maxima, [batch..., out spatial..., C], in the dtype of `inputs`.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2)).ravel().tolist()
        [5.0, 7.0, 13.0, 15.0]
    """
    return _max(inputs, _resolve(inputs.shape, window_shape, strides, padding))


def avg_pool(
    inputs: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """Take the mean of every window, as `flax.nnx.avg_pool` does.

        out[n, y, x, c] = sum_{i, j} padded[n, y * s + i, x * s + j, c] / size,   padded with 0

    Args:
        inputs: images, float [batch..., spatial..., C].
        window_shape: size of the window per spatial axis.
        strides: step of the window per spatial axis, or None for 1 along each (flax's default).
        padding: "SAME", "VALID" or (low, high) per spatial axis.
        count_include_pad: whether `size` counts pixels of the padding.

    Returns:
        The means, [batch..., out spatial..., C], in the dtype of `inputs`. Sums are kept in at least float32.

    Example:
        >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2)).ravel().tolist()
        [2.5, 4.5, 10.5, 12.5]
    """
    windows = _resolve(inputs.shape, window_shape, strides, padding)
    sums = _sum(inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32)), windows)
    if count_include_pad:
        return (sums / math.prod(window_shape)).astype(inputs.dtype)
    spatial = (1,) * windows.first + inputs.shape[windows.first : -1] + (1,)
    sizes = _sum(jnp.ones(spatial, sums.dtype), _resolve(spatial, window_shape, strides, padding))
    return (sums / sizes).astype(inputs.dtype)


def _resolve(shape: tuple[int, ...], window: Sequence[int], strides: Sequence[int] | None, padding: Padding) -> Windows:
    rank = len(window)
    strides = (1,) * rank if strides is None else strides
    if len(strides) != rank:
        raise ValueError(f"strides {tuple(strides)} must have one number per axis of window_shape {tuple(window)}")
    if len(shape) < rank + 1:
        raise ValueError(
            f"inputs of shape {shape} have too few axes for window_shape {tuple(window)}: "
            "expected [batch..., spatial..., channels]"
        )
    first = len(shape) - rank - 1
    sizes = shape[first:-1]
    pads = lax.padtype_to_pads(sizes, window, strides, padding) if isinstance(padding, str) else padding
    if len(pads) != rank:
        raise ValueError(f"padding {padding} must have one (low, high) per axis of window_shape {tuple(window)}")
    padded = [n + low + high for n, (low, high) in zip(sizes, pads, strict=True)]
    return Windows(
        first=first,
        window=tuple(window),
        strides=tuple(strides),
        pads=tuple((int(low), int(high)) for low, high in pads),
        counts=tuple(n // w for n, w in zip(padded, window, strict=True)),
        remainders=tuple(n % w for n, w in zip(padded, window, strict=True)),
    )


# One trace per shape also outside jit: an eager platform_dependent would compile anew on every call.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _max(inputs: Array, windows: Windows) -> Array:
    if jnp.issubdtype(inputs.dtype, jnp.floating) and 0 not in windows.outputs:
        return _portable_max(inputs, windows)
    return _reduce_max(inputs, windows)


# The platform is chosen within the two passes: a `platform_dependent` that autodiff takes apart keeps what the
# backward pass of every platform needs, zeros for all but one (10 ms of a CNN step of 113).
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _portable_max(inputs: Array, windows: Windows) -> Array:
    return lax.platform_dependent(
        inputs,
        cpu=functools.partial(cpu_pooling.maxima, windows),
        default=lambda inputs: _reduce_max(inputs, windows),
    )


def _portable_max_forward(inputs: Array, windows: Windows) -> tuple[Array, tuple[Array, Array]]:
    def native(inputs: Array) -> tuple[Array, Array]:
        best = _reduce_max(inputs, windows)
        return best, jnp.zeros(best.shape, windows.tap_dtype)

    best, tap = lax.platform_dependent(inputs, cpu=functools.partial(cpu_pooling.first_maxima, windows), default=native)
    return best, (inputs, tap)


def _portable_max_backward(windows: Windows, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    def native(inputs: Array, _: Array, gradient: Array) -> Array:
        return jax.vjp(lambda inputs: _reduce_max(inputs, windows), inputs)[1](gradient)[0]

    def portable(inputs: Array, tap: Array, gradient: Array) -> Array:
        return cpu_pooling.first_maxima_gradient(windows, inputs, tap, gradient)

    return (lax.platform_dependent(*residuals, gradient, cpu=portable, default=native),)


_portable_max.defvjp(_portable_max_forward, _portable_max_backward)


def _reduce_max(inputs: Array, windows: Windows) -> Array:
    low = -np.inf if jnp.issubdtype(inputs.dtype, jnp.floating) else jnp.iinfo(inputs.dtype).min
    return windows.reduce(inputs, low, lax.max)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _sum(inputs: Array, windows: Windows) -> Array:
    if windows.tile:
        return windows.split(inputs, 0.0).sum(axis=windows.inner)

    def native(inputs: Array) -> Array:
        return windows.reduce(inputs, 0, lax.add)

    def portable(inputs: Array) -> Array:
        return functools.reduce(jnp.add, windows.views(inputs, 0.0))

    if 0 in windows.outputs:
        return native(inputs)
    return lax.platform_dependent(inputs, cpu=portable, default=native)
