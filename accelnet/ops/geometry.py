"""The geometry of a channels-last convolution: shapes, views, and the convolution that is its transpose."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

Shape = tuple[int, ...]


class Geometry(NamedTuple):
    """Hold everything about a channels-last convolution that is known before its arrays are (hashable)."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: Any = None
    preferred_element_type: Any = None

    def output_sizes(self, lhs_shape: Shape, rhs_shape: Shape) -> Shape:
        """Return the output's spatial sizes for images [N, spatial..., C] and kernels [spatial..., C / groups, O]."""
        sizes = []
        for axis, size in enumerate(lhs_shape[1:-1]):
            dilated = max(0, (size - 1) * self.lhs_dilation[axis] + 1) + sum(self.padding[axis])
            extent = (rhs_shape[axis] - 1) * self.rhs_dilation[axis] + 1
            sizes.append(max(0, (dilated - extent) // self.strides[axis] + 1))
        return tuple(sizes)

    def transposed(self, lhs_shape: Shape, rhs_shape: Shape) -> "Geometry":
        """Return the geometry of the input's gradient: a convolution of the output's with `transposed_kernels`."""
        padding, out_sizes = [], self.output_sizes(lhs_shape, rhs_shape)
        for axis, (size, out) in enumerate(zip(lhs_shape[1:-1], out_sizes, strict=True)):
            low, _ = self.padding[axis]
            extent = (rhs_shape[axis] - 1) * self.rhs_dilation[axis] + 1
            before = extent - 1 - low
            needed = (size - 1) * self.lhs_dilation[axis] + extent
            padding.append((before, needed - before - (out - 1) * self.strides[axis] - 1))
        return self._replace(strides=self.lhs_dilation, padding=tuple(padding), lhs_dilation=self.strides)

    def of_three_axes(self) -> "Geometry":
        """Return the geometry with axes of one pixel behind its own, of which it has at most three."""
        ones = (1,) * (3 - len(self.strides))
        return self._replace(
            strides=self.strides + ones,
            padding=self.padding + ((0, 0),) * len(ones),
            lhs_dilation=self.lhs_dilation + ones,
            rhs_dilation=self.rhs_dilation + ones,
        )


def resolve(
    lhs_shape: Shape,
    rhs_shape: Shape,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    groups: int,
) -> Geometry:
    """Make the geometry of a channels-last convolution from the arguments of `jax.lax.conv_general_dilated`."""
    ones = (1,) * len(strides)
    lhs_dilation, rhs_dilation = (tuple(map(int, given or ones)) for given in (lhs_dilation, rhs_dilation))
    strides = tuple(map(int, strides))
    if isinstance(padding, str):
        extents = [(k - 1) * d + 1 for k, d in zip(rhs_shape, rhs_dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs_shape[1:-1], extents, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return Geometry(strides, pads, lhs_dilation, rhs_dilation, int(groups))


def transposed_kernels(rhs: Array, groups: int) -> Array:
    """Mirror kernels [spatial..., C / groups, O] and exchange their channels: [spatial..., O / groups, C]."""
    *taps, width, features = rhs.shape
    mirrored = jnp.flip(rhs, range(len(taps))).reshape(*taps, width, groups, features // groups)
    return jnp.moveaxis(mirrored, -1, -3).swapaxes(-1, -2).reshape(*taps, features // groups, groups * width)


def views(
    lhs: Array, starts: Sequence[Sequence[int]], sizes: Sequence[int], strides: Sequence[int], fill: float = 0.0
) -> list[Array]:
    """Return, for every start, the pixels start, start + stride, ... of each spatial axis of images, [N, *sizes, C].

    A start may lie before or behind the image, which `fill` surrounds.

    Example:
        >>> line = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
        >>> [view.ravel().tolist() for view in views(line, [[-1], [2]], [3], [1])]
        [[0.0, 1.0, 2.0], [3.0, 4.0, 0.0]]
    """
    lows, pads = [], []
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        low = min(start[axis] for start in starts)
        end = max(start[axis] for start in starts) + (size - 1) * stride + 1
        lows.append(low)
        pads.append((-low, end - lhs.shape[axis + 1], 0))
    padded = lax.pad(lhs, jnp.asarray(fill, lhs.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    cut = []
    for start in starts:
        offsets = [s - low for s, low in zip(start, lows, strict=True)]
        ends = [o + (n - 1) * s + 1 for o, n, s in zip(offsets, sizes, strides, strict=True)]
        limits = (padded.shape[0], *ends, padded.shape[-1])
        cut.append(lax.slice(padded, (0, *offsets, 0), limits, (1, *strides, 1)))
    return cut


def interleave(parts: Sequence[Array], factors: Sequence[int], sizes: Sequence[int]) -> Array:
    """Undo a split of images into every `factor`-th pixel: make images [N, *sizes, C] of tiles of `factors` pixels.

    Of every pixel within a tile there is a part, in row-major order; what the tiles hold beyond the sizes is cut off.

    Example:
        >>> even, odd = jnp.array([0.0, 2.0]).reshape(1, 2, 1), jnp.array([1.0, 3.0]).reshape(1, 2, 1)
        >>> interleave([even, odd], [2], [3]).ravel().tolist()
        [0.0, 1.0, 2.0]
    """
    if len(parts) == 1:
        return parts[0]
    rank = len(factors)
    # Stacked first and transposed then: XLA:CPU is slow at a concatenation along inner axes.
    stacked = jnp.stack(parts).reshape(*factors, *parts[0].shape)
    order = [rank, *(axis for pair in zip(range(rank + 1, 2 * rank + 1), range(rank), strict=True) for axis in pair)]
    joined = stacked.transpose(*order, 2 * rank + 1)
    tiles = parts[0].shape[1:-1]
    whole = joined.reshape(parts[0].shape[0], *(n * f for n, f in zip(tiles, factors, strict=True)), -1)
    return lax.slice(whole, (0,) * whole.ndim, (whole.shape[0], *sizes, whole.shape[-1]))
