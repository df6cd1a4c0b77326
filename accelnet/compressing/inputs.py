"""What products with a parameter multiply it by, as rows: of dense products, convolutions and recurrences."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet.compressing.origins import ParameterElements, Use, use_of
from accelnet.ops.geometry import Geometry

Axes = Sequence[int]


class Inputs(NamedTuple):
    """Describe the inputs of a product.

    Attributes:
        use: Part of a parameter that they are multiplied by.
        stride: As that of its `ParameterElements`.
        num_rows: Number of inputs.
        rows: Function that gives those of some numbers, int [n] or None for all, as [groups, n, features].
        weights: How often each counts, float [num_rows]; None for once.
    """

    use: Use
    stride: int
    num_rows: int
    rows: Callable[[Array | None], Array]
    weights: Array | None = None


def of_product(
    origin: ParameterElements, data: Array, contracted: tuple[Axes, Axes], batch: tuple[Axes, Axes]
) -> tuple[Inputs | None, int | None]:
    """Describe a product of a parameter and data, whose axes are given in this order.

    Returns:
        The inputs, None where a part of an axis is contracted, and the axis of the data along which they lie, None
        where there are several.

    Example:
        >>> from accelnet.compressing.origins import origin_of
        >>> inputs, axis = of_product(origin_of("kernel", (3, 4)), jnp.ones((2, 3)), ((0,), (1,)), ((), ()))
        >>> inputs.num_rows, inputs.rows(None).shape, axis
        (2, (1, 2, 3), 0)
    """
    shape = origin.indices.shape
    own = np.transpose(origin.indices, [*batch[0], *contracted[0], *_others(len(shape), *batch[0], *contracted[0])])
    groups, features = (math.prod(shape[axis] for axis in axes[0]) for axes in (batch, contracted))
    use = use_of(origin, own.reshape(groups, features, -1)) if own.size else None
    free = _others(data.ndim, *batch[1], *contracted[1])
    if use is None:
        return None, None
    num_rows, order = math.prod(data.shape[axis] for axis in free), use.order

    def rows(numbers: Array | None) -> Array:
        flat = jnp.transpose(data, [*batch[1], *free, *contracted[1]]).reshape(groups, num_rows, features)
        return (flat if numbers is None else flat[:, numbers])[:, :, order]

    return Inputs(use, origin.stride, num_rows, rows), free[0] if len(free) == 1 else None


def of_convolution(origin: ParameterElements, indices: np.ndarray, images: Array, geometry: Geometry) -> Inputs | None:
    """Describe a convolution: its inputs are patches.

    Args:
        origin: Origin of the kernels.
        indices: Its indices as [spatial..., C / groups, O].
        images: Images [N, spatial..., C].
        geometry: Geometry of the convolution.
    """
    taps, (width, outputs) = indices.shape[:-2], indices.shape[-2:]
    groups, num_taps = geometry.groups, math.prod(taps)
    use = use_of(origin, indices.reshape(num_taps * width, groups, outputs // groups).swapaxes(0, 1))
    sizes = (len(images), *geometry.output_sizes(images.shape, indices.shape))
    if use is None or 0 in sizes:
        return None
    order = use.order

    def rows(numbers: Array | None) -> Array:
        pads = zip(geometry.padding, geometry.lhs_dilation, strict=True)
        config = [(0, 0, 0), *((*pad, spread - 1) for pad, spread in pads), (0, 0, 0)]
        padded = lax.pad(images, jnp.zeros((), images.dtype), config)
        number, *pixel = jnp.unravel_index(jnp.arange(math.prod(sizes)) if numbers is None else numbers, sizes)
        # One gather: as slices, one for each tap, nine convolutions took 13 s to compile.
        offsets = np.indices(taps).reshape(len(taps), 1, num_taps)
        places = [number[:, None]]
        for axis, (step, spread) in enumerate(zip(geometry.strides, geometry.rhs_dilation, strict=True)):
            places.append(pixel[axis][:, None] * step + offsets[axis] * spread)
        found = padded[tuple(places)].reshape(-1, num_taps, groups, width)
        return jnp.moveaxis(found, 2, 0).reshape(groups, -1, num_taps * width)[:, :, order]

    return Inputs(use, origin.stride, math.prod(sizes), rows)


def of_recurrence(
    origin: ParameterElements, hiddens: Array, first: Array, *, reverse: bool, valid: Array | None
) -> Inputs | None:
    """Describe the products of a recurrent kernel: their inputs are the states before each step.

    Args:
        origin: Origin of the kernel.
        hiddens: States after each step, [steps, batch, hidden].
        first: State before the first one, [batch, hidden].
        reverse: Whether the first step is the last.
        valid: bool [steps, batch], where a step counts; everywhere if None.
    """
    use = use_of(origin, origin.indices[None])
    if use is None:
        return None
    before = jnp.concatenate([hiddens[1:], first[None]] if reverse else [first[None], hiddens[:-1]])
    flat, order = before.reshape(-1, before.shape[-1]), use.order
    weights = None if valid is None else valid.reshape(-1).astype(jnp.float32)

    def rows(numbers: Array | None) -> Array:
        return (flat if numbers is None else flat[numbers])[None, :, order]

    return Inputs(use, origin.stride, len(flat), rows, weights)


def _others(rank: int, *axes: int) -> list[int]:
    return [axis for axis in range(rank) if axis not in axes]
