"""Recurrent layers whose kernels have 8 or 4 bits; in every step the state is rounded to 8 bits."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from accelnet.ops import kernels
from accelnet.ops.cells import GRU, LSTM, SIMPLE, Arrays, Cell, Operands, scan_cell, scan_steps
from accelnet.ops.quantized import instruction_set, quantized_dot, quantized_product, unpack
from accelnet.ops.sequences import check_layer, project_by

_CELLS = {"simple": SIMPLE, "lstm": LSTM, "gru": GRU}
_CUDA_UNROLL = 4


class QuantizedKernel(NamedTuple):
    """Hold a kernel [depth, columns]: whole numbers as of `quantized.pack`, and the scale of each column."""

    packed: Any
    scale: Any

    def floats(self, depth: int) -> Array:
        """Return it as float32 [depth, columns]."""
        return unpack(self.packed, depth, self.scale.shape[0]).astype(jnp.float32) * self.scale[None, :]


def quantized_recurrence(
    cell: str,
    inputs: Array,
    input_kernel: QuantizedKernel,
    recurrent_kernel: QuantizedKernel,
    bias: Array,
    recurrent_bias: Array | None = None,
    *,
    lengths: Array | None = None,
    reverse: bool = False,
    tokens: Array | None = None,
) -> tuple[Array, Array]:
    """Run a recurrent layer as `lstm`, `gru` and `simple_rnn` do, with products of rounded rows.

    The inputs of every step, and the state before it, are rounded as in `quantized_dot`; the cell itself computes in
    float32. Its gradient is that of the layer without rounding, with the same kernels (straight-through).

    Args:
        cell: "lstm", "gru" or "simple".
        inputs: float [batch, steps, features], or with tokens [symbols, features].
        input_kernel: W, [features, gates * hidden].
        recurrent_kernel: R, [hidden, gates * hidden].
        bias: float32 [gates * hidden].
        recurrent_bias: float32 [hidden] of a GRU, or None.
        lengths: int [batch], or None.
        reverse: Whether to run from the last valid step to the first.
        tokens: int [batch, steps], or None.

    Returns:
        The outputs [batch, steps, hidden] and the final hidden state [batch, hidden], in the inputs' dtype.

    Raises:
        UserError: if shapes or dtypes do not fit together.

    Example:
        >>> from accelnet.ops.quantized import pack
        >>> w, r = (QuantizedKernel(pack(jnp.ones((n, 16), jnp.int8), 8), jnp.ones(16)) for n in (3, 4))
        >>> outputs, state = quantized_recurrence("lstm", jnp.ones((2, 5, 3)), w, r, jnp.zeros(16))
        >>> outputs.shape, state.shape
        ((2, 5, 4), (2, 4))
    """
    rule, dtype = _CELLS[cell], inputs.dtype
    width = recurrent_kernel.scale.shape[0]
    hidden = width // rule.num_gates
    expected = {"input_kernel's scale": (input_kernel.scale, (width,)), "bias": (bias, (width,))}
    batch = check_layer(inputs, expected, hidden, f" and {rule.num_gates} gate(s)", lengths=lengths, tokens=tokens)

    def multiply(rows: Array) -> Array:
        return quantized_dot(rows.astype(jnp.float32), *input_kernel, bias)

    projected, tokens, valid = project_by(multiply, inputs, lengths, tokens)
    first = (jnp.zeros((batch, hidden), jnp.float32),) * rule.num_states
    if recurrent_bias is not None:
        recurrent_bias = jnp.pad(recurrent_bias, (2 * hidden, 0))
    scanned: Any = _scan(rule, reverse, Operands(projected, recurrent_kernel, first, tokens, recurrent_bias, valid))
    hiddens, last = scanned
    if valid is not None:
        hiddens = jnp.where(valid, hiddens, 0)
    return hiddens.swapaxes(0, 1).astype(dtype), last[0].astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(cell: Cell, reverse: bool, given: Operands) -> tuple[Array, Arrays]:
    has = tuple(array is not None for array in (given.tokens, given.bias, given.valid))
    meaning = _Scan(cell, reverse, *has)
    tokens, bias, valid = (() if array is None else (array,) for array in (given.tokens, given.bias, given.valid))
    operands = (given.projected, *tokens, *given.first, *given.kernel, *bias, *valid)
    hiddens, *last = _by_kernel(meaning, instruction_set(), operands)
    return hiddens, tuple(last)


def _forward(cell: Cell, reverse: bool, given: Operands) -> tuple[tuple[Array, Arrays], Operands]:
    return _scan(cell, reverse, given), given


def _backward(cell: Cell, reverse: bool, given: Operands, cotangents: Any) -> tuple[Operands]:
    hidden = given.first[0].shape[-1]

    def plain(projected: Array, scale: Array, first: Arrays, bias: Array | None) -> Any:
        kernel = given.kernel._replace(scale=scale).floats(hidden)
        return scan_cell(cell, reverse, given._replace(projected=projected, kernel=kernel, first=first, bias=bias))

    _, pull = jax.vjp(plain, given.projected, given.kernel.scale, given.first, given.bias)
    dprojected, dscale, dfirst, dbias = pull(cotangents)
    return (Operands(dprojected, QuantizedKernel(None, dscale), dfirst, bias=dbias),)


_scan.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _by_kernel(meaning: "_Scan", instructions: int, operands: Arrays) -> Arrays:
    numbers = (meaning.cell.number, int(meaning.reverse), instructions, *map(int, meaning[2:5]))
    kernel = kernels.Kernel("accelnet_recur_rounded", numbers, meaning)
    unrolled = meaning._replace(integers=True, unroll=_CUDA_UNROLL)
    return lax.platform_dependent(
        *operands,
        cpu=functools.partial(kernels.call, kernel),
        cuda=functools.partial(unrolled),
        default=functools.partial(meaning._replace(integers=True)),
    )


class _Scan(NamedTuple):
    """The scan of a cell by XLA's operations (hashable)."""

    cell: Cell
    reverse: bool
    has_tokens: bool
    has_bias: bool
    has_valid: bool
    integers: bool = False
    unroll: int = 1

    def __call__(self, projected: Array, *operands: Array) -> Arrays:
        valid = operands[-1] if self.has_valid else None
        if self.has_tokens:
            projected, operands = jnp.take(projected, operands[0], axis=0), operands[1:]
        count = self.cell.num_states
        first, (packed, scale, *rest) = operands[:count], operands[count:]
        bias = rest[0] if self.has_bias else None
        # Once, and not in every step.
        whole = unpack(packed, first[0].shape[-1], scale.shape[0])
        whole = whole if self.integers else whole.astype(jnp.float32)

        def step(state: Arrays, xs: tuple[Array, Array | None]) -> tuple[Arrays, Array]:
            projection, is_valid = xs
            new, _ = self.cell.forward(projection, quantized_product(state[0], whole, scale, bias), state)
            if is_valid is not None:
                new = tuple(jnp.where(is_valid, n, old) for n, old in zip(new, state, strict=True))
            return new, new[0]

        last, hiddens = scan_steps(step, tuple(first), (projected, valid), self.reverse, self.unroll)
        return (hiddens, *last)
