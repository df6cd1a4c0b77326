"""Whole numbers in the place of a kernel, for which the outputs of a layer change least."""

from typing import Any

import numpy as np

from accelnet.ops.quantized import MOST

# Shares of a column's largest number that the outermost whole number may stand for.
_SHARES = {8: (1.0, 0.95, 0.9), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)}
_BLOCK = 64


def fitted(matrix: Any, second: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix so that its products with inputs of second moments H change least; see `quantize`.

    Args:
        matrix: float [depth, columns].
        second: H, float64 [depth, depth].
        bits: 8 or 4.

    Returns:
        int8 [depth, columns], and float32 [columns].

    Example:
        >>> whole, scale = fitted(np.array([[0.9], [0.4]]), np.array([[1.0, 0.9], [0.9, 1.0]]), 4)
        >>> whole.shape, scale.dtype.name
        ((2, 1), 'float32')
    """
    weights, most = np.asarray(matrix, np.float64), MOST[bits]
    # A feature that is always zero has an error of none; the rest is kept well conditioned.
    damped = second + np.eye(len(second)) * max(0.01 * np.trace(second) / len(second), 1e-12)
    largest = np.maximum(np.abs(weights).max(0), 1e-30)
    diagonal = np.diag(damped)[:, None]

    def rounded(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.clip(np.round(values / scale), -most, most)

    candidates = [largest * share / most for share in _SHARES[bits]]
    errors = [(diagonal * (rounded(weights, scale) * scale - weights) ** 2).sum(0) for scale in candidates]
    scale = np.choose(np.argmin(errors, 0), candidates)
    # U'U = H^-1: row i of U is what the rows behind i owe its error, those before it being fixed.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, whole = weights.copy(), np.empty_like(weights)
    for first in range(0, len(left), _BLOCK):  # errors reach the rows behind a block at once
        last = min(first + _BLOCK, len(left))
        errors = np.empty((last - first, left.shape[1]))
        for i in range(first, last):
            whole[i] = rounded(left[i], scale)
            errors[i - first] = (left[i] - whole[i] * scale) / upper[i, i]
            left[i + 1 : last] -= np.outer(upper[i, i + 1 : last], errors[i - first])
        left[last:] -= upper[first:last, last:].T @ errors
    products = damped @ whole
    own = (whole * products).sum(0)
    best = (weights * products).sum(0) / np.where(own > 0, own, 1)
    return whole.astype(np.int8), np.where(best > 0, best, scale).astype(np.float32)
