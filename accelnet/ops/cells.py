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

from accelnet.ops import kernels
from accelnet.ops.product import transposed_product

Arrays = tuple[Array, ...]
# Steps in one trip of the scan on a GPU, where a trip itself costs 9 us. On an H100 (jax 0.11.2) an LSTM and its
# gradient, batch x steps x hidden, with 1, 4, 8 steps a trip, and by cuDNN through jax.experimental.rnn, in ms:
# 128 x 28 x 128: 0.70, 0.41, 0.41, 1.5; 32 x 64 x 256: 1.5, 0.86, 0.78, 2.7; 64 x 128 x 512: 3.9, 2.7, 2.5, 6.2;
# 128 x 64 x 1024: 4.4, 4.1, 3.9, 4.6. So there is no use of cuDNN here, and 8 steps would compile longer for little.
_CUDA_UNROLL = 4


class Cell(NamedTuple):
    """Describe a recurrent cell between its two products. All arrays are [batch, features].

    `forward(projected, recurrent, state) -> (state, saved)` is one step: `projected` is the input's
    product plus bias, `recurrent` the hidden state's product. `backward(before, saved, dstate) -> (dprojected,
    drecurrent, dstate)` is its gradient without the part that flows through the recurrent product; `before` is the
    hidden state before the step. `state` is a tuple whose first element is the hidden state. `number` is the cell's in
    the compiled kernels.
    """

    number: int
    num_gates: int
    num_states: int
    forward: Callable[..., tuple[Arrays, Arrays]]
    backward: Callable[..., tuple[Array, Array, Arrays]]


class Operands(NamedTuple):
    """What the scan of a cell reads.

    Attributes:
        projected: The input's products plus bias, [steps, batch, gates * hidden]; with tokens, those of every symbol,
            [symbols, gates * hidden].
        kernel: Recurrent kernel, [hidden, gates * hidden], or two in a tuple whose product it is: one of low rank.
        first: Initial state, arrays [batch, hidden].
        tokens: int [steps, batch], or None; a step with one that is no symbol's is NaN.
        bias: Bias of the recurrent product, [gates * hidden], or None; GRU only.
        valid: bool [steps, batch, 1], or None; where False, the state stays as it is.
    """

    projected: Any
    kernel: Any
    first: Any
    tokens: Any = None
    bias: Any = None
    valid: Any = None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan_cell(cell: Cell, reverse: bool, operands: Operands) -> tuple[Array, Arrays]:
    """Scan a cell over all steps, on a CPU in float32 and bfloat16 by a compiled kernel where the kernel is whole.

    Args:
        cell: `SIMPLE`, `LSTM` or `GRU`.
        reverse: Scan from the last step to the first.
        operands: Inputs, weights and the initial state.

    Returns:
        The hidden states of all steps, [steps, batch, hidden], and the last state.

    Example:
        >>> states, _ = scan_cell(SIMPLE, False, Operands(jnp.ones((5, 2, 4)), jnp.eye(4), (jnp.zeros((2, 4)),)))
        >>> states.shape
        (5, 2, 4)
    """
    return _scan(cell, reverse, False, operands)[0]


def _forward(cell: Cell, reverse: bool, operands: Operands) -> tuple[tuple[Array, Arrays], tuple[Arrays, Operands]]:
    results, saved = _scan(cell, reverse, True, operands)
    table = None if operands.tokens is None else operands.projected
    return results, (saved, operands._replace(projected=table, first=None))


def _backward(
    cell: Cell, reverse: bool, residuals: tuple[Arrays, Operands], cotangents: tuple[Array, Arrays]
) -> tuple[Operands]:
    saved, kept = residuals
    dhiddens, dlast = cotangents
    before = saved[0]
    parts = _parts(kept.kernel)
    operands = (dhiddens, *dlast, *parts, *saved, *_given(kept.valid))
    meaning = _Backward(cell, reverse, kept.valid is not None, parts=len(parts))
    outputs = _by_kernel("accelnet_recur_backward", meaning, operands)
    dprojected, drecurrent, *dfirst = outputs if cell is GRU else (outputs[0], *outputs)
    # One contracted axis: for two XLA:CPU copies both operands first.
    flat, dflat = before.reshape(-1, before.shape[-1]), drecurrent.reshape(-1, drecurrent.shape[-1])
    dkernel: Any = transposed_product(flat, dflat) if len(parts) == 1 else None
    if dkernel is None:
        dkernel = transposed_product(flat, dflat @ parts[-1].T), transposed_product(flat @ parts[0], dflat)
    dbias = None if kept.bias is None else drecurrent.sum((0, 1))
    if kept.tokens is not None:
        dprojected = jnp.zeros_like(kept.projected).at[kept.tokens].add(dprojected, mode="drop")
    dfirst = tuple(d.astype(o.dtype) for d, o in zip(dfirst, dlast, strict=True))
    return (Operands(dprojected, dkernel, dfirst, bias=dbias),)


scan_cell.defvjp(_forward, _backward)


def _scan(cell: Cell, reverse: bool, save: bool, given: Operands) -> tuple[tuple[Array, Arrays], Arrays]:
    has = (array is not None for array in (given.tokens, given.bias, given.valid))
    tokens, bias, valid = map(_given, (given.tokens, given.bias, given.valid))
    parts = _parts(given.kernel)
    operands = (given.projected, *tokens, *given.first, *parts, *bias, *valid)
    hiddens, *others = _by_kernel("accelnet_recur", _Forward(cell, reverse, save, *has, parts=len(parts)), operands)
    last, saved = others[: cell.num_states], others[cell.num_states :]
    return (hiddens, tuple(last)), tuple(saved)


def _given(array: Array | None) -> Arrays:
    return () if array is None else (array,)


def _parts(kernel: Any) -> Arrays:
    return kernel if isinstance(kernel, tuple) else (kernel,)


# One trace per shape also outside jit: an eager platform_dependent would compile anew on every call.
@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _by_kernel(target: str, meaning: Any, operands: Arrays) -> Arrays:
    """Compute by the compiled kernel on the CPU, by its meaning elsewhere and in other types or with two parts."""
    if any(operand.dtype not in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_) for operand in operands):
        return meaning(*operands)
    kernel = kernels.Kernel(target, (meaning.cell.number, *map(int, meaning[1:-2])), meaning)
    # Functions, since platform_dependent keeps weak references, which a tuple does not take.
    compiled = {"cpu": partial(kernels.call, kernel)} if meaning.parts == 1 else {}
    unrolled = meaning._replace(unroll=_CUDA_UNROLL)
    return lax.platform_dependent(*operands, **compiled, cuda=partial(unrolled), default=partial(meaning))


class _Forward(NamedTuple):
    """The scan of a cell by XLA's operations (hashable)."""

    cell: Cell
    reverse: bool
    save: bool
    has_tokens: bool
    has_bias: bool
    has_valid: bool
    parts: int = 1
    unroll: int = 1

    def __call__(self, projected: Array, *operands: Array) -> Arrays:
        cell = self.cell
        valid = operands[-1] if self.has_valid else None
        if self.has_tokens:
            projected, operands = jnp.take(projected, operands[0], axis=0), operands[1:]
        first, rest = operands[: cell.num_states], operands[cell.num_states :]
        parts, bias = rest[: self.parts], rest[self.parts] if self.has_bias else None

        def step(state: Arrays, xs: tuple[Array, Array | None]) -> tuple[Arrays, Any]:
            projection, is_valid = xs
            recurrent = _product(state[0], *parts)
            if bias is not None:
                recurrent = recurrent + bias[None, :]
            new, saved = cell.forward(projection, recurrent, state)
            new = tuple(n.astype(old.dtype) for n, old in zip(new, state, strict=True))
            if is_valid is not None:
                new = tuple(jnp.where(is_valid, n, old) for n, old in zip(new, state, strict=True))
            kept = (state[0], *(array.astype(projected.dtype) for array in saved)) if self.save else ()
            return new, (new[0], kept)

        steps = projected, valid
        last, (hiddens, saved) = scan_steps(step, first, steps, self.reverse, self.unroll)
        return (hiddens, *last, *saved)


class _Backward(NamedTuple):
    """The gradient of `_Forward`, but for that of the kernel, by XLA's operations (hashable)."""

    cell: Cell
    reverse: bool
    has_valid: bool
    parts: int = 1
    unroll: int = 1

    def __call__(self, dhiddens: Array, *operands: Array) -> Arrays:
        cell = self.cell
        valid = operands[-1] if self.has_valid else None
        dlast, rest = operands[: cell.num_states], operands[cell.num_states :]
        parts, (before, *saved) = rest[: self.parts], rest[self.parts :]
        saved = saved[:-1] if self.has_valid else saved
        dtype = before.dtype
        # Transposed once: contracting the kernel's second axis in every step takes longer on a CPU.
        transposed = [part.T for part in reversed(parts)]

        def step(dstate: Arrays, xs: Any) -> tuple[Arrays, Arrays]:
            dhidden, before, arrays, is_valid = xs
            dnew = (dstate[0] + dhidden, *dstate[1:])
            dprojected, drecurrent, dold = cell.backward(before, arrays, dnew)
            same = drecurrent is dprojected
            if is_valid is not None:
                zero = jnp.zeros((), dprojected.dtype)
                dprojected = jnp.where(is_valid, dprojected, zero)
                drecurrent = dprojected if same else jnp.where(is_valid, drecurrent, zero)
            dprojected = dprojected.astype(dtype)
            drecurrent = dprojected if same else drecurrent.astype(dtype)
            if is_valid is not None:
                dold = tuple(jnp.where(is_valid, d, n) for d, n in zip(dold, dnew, strict=True))
            dold = (dold[0] + _product(drecurrent, *transposed), *dold[1:])
            return dold, (dprojected,) if same else (dprojected, drecurrent)

        wide = tuple(d.astype(jnp.promote_types(d.dtype, jnp.float32)) for d in dlast)
        steps = dhiddens, before, tuple(saved), valid
        dfirst, outputs = scan_steps(step, wide, steps, not self.reverse, self.unroll)
        return (*outputs, *dfirst)


def scan_steps(step: Callable[..., Any], first: Any, steps: Any, reverse: bool, unroll: int) -> Any:
    """Scan over steps, several in a trip where it is known how many there are."""
    known = isinstance(jax.tree.leaves(steps)[0].shape[0], int)
    return lax.scan(step, first, steps, reverse=reverse, unroll=unroll if known else 1)


def _product(left: Array, *right: Array) -> Array:
    """Multiply by one matrix after the other; accumulate and return in float32 where the operands are shorter."""
    dtype = left.dtype
    for matrix in right:
        left = jnp.matmul(left.astype(dtype), matrix, preferred_element_type=jnp.promote_types(dtype, jnp.float32))
    return left


def _simple_forward(projected: Array, recurrent: Array, _: Arrays) -> tuple[Arrays, Arrays]:
    hidden = jnp.tanh(projected + recurrent)
    return (hidden,), (hidden,)


def _simple_backward(_: Array, saved: Arrays, dstate: Arrays) -> tuple[Array, Array, Arrays]:
    (hidden,) = saved
    d = dstate[0] * (1 - hidden * hidden)
    return d, d, (jnp.zeros_like(d),)


def _lstm_forward(projected: Array, recurrent: Array, state: Arrays) -> tuple[Arrays, Arrays]:
    memory = state[1]
    i, f, g, o = jnp.split(projected + recurrent, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new = f * memory + i * g
    return (o * jnp.tanh(new), new), (i, f, g, o, memory)


def _lstm_backward(_: Array, saved: Arrays, dstate: Arrays) -> tuple[Array, Array, Arrays]:
    i, f, g, o, memory = saved
    dhidden, dmemory = dstate
    # Computed again: to write and read it takes as long.
    squashed = jnp.tanh(f * memory + i * g)
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
    return ((1 - z) * n + z * hidden,), (r, z, n, recurrent_n)


def _gru_backward(before: Array, saved: Arrays, dstate: Arrays) -> tuple[Array, Array, Arrays]:
    r, z, n, recurrent_n = saved
    (dhidden,) = dstate
    dn = dhidden * (1 - z) * (1 - n * n)
    dz = dhidden * (before - n) * z * (1 - z)
    dr = dn * recurrent_n * r * (1 - r)
    dprojected, drecurrent = (jnp.concatenate([dr, dz, d], axis=-1) for d in (dn, dn * r))
    return dprojected, drecurrent, (dhidden * z,)


SIMPLE = Cell(0, 1, 1, _simple_forward, _simple_backward)
LSTM = Cell(1, 4, 2, _lstm_forward, _lstm_backward)
GRU = Cell(2, 3, 1, _gru_forward, _gru_backward)
