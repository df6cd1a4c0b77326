"""What happens inside the scan of a recurrent layer: the cells, the scan and its gradient.

The state is [batch, features]: with the weights on the left the small products are faster (0.12 ms and not 0.14 for
256 cells and a batch of 32 on two cores), but then the arrays of all steps have to be transposed for the large ones,
which made the gradient of 64 steps take 44 ms and not 35. The gradient of the recurrent kernel is one product over
all steps after the backward scan, instead of a sum of one small product per step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Arrays = tuple[Array, ...]


class Cell(NamedTuple):
    """Describe a recurrent cell between its two products. All arrays are [batch, features].

    `forward(projected, recurrent, state) -> (state, saved)` is one step: `projected` is the input's
    product plus bias, `recurrent` the hidden state's product. `backward(saved, dstate) -> (dprojected,
    drecurrent, dstate)` is its gradient without the part that flows through the recurrent product. `state`
    is a tuple whose first element is the hidden state.
    """

    num_gates: int
    num_states: int
    forward: Callable[..., tuple[Arrays, Arrays]]
    backward: Callable[..., tuple[Array, Array, Arrays]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan_cell(
    cell: Cell,
    reverse: bool,
    projected: Array,
    kernel: Array,
    bias: Array | None,
    first: Arrays,
    valid: Array | None,
) -> tuple[Array, Arrays]:
    """Scan a cell over all steps.

    Args:
        cell: `SIMPLE`, `LSTM` or `GRU`.
        reverse: Scan from the last step to the first.
        projected: The input's products plus bias, [steps, batch, gates * hidden].
        kernel: Recurrent kernel, [hidden, gates * hidden].
        bias: Bias of the recurrent product, [gates * hidden], or None.
        first: Initial state, arrays [batch, hidden].
        valid: bool [steps, batch, 1], or None; where False, the state stays as it is.

    Returns:
        The hidden states of all steps, [steps, batch, hidden], and the last state.

    Example:
        >>> states, _ = scan_cell(SIMPLE, False, jnp.ones((5, 2, 4)), jnp.eye(4), None, (jnp.zeros((2, 4)),), None)
        >>> states.shape
        (5, 2, 4)

    Source: original.
    """
    return _forward(cell, reverse, projected, kernel, bias, first, valid, save=False)[0]


def _forward(
    cell: Cell,
    reverse: bool,
    projected: Array,
    kernel: Array,
    bias: Array | None,
    first: Arrays,
    valid: Array | None,
    save: bool = True,
) -> tuple[tuple[Array, Arrays], tuple[Any, Array, Array | None, Array | None]]:
    dtype = projected.dtype

    def step(state: Arrays, xs: tuple[Array, Array | None]) -> tuple[Arrays, Any]:
        projection, is_valid = xs
        recurrent = _product(state[0], kernel)
        if bias is not None:
            recurrent = recurrent + bias[None, :]
        new, saved = cell.forward(projection, recurrent, state)
        new = tuple(n.astype(old.dtype) for n, old in zip(new, state, strict=True))
        if is_valid is not None:
            new = tuple(jnp.where(is_valid, n, old) for n, old in zip(new, state, strict=True))
        kept = (state[0], tuple(array.astype(dtype) for array in saved)) if save else None
        return new, (new[0], kept)

    last, (hiddens, saved) = lax.scan(step, first, (projected, valid), reverse=reverse)
    return (hiddens, last), (saved, kernel, bias, valid)


def _backward(
    cell: Cell, reverse: bool, residuals: tuple[Any, ...], cotangents: tuple[Array, Arrays]
) -> tuple[Array, Array, Array | None, Arrays, None]:
    (before, saved), kernel, bias, valid = residuals
    dhiddens, dlast = cotangents
    dtype = kernel.dtype
    # Transposed once: contracting the kernel's second axis in every step takes longer on a CPU.
    transposed = kernel.T

    def step(dstate: Arrays, xs: tuple[Array, Arrays, Array | None]) -> tuple[Arrays, tuple[Array, Array | None]]:
        dhidden, arrays, is_valid = xs
        dnew = (dstate[0] + dhidden, *dstate[1:])
        dprojected, drecurrent, dold = cell.backward(arrays, dnew)
        same = drecurrent is dprojected
        if is_valid is not None:
            zero = jnp.zeros((), dprojected.dtype)
            dprojected = jnp.where(is_valid, dprojected, zero)
            drecurrent = dprojected if same else jnp.where(is_valid, drecurrent, zero)
        dprojected = dprojected.astype(dtype)
        drecurrent = dprojected if same else drecurrent.astype(dtype)
        if is_valid is not None:
            dold = tuple(jnp.where(is_valid, d, n) for d, n in zip(dold, dnew, strict=True))
        dold = (dold[0] + _product(drecurrent, transposed), *dold[1:])
        return dold, (dprojected, None if same else drecurrent)

    wide = tuple(d.astype(jnp.promote_types(d.dtype, jnp.float32)) for d in dlast)
    dfirst, (dprojected, drecurrent) = lax.scan(step, wide, (dhiddens, saved, valid), reverse=not reverse)
    drecurrent = dprojected if drecurrent is None else drecurrent
    # One contracted axis: for two XLA:CPU copies both operands first.
    dkernel = before.reshape(-1, before.shape[-1]).T @ drecurrent.reshape(-1, drecurrent.shape[-1])
    dbias = None if bias is None else drecurrent.sum((0, 1))
    return (
        dprojected,
        dkernel,
        dbias,
        tuple(d.astype(like.dtype) for d, like in zip(dfirst, dlast, strict=True)),
        None,
    )


scan_cell.defvjp(_forward, _backward)


def _product(left: Array, right: Array) -> Array:
    """Multiply two matrices; accumulate and return in float32 where the operands are shorter."""
    return jnp.matmul(left, right, preferred_element_type=jnp.promote_types(left.dtype, jnp.float32))


def _simple_forward(projected: Array, recurrent: Array, _: Arrays) -> tuple[Arrays, Arrays]:
    hidden = jnp.tanh(projected + recurrent)
    return (hidden,), (hidden,)


def _simple_backward(saved: Arrays, dstate: Arrays) -> tuple[Array, Array, Arrays]:
    (hidden,) = saved
    d = dstate[0] * (1 - hidden * hidden)
    return d, d, (jnp.zeros_like(d),)


def _lstm_forward(projected: Array, recurrent: Array, state: Arrays) -> tuple[Arrays, Arrays]:
    memory = state[1]
    i, f, g, o = jnp.split(projected + recurrent, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new = f * memory + i * g
    squashed = jnp.tanh(new)
    return (o * squashed, new), (i, f, g, o, memory, squashed)


def _lstm_backward(saved: Arrays, dstate: Arrays) -> tuple[Array, Array, Arrays]:
    i, f, g, o, memory, squashed = saved
    dhidden, dmemory = dstate
    dmemory = dmemory + dhidden * o * (1 - squashed * squashed)
    d = jnp.concatenate(
        [
            dmemory * g * i * (1 - i),
            dmemory * memory * f * (1 - f),
            dmemory * i * (1 - g * g),
            dhidden * squashed * o * (1 - o),
        ],
        axis=-1,
    )
    return d, d, (jnp.zeros_like(dhidden), dmemory * f)


def _gru_forward(projected: Array, recurrent: Array, state: Arrays) -> tuple[Arrays, Arrays]:
    (hidden,) = state
    projected_r, projected_z, projected_n = jnp.split(projected, 3, axis=-1)
    recurrent_r, recurrent_z, recurrent_n = jnp.split(recurrent, 3, axis=-1)
    r = jax.nn.sigmoid(projected_r + recurrent_r)
    z = jax.nn.sigmoid(projected_z + recurrent_z)
    n = jnp.tanh(projected_n + r * recurrent_n)
    return ((1 - z) * n + z * hidden,), (r, z, n, recurrent_n, hidden)


def _gru_backward(saved: Arrays, dstate: Arrays) -> tuple[Array, Array, Arrays]:
    r, z, n, recurrent_n, hidden = saved
    (dhidden,) = dstate
    dn = dhidden * (1 - z) * (1 - n * n)
    dz = dhidden * (hidden - n) * z * (1 - z)
    dr = dn * recurrent_n * r * (1 - r)
    dprojected, drecurrent = (jnp.concatenate([dr, dz, d], axis=-1) for d in (dn, dn * r))
    return dprojected, drecurrent, (dhidden * z,)


SIMPLE = Cell(1, 1, _simple_forward, _simple_backward)
LSTM = Cell(4, 2, _lstm_forward, _lstm_backward)
GRU = Cell(3, 1, _gru_forward, _gru_backward)
