"""Convolution by Winograd's minimal filtering: kernels of three taps per axis, stride 1."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet.ops.geometry import Geometry, Shape, interleave, views

# Per tile size m, the matrices of F(m, 3): of the input, the kernel and the output.
_MATRICES = {
    2: (
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    ),
    4: (
        np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ]
        ),
        np.array(
            [
                [1 / 4, 0, 0],
                [-1 / 6, -1 / 6, -1 / 6],
                [-1 / 6, 1 / 6, -1 / 6],
                [1 / 24, 1 / 12, 1 / 6],
                [1 / 24, -1 / 12, 1 / 6],
                [0, 0, 1],
            ]
        ),
        np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
    ),
}


def fits(rhs_shape: Shape, geometry: Geometry) -> bool:
    """Say whether a convolution has what Winograd's needs: three taps per axis, stride 1, no dilation, one group."""
    ones = (1,) * (len(rhs_shape) - 2)
    return (
        all(size == 3 for size in rhs_shape[:-2])
        and geometry.groups == 1
        and geometry.strides == geometry.lhs_dilation == geometry.rhs_dilation == ones
    )


def convolve(lhs: Array, rhs: Array, geometry: Geometry, tile: int) -> Array:
    """Convolve by products per point of a transform of tiles.

    For each tile of `tile` output pixels per axis, with the matrices B, G and A of F(tile, 3):

        out = A^T [(G rhs G^T) * (B^T lhs B)] A

    where * is, for each of the (tile + 2)^axes points, one product over the channels: in two dimensions
    16 products for 4 pixels instead of 36 (tile 2), or 36 for 16 instead of 144 (tile 4).

    Args:
        lhs: images [N, spatial..., C], of at least float32.
        rhs: kernels [3..., C, O].
        geometry: one that `fits`.
        tile: 2, or 4, which rounds more: within 1e-5 of the largest output with 64 channels, as the tests ask.

    Returns:
        [N, spatial..., O].

    Source: Lavin and Gray, Fast algorithms for convolutional neural networks (2016), section 4.
    """
    _, kernel, output = _MATRICES[tile]
    rank = lhs.ndim - 2
    points = _input_points(lhs, rhs.shape, geometry, tile)
    matrices = _points(rhs, kernel, range(rank), [1] * rank, 1)
    products = [
        lax.dot_general(p, m.reshape(m.shape[-2:]), (((p.ndim - 1,), (0,)), ((), ())), precision=geometry.precision)
        for p, m in zip(points, matrices, strict=True)
    ]
    pixels = _contract(products, output, rank)
    return interleave(pixels, (tile,) * rank, geometry.output_sizes(lhs.shape, rhs.shape))


def kernel_gradient(lhs: Array, gradient: Array, rhs_shape: Shape, geometry: Geometry, tile: int) -> Array:
    """Compute the gradient of the kernels, with the transposed transforms of `convolve`.

    Args:
        lhs: images [N, spatial..., C].
        gradient: of the output, [N, spatial..., O].
        rhs_shape: (3..., C, O).
        geometry: one that `fits`.
        tile: as in `convolve`.

    Returns:
        [3..., C, O].
    """
    _, kernel, output = _MATRICES[tile]
    rank = lhs.ndim - 2
    points = _input_points(lhs, rhs_shape, geometry, tile)
    tiles = _num_tiles(gradient.shape[1:-1], tile)
    (whole,) = views(gradient, [[0] * rank], [n * tile for n in tiles], [1] * rank)
    gradient_points = _points(whole, output.T, range(1, rank + 1), tiles, tile)
    # One axis is contracted, not three: for three XLA:CPU transposes both operands first.
    rows = lambda array: array.reshape(-1, array.shape[-1])  # noqa: E731
    products = [
        lax.dot_general(rows(p), rows(g), (((0,), (0,)), ((), ())), precision=geometry.precision)
        for p, g in zip(points, gradient_points, strict=True)
    ]
    return jnp.stack(_contract(products, kernel.T, rank)).reshape(rhs_shape)


def _num_tiles(sizes: Sequence[int], tile: int) -> list[int]:
    return [-(-size // tile) for size in sizes]


def _input_points(lhs: Array, rhs_shape: Shape, geometry: Geometry, tile: int) -> list[Array]:
    rank = lhs.ndim - 2
    tiles = _num_tiles(geometry.output_sizes(lhs.shape, rhs_shape), tile)
    start = [-low for low, _ in geometry.padding]
    (padded,) = views(lhs, [start], [n * tile + 2 for n in tiles], [1] * rank)
    return _points(padded, _MATRICES[tile][0], range(1, rank + 1), tiles, tile)


def _points(array: Array, matrix: np.ndarray, axes: Sequence[int], tiles: Sequence[int], tile: int) -> list[Array]:
    """Cut overlapping tiles along the axes and multiply each axis of a tile by a matrix [points, pixels]."""
    points = [array]
    for axis, num in zip(axes, tiles, strict=True):
        last = (num - 1) * tile + 1
        cuts = [
            [lax.slice_in_dim(point, first, first + last, tile, axis) for first in range(matrix.shape[1])]
            for point in points
        ]
        points = [_combine(row, pixels) for pixels in cuts for row in matrix]
    return points


def _contract(arrays: Sequence[Array], matrix: np.ndarray, rank: int) -> list[Array]:
    """Multiply every axis of a row-major grid of arrays by a matrix [new, old]."""
    for _ in range(rank):
        # The slowest axis becomes the fastest; after `rank` turns the order is again the first one.
        rest = len(arrays) // matrix.shape[1]
        arrays = [_combine(row, arrays[first::rest]) for first in range(rest) for row in matrix]
    return list(arrays)


def _combine(coefficients: np.ndarray, arrays: Sequence[Array]) -> Array:
    terms = []
    for coefficient, array in zip(coefficients, arrays, strict=True):
        if coefficient == 1:
            terms.append(array)
        elif coefficient:
            terms.append(array * np.asarray(coefficient, array.dtype))
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
