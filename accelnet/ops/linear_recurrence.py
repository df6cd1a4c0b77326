"""Recurrences that are linear in their state, and the minGRU that is built on one.

What comes before never meets a nonlinearity, so all steps can be computed in a logarithmic number of rounds:
the recurrent layer that accelerators like. On the CPU, whose cores gain nothing from the rounds, it is a loop.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from accelnet.ops.one_call import one_call
from accelnet.ops.sequences import check_layer, project


def linear_recurrence(
    decay: Array, inputs: Array, initial_state: Array | None = None, *, reverse: bool = False
) -> Array:
    """Compute the states of a linear recurrence, elementwise.

    h_t = a_t h_{t-1} + b_t

    On the CPU a loop over the steps, elsewhere `jax.lax.associative_scan`; the gradient is the same recurrence
    backwards. Works under jit, vmap, grad (also nested), scan and remat; not under jvp.

    Args:
        decay: a, float [batch, steps, features].
        inputs: b, of the same shape and dtype. States are kept in at least float32.
        initial_state: h_0, [batch, features]; zeros if None.
        reverse: Run from the last step to the first: h_t = a_t h_{t+1} + b_t.

    Returns:
        h, [batch, steps, features], in the dtype of `inputs`.

    Raises:
        UserError: If shapes or dtypes do not fit together.

    Example:
        >>> linear_recurrence(jnp.full((1, 4, 1), 0.5), jnp.ones((1, 4, 1))).ravel().tolist()
        [1.0, 1.5, 1.75, 1.875]

    Source: Blelloch, Prefix Sums and Their Applications (1990), section 1.4.
    """
    features, states = inputs.shape[-1], () if initial_state is None else (initial_state,)
    batch = check_layer(inputs, {"decay": (decay, inputs.shape)}, features, "", states=states)
    dtype = jnp.promote_types(inputs.dtype, jnp.float32)
    first = jnp.zeros((batch, features), dtype) if initial_state is None else initial_state.astype(dtype)
    states = _run(reverse, decay.swapaxes(0, 1).astype(dtype), inputs.swapaxes(0, 1).astype(dtype), first)
    return states.swapaxes(0, 1).astype(inputs.dtype)


def min_gru(
    inputs: Array,
    input_kernel: Array,
    bias: Array,
    initial_state: Array | None = None,
    *,
    lengths: Array | None = None,
    reverse: bool = False,
    tokens: Array | None = None,
) -> tuple[Array, Array]:
    """Run a minimal gated recurrent unit over whole sequences.

    z_t = σ(x_t W_z + b_z),  h_t = (1 - z_t) h_{t-1} + z_t (x_t W_n + b_n)

    The gate and the candidate see only the input, so the layer is one product and one `linear_recurrence`. They
    lie in the order z, n along the last axis. What a layer cannot see of the past, the next one can: stack two
    or more.

    Args:
        inputs: float [batch, steps, features]. Their dtype is the dtype of the computation and the outputs.
        input_kernel: W, [features, 2 * hidden].
        bias: b, [2 * hidden].
        initial_state: [batch, hidden]; zeros if None.
        lengths: As in `simple_rnn`.
        reverse: As in `simple_rnn`.
        tokens: As in `simple_rnn`.

    Returns:
        The outputs [batch, steps, hidden] and the final hidden state [batch, hidden].

    Raises:
        UserError: If shapes or dtypes do not fit together.

    Example:
        >>> outputs, state = min_gru(jnp.ones((2, 5, 3)), jnp.ones((3, 8)), jnp.zeros(8))
        >>> outputs.shape, bool((outputs[:, -1] == state).all())
        ((2, 5, 4), True)

    Source: Feng et al., Were RNNs All We Needed? (2024), section 3.1, without its logarithms: a product of
        numbers in (0, 1) can only vanish, as it should.
    """
    hidden, states = input_kernel.shape[-1] // 2, () if initial_state is None else (initial_state,)
    expected = {"input_kernel": (input_kernel, (inputs.shape[-1], 2 * hidden)), "bias": (bias, (2 * hidden,))}
    context = f" and {hidden} hidden features"
    batch = check_layer(inputs, expected, hidden, context, states=states, lengths=lengths, tokens=tokens)
    dtype = inputs.dtype
    # The gate's numbers near 1 differ by less than bfloat16 holds, and decide how long a state lives.
    wide = jnp.promote_types(dtype, jnp.float32)
    projected, tokens, valid = project(inputs, input_kernel.astype(dtype), bias, lengths, tokens, wide)
    if tokens is not None:
        projected = jnp.take(projected, tokens, axis=0)
    gate, candidate = jnp.split(projected, 2, axis=-1)
    decay, update = jax.nn.sigmoid(-gate), jax.nn.sigmoid(gate) * candidate
    if valid is not None:
        decay, update = jnp.where(valid, decay, 1), jnp.where(valid, update, 0)
    first = jnp.zeros((batch, hidden), wide) if initial_state is None else initial_state.astype(wide)
    states = _run(reverse, decay, update, first).astype(dtype)
    last = states[0 if reverse else -1]
    outputs = states if valid is None else jnp.where(valid, states, jnp.zeros((), dtype))
    return outputs.swapaxes(0, 1), last


# One trace per shape also outside jit: an eager platform_dependent would compile anew on every call.
@one_call("accelnet_linear_states", 1)
@partial(jax.jit, static_argnums=0, inline=True)
def _run(reverse: bool, decay: Array, inputs: Array, first: Array) -> Array:
    return _states(reverse, decay, inputs, first)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _states(reverse: bool, decay: Array, inputs: Array, first: Array) -> Array:
    # The rounds are laid out when the program is made, for a number of steps that is known then.
    rounds = states_by_rounds if isinstance(decay.shape[0], int) else states_by_loop
    cpu, default = (partial(program, reverse) for program in (states_by_loop, rounds))
    return lax.platform_dependent(decay, inputs, first, cpu=cpu, default=default)


def states_by_loop(reverse: bool, decay: Array, inputs: Array, first: Array) -> Array:
    """Compute the states one after the other, all arrays [steps, ...] but `first`."""

    def step(state: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        state = xs[0] * state + xs[1]
        return state, state

    return lax.scan(step, first, (decay, inputs), reverse=reverse)[1]


def states_by_rounds(reverse: bool, decay: Array, inputs: Array, first: Array) -> Array:
    """Compute the same by composing the steps' maps h -> a h + b, in a logarithmic number of rounds."""

    def compose(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
        return late[0] * early[0], late[0] * early[1] + late[1]

    start = -1 if reverse else 0
    inputs = inputs.at[start].add(decay[start] * first)
    return lax.associative_scan(compose, (decay, inputs), reverse=reverse)[1]


def _states_forward(reverse: bool, decay: Array, inputs: Array, first: Array) -> tuple[Array, tuple[Array, ...]]:
    states: Any = _states(reverse, decay, inputs, first)
    return states, (decay, first, states)


def _states_backward(reverse: bool, residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    decay, first, states = residuals
    start, stop = (-1, 0) if reverse else (0, -1)

    def shift(array: Array, edge: Array, forward: bool) -> Array:
        """Move the steps by one and put `edge` where one is missing."""
        return jnp.concatenate([edge[None], array[:-1]] if forward else [array[1:], edge[None]])

    next_decay = shift(decay, jnp.zeros_like(decay[stop]), forward=reverse)
    before = shift(states, first, forward=not reverse)
    dinputs: Any = _states(not reverse, next_decay, gradient, jnp.zeros_like(first))
    return dinputs * before, dinputs, decay[start] * dinputs[start]


_states.defvjp(_states_forward, _states_backward)
