"""The windows of a pooling: where they lie in an image, and an image as their pixels."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet.ops.geometry import views


class Windows(NamedTuple):
    """Hold what is known of a pooling before its image is (hashable).

    Attributes:
        first: The first spatial axis.
        window: Size of the window per axis.
        strides: Step of the window per axis.
        pads: Pixels of padding in front and behind, per axis.
        counts: Whole windows per axis, side by side.
        remainders: Pixels per axis beyond the last whole window.
    """

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

    def of_three_axes(self) -> "Windows":
        """Return the same windows on images [N, spatial axes and axes of one pixel, C]."""
        ones = (1,) * (3 - len(self.window))
        return Windows(
            1, (*self.window, *ones), (*self.strides, *ones), (*self.pads, *((0, 0) for _ in ones)),
            (*self.counts, *ones), (*self.remainders, *(0 for _ in ones)),
        )  # fmt: skip

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
