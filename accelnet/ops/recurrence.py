"""Recurrent layers over whole sequences, as pure functions: simple RNN, LSTM and GRU.

The input projections of all steps are one product before the scan; what happens inside it is in
`accelnet.ops.cells`. The functions have a reverse-mode rule of their own, so `jax.grad`, also nested,
works and `jax.jvp` does not.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from accelnet.errors import UserError
from accelnet.ops.cells import GRU, LSTM, SIMPLE, Cell, Operands, scan_cell
from accelnet.ops.one_call import are_calls_kept, one_call
from accelnet.ops.sequences import check_layer, project

Kernel = Array | tuple[Array, Array]


def simple_rnn(
    inputs: Array,
    input_kernel: Array,
    recurrent_kernel: Kernel,
    bias: Array,
    initial_state: Array | None = None,
    *,
    lengths: Array | None = None,
    reverse: bool = False,
    tokens: Array | None = None,
) -> tuple[Array, Array]:
    """Run a simple (Elman) recurrent layer over whole sequences.

    h_t = tanh(x_t W + h_{t-1} R + b)

    Args:
        inputs: float [batch, steps, features]. Their dtype is the dtype of the computation and the outputs.
        input_kernel: W, [features, hidden].
        recurrent_kernel: R, [hidden, hidden], or of low rank two matrices in a tuple, [hidden, rank] and
            [rank, hidden], whose product it is: each step multiplies by one after the other.
        bias: b, [hidden].
        initial_state: [batch, hidden]; zeros if None.
        lengths: int [batch], the number of valid steps of each sequence; all if None. From step
            `lengths[i]` on, sequence i's state stays as it is and its outputs are zero; what the inputs hold
            there, NaN included, changes neither a value nor a gradient.
        reverse: Run from the last valid step of each sequence to the first. Outputs keep the inputs' order.
        tokens: int [batch, steps] below the number of symbols, or None. With tokens, `inputs` is a table
            [symbols, features] whose rows the steps read; only the table is multiplied by W, not every step's row.

    Returns:
        The outputs [batch, steps, hidden] and the final hidden state [batch, hidden].

    Raises:
        UserError: If shapes or dtypes do not fit together.

    Example:
        >>> outputs, state = simple_rnn(jnp.ones((2, 5, 3)), jnp.ones((3, 4)), jnp.eye(4), jnp.zeros(4))
        >>> outputs.shape, state.shape
        ((2, 5, 4), (2, 4))

    Source: Elman (1990), Finding structure in time.
    """
    weights = input_kernel, recurrent_kernel, bias, None
    outputs, (hidden,) = _run(SIMPLE, inputs, weights, initial_state, lengths, reverse, tokens)
    return outputs, hidden


def lstm(
    inputs: Array,
    input_kernel: Array,
    recurrent_kernel: Kernel,
    bias: Array,
    initial_state: tuple[Array, Array] | None = None,
    *,
    lengths: Array | None = None,
    reverse: bool = False,
    tokens: Array | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Run a long short-term memory layer over whole sequences.

    (i, f, g, o) = x_t W + h_{t-1} R + b,  c_t = σ(f) c_{t-1} + σ(i) tanh(g),  h_t = σ(o) tanh(c_t)

    The gates lie in the order i, f, g, o along the last axis, as in PyTorch and cuDNN. PyTorch's two biases
    are one here: their sum.

    Args:
        inputs: float [batch, steps, features]. Their dtype is the dtype of the computation and the outputs;
            the memory c is carried in float32 where it is shorter.
        input_kernel: W, [features, 4 * hidden].
        recurrent_kernel: R, [hidden, 4 * hidden], or two matrices as in `simple_rnn`.
        bias: b, [4 * hidden].
        initial_state: (h, c), each [batch, hidden]; zeros if None.
        lengths: As in `simple_rnn`.
        reverse: As in `simple_rnn`.
        tokens: As in `simple_rnn`.

    Returns:
        The outputs [batch, steps, hidden] and the final (h, c), each [batch, hidden].

    Raises:
        UserError: If shapes or dtypes do not fit together.

    Example:
        >>> kernels = jnp.ones((3, 16)), jnp.ones((4, 16)), jnp.zeros(16)
        >>> outputs, (hidden, memory) = lstm(jnp.ones((2, 5, 3)), *kernels, lengths=jnp.array([5, 2]))
        >>> bool((outputs[1, 2:] == 0).all()), bool((hidden[1] == outputs[1, 1]).all())
        (True, True)

    Source: Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al.
        (2000).
    """
    weights = input_kernel, recurrent_kernel, bias, None
    outputs, (hidden, memory) = _run(LSTM, inputs, weights, initial_state, lengths, reverse, tokens)
    return outputs, (hidden, memory)


def gru(
    inputs: Array,
    input_kernel: Array,
    recurrent_kernel: Kernel,
    bias: Array,
    recurrent_bias: Array | None = None,
    initial_state: Array | None = None,
    *,
    lengths: Array | None = None,
    reverse: bool = False,
    tokens: Array | None = None,
) -> tuple[Array, Array]:
    """Run a gated recurrent unit layer over whole sequences.

    r = σ(x_t W_r + h R_r + b_r),  z = σ(x_t W_z + h R_z + b_z),
    n = tanh(x_t W_n + b_n + r (h R_n + d)),  h_t = (1 - z) n + z h,  with h = h_{t-1}

    The reset gate r acts after the recurrent product, as in PyTorch, cuDNN and Flax (not as in the paper's
    first version). The gates lie in the order r, z, n along the last axis. From PyTorch's biases:
    b = bias_ih + (bias_hr, bias_hz, 0) and d = bias_hn.

    Args:
        inputs: float [batch, steps, features]. Their dtype is the dtype of the computation and the outputs.
        input_kernel: W, [features, 3 * hidden].
        recurrent_kernel: R, [hidden, 3 * hidden], or two matrices as in `simple_rnn`.
        bias: b, [3 * hidden].
        recurrent_bias: d, [hidden]; zeros if None.
        initial_state: [batch, hidden]; zeros if None.
        lengths: As in `simple_rnn`.
        reverse: As in `simple_rnn`.
        tokens: As in `simple_rnn`.

    Returns:
        The outputs [batch, steps, hidden] and the final hidden state [batch, hidden].

    Raises:
        UserError: If shapes or dtypes do not fit together.

    Example:
        >>> outputs, state = gru(jnp.ones((2, 5, 3)), jnp.ones((3, 12)), jnp.ones((4, 12)), jnp.zeros(12))
        >>> outputs.shape, state.shape
        ((2, 5, 4), (2, 4))

    Source: Cho et al. (2014), with the reset of cuDNN's developer guide.
    """
    if recurrent_bias is not None:
        hidden = jax.tree.leaves(recurrent_kernel)[0].shape[0]
        if recurrent_bias.shape != (hidden,):
            raise UserError(
                f"recurrent_bias has shape {recurrent_bias.shape}, expected ({hidden},): one number per hidden feature"
            )
        recurrent_bias = jnp.pad(recurrent_bias, (2 * hidden, 0))
    weights = input_kernel, recurrent_kernel, bias, recurrent_bias
    outputs, (final,) = _run(GRU, inputs, weights, initial_state, lengths, reverse, tokens)
    return outputs, final


def _run(
    cell: Cell,
    inputs: Array,
    weights: tuple[Array, Kernel, Array, Array | None],
    initial_state: Any,
    lengths: Array | None,
    reverse: bool,
    tokens: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    input_kernel, kernel, bias, recurrent_bias = weights
    parts = kernel if isinstance(kernel, tuple) else (kernel,)
    dtype, hidden = inputs.dtype, parts[0].shape[0]
    states = jax.tree.leaves(initial_state)
    if initial_state is not None and len(states) != cell.num_states:
        raise UserError(f"initial_state has {len(states)} arrays, expected {cell.num_states}")
    width = cell.num_gates * hidden
    expected = {
        "recurrent_kernel": (parts[-1], (hidden if len(parts) == 1 else parts[0].shape[-1], width)),
        "input_kernel": (input_kernel, (inputs.shape[-1], width)),
        "bias": (bias, (width,)),
    }
    if len(parts) > 1 and are_calls_kept():  # another runtime's operator has one kernel
        weights = input_kernel, parts[0] @ parts[1], bias, recurrent_bias
    context = f" and {cell.num_gates} gate(s) of {hidden} hidden features"
    batch = check_layer(inputs, expected, hidden, context, states=states, lengths=lengths, tokens=tokens)
    states = states or [jnp.zeros((batch, hidden), dtype)] * cell.num_states
    dtypes = dtype, *[jnp.promote_types(dtype, jnp.float32)] * (cell.num_states - 1)
    first = tuple(state.astype(kind) for state, kind in zip(states, dtypes, strict=True))
    return _layer(cell, reverse, inputs, weights, first, lengths, tokens)


@one_call("accelnet_recurrence", 2)
def _layer(
    cell: Cell,
    reverse: bool,
    inputs: Array,
    weights: tuple[Array, Kernel, Array, Array | None],
    first: tuple[Array, ...],
    lengths: Array | None,
    tokens: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    """Run a recurrent layer on arguments that fit together."""
    input_kernel, kernel, bias, recurrent_bias = weights
    dtype = inputs.dtype
    projected, tokens, valid = project(inputs, input_kernel.astype(dtype), bias, lengths, tokens, dtype)
    if recurrent_bias is not None:
        recurrent_bias = recurrent_bias.astype(dtype)
    kernel = jax.tree.map(lambda part: part.astype(dtype), kernel)
    operands = Operands(projected, kernel, first, tokens, recurrent_bias, valid)
    scanned: Any = scan_cell(cell, reverse, operands)
    hiddens, last = scanned
    if valid is not None:
        hiddens = jnp.where(valid, hiddens, jnp.zeros((), dtype))
    return hiddens.swapaxes(0, 1), tuple(state.astype(dtype) for state in last)
