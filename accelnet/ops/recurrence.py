"""Recurrent layers over whole sequences, as pure functions: simple RNN, LSTM and GRU.

The input projections of all steps are one product before the scan; what happens inside it is in
`accelnet.ops.cells`. The functions have a reverse-mode rule of their own, so `jax.grad`, also nested,
works and `jax.jvp` does not.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from accelnet.errors import UserError
from accelnet.ops.cells import GRU, LSTM, SIMPLE, Cell, scan_cell
from accelnet.ops.product import dot_general

_PLAIN = (((1,), (0,)), ((), ()))


def simple_rnn(
    inputs: Array,
    input_kernel: Array,
    recurrent_kernel: Array,
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
        recurrent_kernel: R, [hidden, hidden].
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
        >>> import jax.numpy as jnp
        >>> outputs, state = simple_rnn(jnp.ones((2, 5, 3)), jnp.ones((3, 4)), jnp.eye(4), jnp.zeros(4))
        >>> outputs.shape, state.shape
        ((2, 5, 4), (2, 4))

    Source: Elman (1990), Finding structure in time; the backward rule: original.
    """
    states = None if initial_state is None else (initial_state,)
    outputs, (hidden,) = _run(
        SIMPLE, inputs, input_kernel, recurrent_kernel, bias, None, states, lengths, reverse, tokens
    )
    return outputs, hidden


def lstm(
    inputs: Array,
    input_kernel: Array,
    recurrent_kernel: Array,
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
        recurrent_kernel: R, [hidden, 4 * hidden].
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
        >>> import jax.numpy as jnp
        >>> kernels = jnp.ones((3, 16)), jnp.ones((4, 16)), jnp.zeros(16)
        >>> outputs, (hidden, memory) = lstm(jnp.ones((2, 5, 3)), *kernels, lengths=jnp.array([5, 2]))
        >>> bool((outputs[1, 2:] == 0).all()), bool((hidden[1] == outputs[1, 1]).all())
        (True, True)

    Source: Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al.
        (2000); the backward rule: original.
    """
    arguments = inputs, input_kernel, recurrent_kernel, bias
    outputs, (hidden, memory) = _run(LSTM, *arguments, None, initial_state, lengths, reverse, tokens)
    return outputs, (hidden, memory)


def gru(
    inputs: Array,
    input_kernel: Array,
    recurrent_kernel: Array,
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
        recurrent_kernel: R, [hidden, 3 * hidden].
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
        >>> import jax.numpy as jnp
        >>> outputs, state = gru(jnp.ones((2, 5, 3)), jnp.ones((3, 12)), jnp.ones((4, 12)), jnp.zeros(12))
        >>> outputs.shape, state.shape
        ((2, 5, 4), (2, 4))

    Source: Cho et al. (2014), with the reset of cuDNN's developer guide; the backward rule: original.
    """
    states = None if initial_state is None else (initial_state,)
    if recurrent_bias is not None:
        hidden = recurrent_kernel.shape[0]
        if recurrent_bias.shape != (hidden,):
            raise UserError(
                f"recurrent_bias has shape {recurrent_bias.shape}, expected ({hidden},): one number per hidden feature"
            )
        recurrent_bias = jnp.pad(recurrent_bias, (2 * hidden, 0))
    outputs, (hidden,) = _run(
        GRU, inputs, input_kernel, recurrent_kernel, bias, recurrent_bias, states, lengths, reverse, tokens
    )
    return outputs, hidden


def valid_steps(lengths: Array, num_steps: int) -> Array:
    """Mark the valid steps of padded sequences.

    Args:
        lengths: int [batch], the number of valid steps of each sequence.
        num_steps: The number of steps, padding included.

    Returns:
        bool [batch, num_steps], True at steps below the sequence's length.

    Example:
        >>> import jax.numpy as jnp
        >>> valid_steps(jnp.array([1, 3]), 3).tolist()
        [[True, False, False], [True, True, True]]
    """
    return jnp.arange(num_steps)[None, :] < lengths[:, None]


def check_shapes(expected: dict[str, tuple[Array, tuple[int, ...]]], context: str) -> None:
    """Raise for the first array that does not have its shape, or lengths that are not integers.

    Args:
        expected: By the name of the argument, the array and the shape it should have.
        context: What the shapes follow from.

    Raises:
        UserError: With the argument's name.
    """
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise UserError(f"{name} has shape {array.shape}, expected {shape} for {context}")
        if name == "lengths" and not jnp.issubdtype(array.dtype, jnp.integer):
            raise UserError(f"lengths are {array.dtype}, expected integers: the number of valid steps per sequence")


def project(
    inputs: Array, kernel: Array, bias: Array, lengths: Array | None, tokens: Array | None, dtype: Any
) -> tuple[Array, Array | None, Array | None]:
    """Multiply all steps' inputs, or the table that they read, by the kernel, in one product.

    Args:
        inputs: [batch, steps, features], or with tokens [symbols, features].
        kernel: [features, width], in the inputs' dtype.
        bias: [width].
        lengths: int [batch], or None.
        tokens: int [batch, steps], or None.
        dtype: of the sums and the projections.

    Returns:
        The projections [steps, batch, width], or with tokens those of the table [symbols, width]; the tokens int32
        [steps, batch], or None; and bool [steps, batch, 1] that marks the valid steps, or None. What inputs and tokens
        hold at the others changes no gradient.
    """
    num_steps = inputs.shape[1] if tokens is None else tokens.shape[1]
    steps = None if lengths is None else valid_steps(lengths, num_steps)
    if tokens is None:
        if steps is not None:
            # Before the product: NaN in the padding times a zero cotangent is NaN in the kernel's gradient.
            inputs = jnp.where(steps[:, :, None], inputs, jnp.zeros((), inputs.dtype))
        # Transposed while they are narrow, and one axis contracted in the kernel's gradient, not two.
        rows = inputs.swapaxes(0, 1).reshape(-1, inputs.shape[2])
        projected = dot_general(rows, kernel, _PLAIN, preferred_element_type=dtype) + bias.astype(dtype)[None, :]
        projected = projected.reshape(num_steps, inputs.shape[0], -1)
    else:
        if steps is not None:
            tokens = jnp.where(steps, tokens, 0)
        projected = dot_general(inputs, kernel, _PLAIN, preferred_element_type=dtype) + bias.astype(dtype)[None, :]
        tokens = tokens.T.astype(jnp.int32)
    return projected, tokens, None if steps is None else steps.T[:, :, None]


def _run(
    cell: Cell,
    inputs: Array,
    input_kernel: Array,
    recurrent_kernel: Array,
    bias: Array,
    recurrent_bias: Array | None,
    states: tuple[Array, ...] | None,
    lengths: Array | None,
    reverse: bool,
    tokens: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    _check(cell, inputs, input_kernel, recurrent_kernel, bias, states, lengths, tokens)
    dtype = inputs.dtype
    batch = (inputs if tokens is None else tokens).shape[0]
    if states is None:
        states = (jnp.zeros((batch, recurrent_kernel.shape[0]), dtype),) * cell.num_states
    memory_dtype = jnp.promote_types(dtype, jnp.float32)
    hidden, *memory = states
    first = (hidden.astype(dtype), *(state.astype(memory_dtype) for state in memory))
    projected, tokens, valid = project(inputs, input_kernel.astype(dtype), bias, lengths, tokens, dtype)
    if recurrent_bias is not None:
        recurrent_bias = recurrent_bias.astype(dtype)
    recurrent_kernel = recurrent_kernel.astype(dtype)
    scanned: Any = scan_cell(cell, reverse, projected, tokens, recurrent_kernel, recurrent_bias, first, valid)
    hiddens, last = scanned
    if valid is not None:
        hiddens = jnp.where(valid, hiddens, jnp.zeros((), dtype))
    return hiddens.swapaxes(0, 1), tuple(state.astype(dtype) for state in last)


def check_inputs(inputs: Array, tokens: Array | None) -> int:
    """Check the inputs of a recurrent layer and return the size of the batch.

    Args:
        inputs: [batch, steps, features], or with tokens [symbols, features].
        tokens: [batch, steps], or None.

    Raises:
        UserError: If one has the wrong number of axes or the wrong kind of dtype.
    """
    if tokens is not None:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UserError(f"tokens are {tokens.dtype}{list(tokens.shape)}, expected integers [batch, steps]")
        if inputs.ndim != 2 or not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise UserError(
                f"inputs are {inputs.dtype}{list(inputs.shape)}, expected floats [symbols, features]: "
                "with tokens, the inputs are the table whose rows they name"
            )
        return tokens.shape[0]
    if inputs.ndim != 3 or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise UserError(
            f"inputs are {inputs.dtype}{list(inputs.shape)}, expected floats [batch, steps, features]: "
            "add the missing axis, or cast or embed the inputs first"
        )
    return inputs.shape[0]


def _check(
    cell: Cell,
    inputs: Array,
    input_kernel: Array,
    recurrent_kernel: Array,
    bias: Array,
    states: tuple[Array, ...] | None,
    lengths: Array | None,
    tokens: Array | None,
) -> None:
    batch = check_inputs(inputs, tokens)
    hidden = recurrent_kernel.shape[0]
    width = cell.num_gates * hidden
    expected = {
        "recurrent_kernel": (recurrent_kernel, (hidden, width)),
        "input_kernel": (input_kernel, (inputs.shape[-1], width)),
        "bias": (bias, (width,)),
    }
    if states is not None:
        if len(states) != cell.num_states:
            raise UserError(f"initial_state has {len(states)} arrays, expected {cell.num_states}")
        expected |= {f"initial_state[{n}]": (state, (batch, hidden)) for n, state in enumerate(states)}
    if lengths is not None:
        expected["lengths"] = (lengths, (batch,))
    check_shapes(expected, f"inputs of shape {inputs.shape} and {cell.num_gates} gate(s) of {hidden} hidden features")
