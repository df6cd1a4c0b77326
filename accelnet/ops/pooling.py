"""Pooling over windows, on the CPU by compiled kernels or by elementwise operations on the windows' pixels."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet.ops import kernels
from accelnet.ops.geometry import views

# XLA's loops over fewer channels are not vectorized: of 8, forward and backward took 1.6 to 2 times as long as the
# kernels. Of 32 and 64 they take half as long, since they read what stands before and behind them in the same pass.
_FEW_CHANNELS = 16

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


class _Windows(NamedTuple):
    """Hold what is known of a pooling before its image is (hashable)."""

    first: int  # the first spatial axis
    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]  # whole windows per axis, side by side
    remainders: tuple[int, ...]  # pixels per axis beyond the last whole window

    @property
    def tile(self) -> bool:
        return self.strides == self.window and 0 not in self.counts

    @property
    def inner(self) -> tuple[int, ...]:
        """The axes of `split` that lie within a window."""
        return tuple(self.first + 1 + 2 * axis for axis in range(len(self.window)))

    @property
    def outputs(self) -> tuple[int, ...]:
        """The number of windows per axis, 0 where not one fits."""
        sizes = zip(self.counts, self.window, self.remainders, self.strides, strict=True)
        return tuple(max(0, (count * size + rest - size) // stride + 1) for count, size, rest, stride in sizes)

    def of_three_axes(self) -> "_Windows":
        """Return the same windows on images [N, spatial axes and axes of one pixel, C]."""
        ones = (1,) * (3 - len(self.window))
        return _Windows(
            1, (*self.window, *ones), (*self.strides, *ones), (*self.pads, *((0, 0) for _ in ones)),
            (*self.counts, *ones), (*self.remainders, *(0 for _ in ones)),
        )  # fmt: skip

    def has_kernel(self, inputs: Array) -> bool:
        """Say whether there is a kernel for the images, and it is faster than XLA's loops."""
        few = inputs.shape[-1] < _FEW_CHANNELS
        return few and inputs.dtype == jnp.float32 and len(self.window) <= 3 and math.prod(self.window) <= 256

    @property
    def numbers(self) -> tuple[int, ...]:
        """What kernels.cc asks of a pooling of three axes."""
        return (*self.window, *self.strides, *(low for low, _ in self.pads))

    @property
    def tap_dtype(self) -> Any:
        """The shortest type that numbers the pixels of a window."""
        return np.min_scalar_type(math.prod(self.window) - 1)

    def pad(self, inputs: Array, config: Sequence[tuple[int, int, int]], fill: float = 0.0) -> Array:
        """Pad the spatial axes as `lax.pad` does."""
        return lax.pad(inputs, jnp.asarray(fill, inputs.dtype), [(0, 0, 0)] * self.first + [*config, (0, 0, 0)])

    def split(self, inputs: Array, fill: float) -> Array:
        """Return [batch..., count, window, count, window, ..., C], without pixels beyond the last window."""
        config = [(low, high - rest, 0) for (low, high), rest in zip(self.pads, self.remainders, strict=True)]
        sizes = [n for pair in zip(self.counts, self.window, strict=True) for n in pair]
        return self.pad(inputs, config, fill).reshape(*inputs.shape[: self.first], *sizes, inputs.shape[-1])

    def join(self, split: Array) -> Array:
        """Undo `split`; pixels beyond the last window are zeros."""
        sizes = [n * w for n, w in zip(self.counts, self.window, strict=True)]
        whole = split.reshape(*split.shape[: self.first], *sizes, split.shape[-1])
        return self.pad(
            whole, [(-low, rest - high, 0) for (low, high), rest in zip(self.pads, self.remainders, strict=True)]
        )

    def views(self, inputs: Array, fill: float) -> list[Array]:
        """Return, for every pixel of a window in row-major order, that pixel of all windows."""
        lows = [low for low, _ in self.pads]
        starts = [[t - low for t, low in zip(tap, lows, strict=True)] for tap in np.ndindex(*self.window)]
        batch = inputs.shape[: self.first]
        images = inputs.reshape(math.prod(batch), *inputs.shape[self.first :])
        cut = views(images, starts, self.outputs, self.strides, fill)
        return [view.reshape(*batch, *view.shape[1:]) for view in cut]

    def place(self, view: Array, start: tuple[int, ...], shape: tuple[int, ...]) -> Array:
        """Undo one of `views`: put its pixels where they came from, in zeros of this shape."""
        config = []
        for first, n, step, (low, _), size in zip(
            start, self.outputs, self.strides, self.pads, shape[self.first : -1], strict=True
        ):
            begin = first - low
            config.append((begin, size - begin - (n - 1) * step - 1, step - 1))
        return self.pad(view, config)

    def reduce(self, inputs: Array, initial: float, operation: Callable[..., Array]) -> Array:
        """Reduce every window by XLA's own operation."""
        around = (1,) * self.first
        window, strides = (*around, *self.window, 1), (*around, *self.strides, 1)
        pads = [(0, 0)] * self.first + [*self.pads, (0, 0)]
        return lax.reduce_window(inputs, np.array(initial, inputs.dtype), operation, window, strides, pads)


def _resolve(
    shape: tuple[int, ...], window: Sequence[int], strides: Sequence[int] | None, padding: Padding
) -> _Windows:
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
    return _Windows(
        first=first,
        window=tuple(window),
        strides=tuple(strides),
        pads=tuple((int(low), int(high)) for low, high in pads),
        counts=tuple(n // w for n, w in zip(padded, window, strict=True)),
        remainders=tuple(n % w for n, w in zip(padded, window, strict=True)),
    )


# One trace per shape also outside jit: an eager platform_dependent would compile anew on every call.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _max(inputs: Array, windows: _Windows) -> Array:
    if jnp.issubdtype(inputs.dtype, jnp.floating) and 0 not in windows.outputs:
        return _portable_max(inputs, windows)
    return _reduce_max(inputs, windows)


# The platform is chosen within the two passes: a `platform_dependent` that autodiff takes apart keeps what the
# backward pass of every platform needs, zeros for all but one (10 ms of a CNN step of 113).
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _portable_max(inputs: Array, windows: _Windows) -> Array:
    return lax.platform_dependent(
        inputs,
        cpu=functools.partial(_cpu_max, windows),
        default=lambda inputs: _reduce_max(inputs, windows),
    )


def _portable_max_forward(inputs: Array, windows: _Windows) -> tuple[Array, tuple[Array, Array]]:
    def native(inputs: Array) -> tuple[Array, Array]:
        best = _reduce_max(inputs, windows)
        return best, jnp.zeros(best.shape, windows.tap_dtype)

    best, tap = lax.platform_dependent(inputs, cpu=functools.partial(_cpu_first_max, windows), default=native)
    return best, (inputs, tap)


def _portable_max_backward(windows: _Windows, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    def native(inputs: Array, _: Array, gradient: Array) -> Array:
        return jax.vjp(lambda inputs: _reduce_max(inputs, windows), inputs)[1](gradient)[0]

    def portable(inputs: Array, tap: Array, gradient: Array) -> Array:
        return _cpu_gradient(windows, inputs, tap, gradient)

    return (lax.platform_dependent(*residuals, gradient, cpu=portable, default=native),)


_portable_max.defvjp(_portable_max_forward, _portable_max_backward)


def _cpu_max(windows: _Windows, inputs: Array) -> Array:
    if inputs.dtype != jnp.float32 or len(windows.window) > 3:
        return _views_max(inputs, windows)
    whole = windows.of_three_axes()
    kernel = kernels.Kernel("accelnet_pool", whole.numbers, kernels.Meaning(_views_max, (whole,)))
    (best,) = kernels.call(kernel, _three_axes(inputs, windows))
    return best.reshape(*inputs.shape[: windows.first], *windows.outputs, inputs.shape[-1])


def _cpu_first_max(windows: _Windows, inputs: Array) -> tuple[Array, Array]:
    if not windows.has_kernel(inputs):
        return _first_max(windows, inputs)
    whole = windows.of_three_axes()
    kernel = kernels.Kernel("accelnet_max_pool", whole.numbers, _FirstMax(whole))
    shape = (*inputs.shape[: windows.first], *windows.outputs, inputs.shape[-1])
    best, tap = kernels.call(kernel, _three_axes(inputs, windows))
    return best.reshape(shape), tap.reshape(shape)


def _cpu_gradient(windows: _Windows, inputs: Array, tap: Array, gradient: Array) -> Array:
    if not windows.has_kernel(inputs):
        return _first_max_gradient(windows, inputs.shape, tap, gradient)
    whole, shape = windows.of_three_axes(), _three_axes(inputs, windows).shape
    kernel = kernels.Kernel("accelnet_max_pool_backward", whole.numbers, _Gradient(whole, shape))
    (out,) = kernels.call(kernel, _three_axes(tap, windows), _three_axes(gradient, windows))
    return out.reshape(inputs.shape)


def _three_axes(images: Array, windows: _Windows) -> Array:
    batch, spatial = math.prod(images.shape[: windows.first]), images.shape[windows.first : -1]
    return images.reshape(batch, *spatial, *(1,) * (3 - len(spatial)), images.shape[-1])


class _FirstMax(NamedTuple):
    """The meaning of the kernel that marks its maxima (hashable)."""

    windows: _Windows

    def __call__(self, inputs: Array) -> tuple[Array, Array]:
        return _first_max(self.windows, inputs)


class _Gradient(NamedTuple):
    """The meaning of the kernel that gives gradients back to images of a shape (hashable)."""

    windows: _Windows
    shape: tuple[int, ...]

    def __call__(self, tap: Array, gradient: Array) -> tuple[Array]:
        return (_first_max_gradient(self.windows, self.shape, tap, gradient),)


def _views_max(inputs: Array, windows: _Windows) -> Array:
    return functools.reduce(jnp.maximum, windows.views(inputs, -np.inf))


def _first_max(windows: _Windows, inputs: Array) -> tuple[Array, Array]:
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


def _first_max_gradient(windows: _Windows, shape: tuple[int, ...], tap: Array, gradient: Array) -> Array:
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


def _reduce_max(inputs: Array, windows: _Windows) -> Array:
    low = -np.inf if jnp.issubdtype(inputs.dtype, jnp.floating) else jnp.iinfo(inputs.dtype).min
    return windows.reduce(inputs, low, lax.max)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _sum(inputs: Array, windows: _Windows) -> Array:
    if windows.tile:
        return windows.split(inputs, 0.0).sum(axis=windows.inner)

    def native(inputs: Array) -> Array:
        return windows.reduce(inputs, 0, lax.add)

    def portable(inputs: Array) -> Array:
        return functools.reduce(jnp.add, windows.views(inputs, 0.0))

    if 0 in windows.outputs:
        return native(inputs)
    return lax.platform_dependent(inputs, cpu=portable, default=native)
