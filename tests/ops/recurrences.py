"""Recurrences as loops over steps in NumPy, and the arrays to compare them with."""

import chex
import jax
import jax.numpy as jnp
import pytest

from accelnet.ops.recurrence import gru, lstm, simple_rnn

BATCH, STEPS, FEATURES, HIDDEN = 4, 6, 3, 5


LENGTHS = jnp.array([6, 1, 0, 4])
GATES = {"simple": 1, "lstm": 4, "gru": 3}


# Sums of a few dozen float32 products in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


cells = pytest.mark.parametrize("cell", list(GATES))


directions = pytest.mark.parametrize("reverse", [False, True])


def make_arrays(cell, seed=0, steps=STEPS):
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    width = GATES[cell] * HIDDEN
    arrays = {
        "inputs": jax.random.normal(next(keys), (BATCH, steps, FEATURES)),
        "input_kernel": jax.random.normal(next(keys), (FEATURES, width)),
        "recurrent_kernel": jax.random.normal(next(keys), (HIDDEN, width)) / 2,
        "bias": jax.random.normal(next(keys), (width,)),
        "initial_state": jax.random.normal(next(keys), (BATCH, HIDDEN)),
    }
    if cell == "lstm":
        arrays["initial_state"] = (arrays["initial_state"], jax.random.normal(next(keys), (BATCH, HIDDEN)))
    if cell == "gru":
        arrays["recurrent_bias"] = jax.random.normal(next(keys), (HIDDEN,))
    return arrays


def run(cell, arrays, lengths=None, reverse=False):
    """Outputs and final state, whatever the cell."""
    function = {"simple": simple_rnn, "lstm": lstm, "gru": gru}[cell]
    return jax.jit(lambda a: function(**a, lengths=lengths, reverse=reverse))(arrays)


def run_with_gradient(cell, arrays, lengths=None, reverse=False, function=run):
    """Results and the gradient of `scalar` by every array, in one compiled program."""

    def loss(arrays):
        results = function(cell, arrays, lengths, reverse)
        return scalar(results), results

    gradient, results = jax.jit(jax.grad(loss, has_aux=True))(arrays)
    return results, gradient


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def oracle_step(cell, x, state, a):
    """One step of one sequence, written from the equations in the docstrings."""
    p = x @ a["input_kernel"] + a["bias"]
    if cell == "simple":
        return jnp.tanh(p + state @ a["recurrent_kernel"])
    if cell == "lstm":
        h, c = state
        i, f, g, o = jnp.split(p + h @ a["recurrent_kernel"], 4)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c
    p_r, p_z, p_n = jnp.split(p, 3)
    r_r, r_z, r_n = jnp.split(state @ a["recurrent_kernel"], 3)
    z = sigmoid(p_z + r_z)
    n = jnp.tanh(p_n + sigmoid(p_r + r_r) * (r_n + a["recurrent_bias"]))
    return (1 - z) * n + z * state


def oracle(cell, arrays, lengths=None, reverse=False):
    """Every sequence by itself, cut to its length: a plain scan of the step, flipped for reverse."""
    steps = arrays["inputs"].shape[1]

    def step(state, x):
        state = oracle_step(cell, x, state, arrays)
        return state, state[0] if cell == "lstm" else state

    rows, states = [], []
    for b, length in enumerate([steps] * BATCH if lengths is None else lengths.tolist()):
        order = slice(None, None, -1) if reverse else slice(None)
        state = jax.tree.map(lambda s, b=b: s[b], arrays["initial_state"])
        state, row = jax.lax.scan(step, state, arrays["inputs"][b, :length][order])
        rows.append(jnp.concatenate([row[order], jnp.zeros((steps - length, HIDDEN))]))
        states.append(state)
    return jnp.stack(rows), jax.tree.map(lambda *s: jnp.stack(s), *states)


def scalar(results):
    """A loss that every output and state enters with a different weight."""
    leaves = jax.tree.leaves(results)
    return sum((leaf * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)).sum() for leaf in leaves)


def assert_equal(left, right):
    chex.assert_trees_all_equal(left, right)


def assert_close(left, right, **tolerance):
    chex.assert_trees_all_close(left, right, **(tolerance or CLOSE))
