"""The CPU's program for maxima of windows: compiled kernels, or elementwise operations on the windows' pixels."""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from accelnet.ops import kernels
from accelnet.ops.windows import Windows

# XLA's loops over fewer channels are not vectorized: of 8, forward and backward took 1.6 to 2 times as long as the
# kernels. Of 32 and 64 they take half as long, since they read what stands before and behind them in the same pass.
_FEW_CHANNELS = 16
_MOST_TAPS = 256  # of `Window` in pooling.h, and of a byte


def maxima(windows: Windows, inputs: Array) -> Array:
    """Return every window's maximum: as elementwise operations, or in a chain of layers as one of them.

    Example:
        >>> pairs = Windows(1, (2,), (2,), ((0, 0),), (2,), (0,))
        >>> maxima(pairs, jnp.arange(4.0).reshape(1, 4, 1)).ravel().tolist()
        [1.0, 3.0]
    """
    if not _fits(windows, inputs):
        return _views_max(inputs, windows)
    whole = windows.of_three_axes()
    kernel = kernels.Kernel("accelnet_pool", whole.numbers, kernels.Meaning(_views_max, (whole,)))
    (best,) = kernels.call(kernel, _three_axes(inputs, windows))
    return best.reshape(*inputs.shape[: windows.first], *windows.outputs, inputs.shape[-1])


def first_maxima(windows: Windows, inputs: Array) -> tuple[Array, Array]:
    """Return every window's maximum and which of its pixels is the first to have it, in row-major order.

    Example:
        >>> pairs = Windows(1, (2,), (2,), ((0, 0),), (2,), (0,))
        >>> [array.ravel().tolist() for array in first_maxima(pairs, jnp.array([3.0, 3.0, 1.0, 2.0]).reshape(1, 4, 1))]
        [[3.0, 2.0], [0, 1]]
    """
    if not _has_kernel(windows, inputs):
        return _first_max(windows, inputs)
    whole = windows.of_three_axes()
    kernel = kernels.Kernel("accelnet_max_pool", whole.numbers, _FirstMax(whole))
    shape = (*inputs.shape[: windows.first], *windows.outputs, inputs.shape[-1])
    best, tap = kernels.call(kernel, _three_axes(inputs, windows))
    return best.reshape(shape), tap.reshape(shape)


def first_maxima_gradient(windows: Windows, inputs: Array, tap: Array, gradient: Array) -> Array:
    """Give each window's gradient to the pixel that `first_maxima` found.

    Example:
        >>> pairs = Windows(1, (2,), (2,), ((0, 0),), (2,), (0,))
        >>> tap, gradient = jnp.array([0, 1], jnp.uint8).reshape(1, 2, 1), jnp.ones((1, 2, 1))
        >>> first_maxima_gradient(pairs, jnp.ones((1, 4, 1)), tap, gradient).ravel().tolist()
        [1.0, 0.0, 0.0, 1.0]
    """
    if not _has_kernel(windows, inputs):
        return _first_max_gradient(windows, inputs.shape, tap, gradient)
    whole, shape = windows.of_three_axes(), _three_axes(inputs, windows).shape
    kernel = kernels.Kernel("accelnet_max_pool_backward", whole.numbers, _Gradient(whole, shape))
    (out,) = kernels.call(kernel, _three_axes(tap, windows), _three_axes(gradient, windows))
    return out.reshape(inputs.shape)


def _fits(windows: Windows, inputs: Array) -> bool:
    return inputs.dtype == jnp.float32 and len(windows.window) <= 3 and math.prod(windows.window) <= _MOST_TAPS


def _has_kernel(windows: Windows, inputs: Array) -> bool:
    return _fits(windows, inputs) and inputs.shape[-1] < _FEW_CHANNELS


def _three_axes(images: Array, windows: Windows) -> Array:
    batch, spatial = math.prod(images.shape[: windows.first]), images.shape[windows.first : -1]
    return images.reshape(batch, *spatial, *(1,) * (3 - len(spatial)), images.shape[-1])


class _FirstMax(NamedTuple):
    """The meaning of the kernel that marks its maxima (hashable)."""

    windows: Windows

    def __call__(self, inputs: Array) -> tuple[Array, Array]:
        return _first_max(self.windows, inputs)


class _Gradient(NamedTuple):
    """The meaning of the kernel that gives gradients back to images of a shape (hashable)."""

    windows: Windows
    shape: tuple[int, ...]

    def __call__(self, tap: Array, gradient: Array) -> tuple[Array]:
        return (_first_max_gradient(self.windows, self.shape, tap, gradient),)


def _views_max(inputs: Array, windows: Windows) -> Array:
    return functools.reduce(jnp.maximum, windows.views(inputs, -np.inf))


def _first_max(windows: Windows, inputs: Array) -> tuple[Array, Array]:
    """Return every window's maximum and which of its pixels is the first to have it, in row-major order."""
    first, *rest = windows.views(inputs, -np.inf)
    best, tap = first, jnp.zeros(first.shape, windows.tap_dtype)
    for index, view in enumerate(rest, start=1):
        # One mask for both: with jnp.maximum for the second a pass over 12.8 MB takes 7.0 and not 4.5 ms. NaN is larger
        # than all.
        larger = (view > best) | jnp.isnan(view)
        tap = jnp.where(larger, jnp.asarray(index, tap.dtype), tap)
        best = jnp.where(larger, view, best)
    return best, tap


def _first_max_gradient(windows: Windows, shape: tuple[int, ...], tap: Array, gradient: Array) -> Array:
    """Give each window's gradient to the pixel that `_first_max` found."""
    zero = jnp.zeros((), gradient.dtype)
    if windows.tile:
        # Elementwise in the split layout: four times as fast as a sum of padded arrays.
        taps = jnp.arange(math.prod(windows.window), dtype=tap.dtype)
        sizes = [n for size in windows.window for n in (1, size)]
        taps = taps.reshape((1,) * windows.first + tuple(sizes) + (1,))
        tap, gradient = (jnp.expand_dims(array, windows.inner) for array in (tap, gradient))
        return windows.join(jnp.where(tap == taps, gradient, zero))
    parts = (
        windows.place(jnp.where(tap == jnp.asarray(index, tap.dtype), gradient, zero), start, shape)
        for index, start in enumerate(np.ndindex(*windows.window))
    )
    return functools.reduce(jnp.add, parts)
