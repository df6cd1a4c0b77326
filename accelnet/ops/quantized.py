"""Products of floats with weights of 8 or 4 bits, whose inputs are rounded to 8 bits row by row.

Weights are whole numbers with one scale for each column, in the layout that processors multiply by: panels of 16
columns, in each four depths of a column side by side, and of 4 bits two in a byte. Every row of the inputs is divided
by its own largest number, so nothing has to be calibrated, and a row's result does not depend on the others. With one
range for all rows, of 1,000 others, the error of the hidden layers' products was two to three times as large, with a
zero point 1.1 to 1.5 times (a Fashion-MNIST MLP, `scripts/bench_bits.py --ranges`).
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet.errors import UserError
from accelnet.ops import kernels

# Columns of a panel, and depths that lie side by side in it.
_PANEL, _QUAD = 16, 4
MOST = {8: 127, 4: 7}
# Of the largest number of a column, as what the outermost whole number stands for.
_SHARES = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6)}
_SMALLEST, _LARGEST, _SHARE = np.float32(1e-30), np.float32(3e38), np.float32(1 / 127)


def pack(whole: Any, bits: int) -> Array:
    """Lay whole numbers out as the kernels read them.

    Args:
        whole: [depth, columns], integers between -127 and 127, or of 4 bits between -7 and 7.
        bits: 8 or 4.

    Returns:
        int8 [ceil(columns / 16), ceil(depth / 4), 16, 4]; of 4 bits uint8 [ceil(columns / 16), ceil(depth / 8), 16, 4],
        each byte two numbers plus 8, four depths apart. What lies beyond depth and columns is 0.

    Raises:
        UserError: for other bits.

    Example:
        >>> pack(jnp.ones((9, 10), jnp.int8), 8).shape, pack(jnp.ones((9, 10), jnp.int8), 4).shape
        ((1, 3, 16, 4), (1, 2, 16, 4))
    """
    if bits not in MOST:
        raise UserError(f"bits is {bits!r}, expected 8 or 4")
    step = _QUAD if bits == 8 else 2 * _QUAD
    depth, columns = whole.shape
    padded = jnp.pad(jnp.asarray(whole, jnp.int8), ((0, -depth % step), (0, -columns % _PANEL)))
    quads = padded.reshape(-1, _QUAD, padded.shape[1] // _PANEL, _PANEL).transpose(2, 0, 3, 1)
    if bits == 8:
        return quads
    shifted = (quads + 8).astype(jnp.uint8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def unpack(packed: Array, depth: int, columns: int) -> Array:
    """Undo `pack`; int8 [depth, columns].

    Example:
        >>> unpack(pack(jnp.array([[1], [-3]]), 4), 2, 1).tolist()
        [[1], [-3]]
    """
    whole = _quads(packed).transpose(1, 3, 0, 2)
    return whole.reshape(whole.shape[0] * _QUAD, -1)[:depth, :columns]


def nearest(matrix: Any, bits: int) -> tuple[Array, Array]:
    """Round a matrix to whole numbers, with the scale of each column that has the least squared error.

    Scales are the largest number of a column over 127 or 7, and shares of it, which cut the largest numbers off.

    Args:
        matrix: float [depth, columns].
        bits: 8 or 4.

    Returns:
        int8 [depth, columns], and float32 [columns].

    Example:
        >>> whole, scale = nearest(jnp.array([[1.0], [-0.5], [0.25]]), 8)
        >>> whole.ravel().tolist(), round(float(scale[0]), 4)
        ([127, -64, 32], 0.0079)
    """
    matrix = jnp.asarray(matrix, jnp.float32)
    most = MOST[bits]
    largest = jnp.maximum(jnp.max(jnp.abs(matrix), axis=0), _SMALLEST)

    def error(share: Array) -> Array:
        scale = largest * (share / most)
        return jnp.sum((to_whole(matrix, scale, bits) * scale[None, :] - matrix) ** 2, axis=0)

    shares = jnp.asarray(_SHARES[bits], jnp.float32)
    scale = largest * (shares[jnp.argmin(lax.map(error, shares), axis=0)] / most)
    return to_whole(matrix, scale, bits).astype(jnp.int8), scale


def to_whole(matrix: Array, scale: Array, bits: int) -> Array:
    """Round a matrix [depth, columns] by given scales [columns] to whole numbers, as floats.

    Example:
        >>> to_whole(jnp.array([[3.0, -9.0]]), jnp.ones(2), 4).tolist()
        [[3.0, -7.0]]
    """
    return jnp.clip(jnp.round(matrix / scale[None, :]), -MOST[bits], MOST[bits])


def _quads(packed: Array) -> Array:
    if packed.dtype != jnp.uint8:
        return packed
    halves = jnp.stack([packed & 15, packed >> 4], axis=2).astype(jnp.int8) - jnp.int8(8)
    return halves.reshape(packed.shape[0], -1, _PANEL, _QUAD)


def round_rows(x: Array) -> tuple[Array, Array]:
    """Round rows to whole numbers between -127 and 127, float32, and return the scale of each row, [..., 1].

    The scale of a row that holds what is no number is NaN.

    Example:
        >>> whole, scale = round_rows(jnp.array([[254.0, -1.0, 3.0]]))
        >>> whole.tolist(), scale.tolist()
        ([[127.0, -0.0, 2.0]], [[2.0]])
    """
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    finite = largest <= _LARGEST
    factor = jnp.where((largest >= _SMALLEST) & finite, 127 / jnp.maximum(largest, _SMALLEST), 0)
    return jnp.round(jnp.where(finite, x * factor, 0)), jnp.where(finite, largest * _SHARE, jnp.nan)


def quantized_dot(x: Array, packed: Array, scale: Array, bias: Array | None = None) -> Array:
    """Multiply rows by weights of 8 or 4 bits.

        y = s_x (q(x) W) s_W + b,   q(x) = round(x / s_x),   s_x = max |x| / 127 of each row

    On the CPU a compiled kernel, whose sums of whole numbers are exact; on other platforms a product of int8 with sums
    of int32. Its derivative is that of the product without rounding (straight-through): rounding has none.

    Args:
        x: float [..., depth]. It is computed with in float32.
        packed: Weights [depth, columns], as of `pack`.
        scale: float32 [columns], what each column is multiplied by.
        bias: float32 [columns], or None.

    Returns:
        float [..., columns], in the dtype of x.

    Raises:
        UserError: if shapes do not fit.

    Example:
        >>> weights = pack(jnp.array([[1, 2], [3, -4]], jnp.int8), 8)
        >>> quantized_dot(jnp.array([[127.0, 0.0]]), weights, jnp.array([1.0, 0.5])).tolist()
        [[127.0, 127.0]]
    """
    step = _QUAD if packed.dtype == jnp.int8 else 2 * _QUAD
    expected = (-(-scale.shape[0] // _PANEL), -(-x.shape[-1] // step), _PANEL, _QUAD)
    if packed.shape != expected:
        raise UserError(
            f"packed weights have shape {packed.shape}, expected {expected} for {x.shape[-1]} features and "
            f"{scale.shape[0]} columns"
        )
    rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    return _straight(rows, packed, scale, bias).reshape(*x.shape[:-1], -1).astype(x.dtype)


@jax.custom_jvp
def _straight(x: Array, packed: Array, scale: Array, bias: Array | None) -> Array:
    operands = (x, packed, scale) if bias is None else (x, packed, scale, bias)
    return _portable(instruction_set(), *operands)


@functools.partial(_straight.defjvp)
def _derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, packed, scale, bias = primals
    dx, _, dscale, dbias = tangents
    out = _straight(x, packed, scale, bias)
    weights = unpack(packed, x.shape[-1], scale.shape[0]).astype(jnp.float32)
    # What a column's scale multiplies.
    multiplied = out if bias is None else out - bias[None, :]
    tangent = dx @ (weights * scale[None, :]) + multiplied / scale[None, :] * dscale[None, :]
    return out, tangent if bias is None else tangent + dbias[None, :]


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _portable(number: int, *operands: Array) -> Array:
    cpu = functools.partial(_by_kernel, number)
    return lax.platform_dependent(*operands, cpu=cpu, default=product_of_integers)


def _by_kernel(number: int, *operands: Array) -> Array:
    kernel = kernels.Kernel("accelnet_multiply_rounded", (number,), _MEANING)
    return kernels.call(kernel, *operands)[0]


_instructions: ContextVar[int] = ContextVar("instructions", default=0)


@contextmanager
def instructions(number: int) -> Iterator[None]:
    """Trace kernels of other instructions than the best that the processor has, to measure or test them.

    Args:
        number: 0 for the best; 1: AVX2 without AVX-512 VNNI; 2: plain C++. All give the same bits.
    """
    token = _instructions.set(number)
    try:
        yield
    finally:
        _instructions.reset(token)


def instruction_set() -> int:
    """Return the number that holds now.

    Example:
        >>> with instructions(1):
        ...     instruction_set()
        1
    """
    return _instructions.get()


def quantized_product(x: Array, whole: Array, scale: Array, bias: Array | None) -> Array:
    """Multiply rounded rows [rows, depth] by whole numbers [depth, columns], by XLA's operations.

    Those of int8 have sums of int32, as the matrix units of GPUs and TPUs make them. Those of float32 are exact below a
    depth of 1,040; XLA's CPU programs multiply integers more slowly.

    Example:
        >>> quantized_product(jnp.array([[127.0, 1.0]]), jnp.ones((2, 1), jnp.int8), jnp.ones(1), None).tolist()
        [[128.0]]
    """
    rounded, row_scale = round_rows(x)
    if whole.dtype == jnp.int8:
        rounded = rounded.astype(jnp.int8)
        axes = (((1,), (0,)), ((), ()))
        sums = lax.dot_general(rounded, whole, axes, preferred_element_type=jnp.int32).astype(jnp.float32)
    else:
        sums = rounded @ whole
    out = sums * (row_scale * scale[None, :])
    return out if bias is None else out + bias[None, :]


def product_of_integers(x: Array, packed: Array, scale: Array, bias: Array | None = None) -> Array:
    """Compute `quantized_dot` of rows by XLA's product of int8."""
    return quantized_product(x, unpack(packed, x.shape[-1], scale.shape[0]), scale, bias)


def product_of_floats(x: Array, packed: Array, scale: Array, bias: Array | None = None) -> Array:
    """Compute `quantized_dot` of rows by XLA's product of float32."""
    whole = unpack(packed, x.shape[-1], scale.shape[0])
    return quantized_product(x, whole.astype(jnp.float32), scale, bias)


_MEANING = kernels.Meaning(product_of_floats)
