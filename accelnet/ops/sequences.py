"""What recurrent layers have in common: checks, the valid steps of padded sequences, the products of all inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from accelnet.errors import UserError
from accelnet.ops.product import dot_general

Weights = dict[str, tuple[Array, tuple[int, ...]]]

_PLAIN = (((1,), (0,)), ((), ()))


def valid_steps(lengths: Array, num_steps: int) -> Array:
    """Mark the valid steps of padded sequences.

    Args:
        lengths: int [batch], the number of valid steps of each sequence.
        num_steps: The number of steps, padding included.

    Returns:
        bool [batch, num_steps], True at steps below the sequence's length.

    Example:
        >>> valid_steps(jnp.array([1, 3]), 3).tolist()
        [[True, False, False], [True, True, True]]
    """
    return jnp.arange(num_steps)[None, :] < lengths[:, None]


def check_layer(
    inputs: Array,
    weights: Weights,
    hidden: int,
    context: str,
    *,
    states: Sequence[Array] = (),
    lengths: Array | None = None,
    tokens: Array | None = None,
) -> int:
    """Check the arguments of a recurrent layer and return the size of the batch.

    Args:
        inputs: [batch, steps, features], or with tokens [batch, steps] a table [symbols, features].
        weights: By the name of the argument, an array and the shape it should have.
        hidden: Features of each initial state, [batch, hidden].
        context: What the shapes follow from beside the inputs.
        states: Initial states.
        lengths: int [batch].
        tokens: int [batch, steps].

    Raises:
        UserError: With the argument's name, if one has the wrong shape or the wrong kind of dtype.
    """
    if tokens is not None and (tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer)):
        raise UserError(f"tokens are {tokens.dtype}{list(tokens.shape)}, expected integers [batch, steps]")
    if inputs.ndim != (3 if tokens is None else 2) or not jnp.issubdtype(inputs.dtype, jnp.floating):
        expected = (
            "[batch, steps, features]: add the missing axis, or cast or embed the inputs first"
            if tokens is None
            else "[symbols, features]: with tokens, the inputs are the table whose rows they name"
        )
        raise UserError(f"inputs are {inputs.dtype}{list(inputs.shape)}, expected floats {expected}")
    batch = (inputs if tokens is None else tokens).shape[0]
    expected = dict(weights)
    for number, state in enumerate(states):
        name = f"initial_state[{number}]" if len(states) > 1 else "initial_state"
        expected[name] = (state, (batch, hidden))
    if lengths is not None:
        expected["lengths"] = (lengths, (batch,))
        if not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise UserError(f"lengths are {lengths.dtype}, expected integers: the number of valid steps per sequence")
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise UserError(
                f"{name} has shape {array.shape}, expected {shape} for inputs of shape {inputs.shape}{context}"
            )
    return batch


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
        dtype: dtype of the sums and the projections.

    Returns:
        What `project_by` returns.
    """

    def multiply(rows: Array) -> Array:
        return dot_general(rows, kernel, _PLAIN, preferred_element_type=dtype) + bias.astype(dtype)[None, :]

    return project_by(multiply, inputs, lengths, tokens)


def project_by(
    multiply: Callable[[Array], Array], inputs: Array, lengths: Array | None, tokens: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """Project all steps' inputs, or the table that they read, by one call of a function of rows.

    Args:
        multiply: Function from rows [rows, features] to projections [rows, width].
        inputs: As in `project`.
        lengths: As in `project`.
        tokens: As in `project`.

    Returns:
        The projections [steps, batch, width], or with tokens those of the table [symbols, width]; the tokens int32
        [steps, batch], or None; and bool [steps, batch, 1] that marks the valid steps, or None. What inputs and tokens
        hold at the others changes no gradient.
    """
    num_steps = (inputs if tokens is None else tokens).shape[1]
    steps = None if lengths is None else valid_steps(lengths, num_steps)
    rows, shape = inputs, (inputs.shape[0], -1)
    if tokens is None:
        if steps is not None:
            # Before the product: NaN in the padding times a zero cotangent is NaN in the kernel's gradient.
            inputs = jnp.where(steps[:, :, None], inputs, jnp.zeros((), inputs.dtype))
        # Transposed while they are narrow, and one axis contracted in the kernel's gradient, not two.
        rows, shape = inputs.swapaxes(0, 1).reshape(-1, inputs.shape[2]), (num_steps, inputs.shape[0], -1)
    else:
        tokens = (tokens if steps is None else jnp.where(steps, tokens, 0)).T.astype(jnp.int32)
    return multiply(rows).reshape(shape), tokens, None if steps is None else steps.T[:, :, None]
