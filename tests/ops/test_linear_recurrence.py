"""Linear recurrences and the minGRU against loops in NumPy; both ways of computing them against each other."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.errors import UserError
from accelnet.ops.linear_recurrence import linear_recurrence, min_gru, states_by_loop, states_by_rounds

BATCH, STEPS, FEATURES, HIDDEN = 3, 7, 2, 4
LENGTHS = jnp.array([7, 0, 3])
directions = pytest.mark.parametrize("reverse", [False, True])


def make_operands(steps=STEPS, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    decay = jax.random.uniform(keys[0], (BATCH, steps, HIDDEN))
    return decay, jax.random.normal(keys[1], decay.shape), jax.random.normal(keys[2], (BATCH, HIDDEN))


def make_layer(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "inputs": jax.random.normal(keys[0], (BATCH, STEPS, FEATURES)),
        "input_kernel": jax.random.normal(keys[1], (FEATURES, 2 * HIDDEN)),
        "bias": jax.random.normal(keys[2], (2 * HIDDEN,)),
        "initial_state": jax.random.normal(keys[3], (BATCH, HIDDEN)),
    }


def batch_first(states):
    """One of the two ways, which have the steps in front, as a function of arrays with the batch in front."""

    def run(decay, inputs, first, reverse=False):
        return states(reverse, decay.swapaxes(0, 1), inputs.swapaxes(0, 1), first).swapaxes(0, 1)

    return run


def oracle(decay, inputs, state, reverse):
    decay, inputs, state = (np.asarray(array, np.float64) for array in (decay, inputs, state))
    states = np.zeros_like(inputs)
    for t in range(inputs.shape[1])[:: -1 if reverse else 1]:
        state = decay[:, t] * state + inputs[:, t]
        states[:, t] = state
    return states


def weigh(array):
    """A loss that every number enters with another weight."""
    return (array * jnp.cos(jnp.arange(array.size, dtype=array.dtype)).reshape(array.shape)).sum()


@directions
@pytest.mark.parametrize("steps", [1, 2, 7, 16])
def test_states_equal_a_loop_in_numpy(reverse, steps):
    operands = make_operands(steps)
    expected = oracle(*operands, reverse)
    for states in (linear_recurrence(*operands, reverse=reverse), batch_first(states_by_rounds)(*operands, reverse)):
        np.testing.assert_allclose(states, expected, rtol=1e-5, atol=1e-6)  # a few float32 roundings


@directions
def test_the_gradient_is_that_of_the_loop(reverse):
    operands = make_operands()
    found, expected, by_rounds = (
        jax.jit(jax.grad(lambda *args, f=f: weigh(f(*args)), argnums=(0, 1, 2)))(*operands)
        for f in (
            functools.partial(linear_recurrence, reverse=reverse),
            functools.partial(batch_first(states_by_loop), reverse=reverse),
            functools.partial(batch_first(states_by_rounds), reverse=reverse),
        )
    )
    for ours, theirs, others in zip(found, expected, by_rounds, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours, others, rtol=1e-5, atol=1e-6)


def test_the_second_derivative_exists():
    operands = make_operands()

    def slope(function, decay):
        return weigh(jax.grad(lambda decay: weigh(function(decay, *operands[1:]) ** 2))(decay))

    found = jax.jit(jax.grad(functools.partial(slope, linear_recurrence)))(operands[0])
    expected = jax.jit(jax.grad(functools.partial(slope, batch_first(states_by_loop))))(operands[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # large sums of products


def test_no_initial_state_is_zeros_and_vmap_equals_one_at_a_time():
    decay, inputs, state = make_operands()
    np.testing.assert_array_equal(
        linear_recurrence(decay, inputs), linear_recurrence(decay, inputs, jnp.zeros_like(state))
    )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make_operands(seed=seed) for seed in range(3)])
    together = jax.jit(jax.vmap(linear_recurrence))(*stacked)
    np.testing.assert_allclose(together[2], linear_recurrence(*make_operands(seed=2)), rtol=1e-6, atol=1e-6)


def test_on_accelerators_it_is_computed_in_rounds_and_on_the_cpu_in_a_loop():
    programs = {
        platform: jax.export.export(jax.jit(jax.grad(lambda *a: weigh(linear_recurrence(*a)))), platforms=[platform])(
            *make_operands()
        ).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "stablehlo.while" in programs["cpu"]
    for platform in ("cuda", "tpu"):
        assert "stablehlo.while" not in programs[platform]


def min_gru_oracle(a, lengths, reverse):
    """Every sequence by itself, cut to its length."""
    rows, lasts = [], []
    for b, length in enumerate(lengths.tolist()):
        inputs = np.asarray(a["inputs"][b, :length], np.float64)
        z, n = np.split(inputs @ np.asarray(a["input_kernel"]) + np.asarray(a["bias"]), 2, axis=-1)
        z = 1 / (1 + np.exp(-z))
        states = oracle((1 - z)[None], (z * n)[None], a["initial_state"][b : b + 1], reverse)[0]
        rows.append(np.concatenate([states, np.zeros((STEPS - length, HIDDEN))]))
        lasts.append(states[0 if reverse else -1] if length else np.asarray(a["initial_state"][b]))
    return np.stack(rows), np.stack(lasts)


@directions
def test_min_gru_equals_its_equations_whatever_the_padding_holds(reverse):
    a = make_layer()
    expected = min_gru_oracle(a, LENGTHS, reverse)
    padding = (jnp.arange(STEPS)[None, :] >= LENGTHS[:, None])[:, :, None]
    step = jax.jit(jax.value_and_grad(lambda a: weigh(min_gru(**a, lengths=LENGTHS, reverse=reverse)[0])))
    clean = step(a)
    for garbage in (0.0, jnp.inf, jnp.nan):
        dirty = a | {"inputs": jnp.where(padding, garbage, a["inputs"])}
        for found, theirs in zip(min_gru(**dirty, lengths=LENGTHS, reverse=reverse), expected, strict=True):
            np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal(step(dirty), clean)
    assert np.any(clean[1]["inputs"])


def test_a_sequence_in_two_pieces_equals_the_whole():
    a = make_layer()
    first, state = min_gru(**(a | {"inputs": a["inputs"][:, :3]}))
    second, state = min_gru(**(a | {"inputs": a["inputs"][:, 3:], "initial_state": state}))
    whole, last = min_gru(**a)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_bfloat16_and_close_to_float32():
    a = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make_layer())
    results = min_gru(**a)
    assert {leaf.dtype for leaf in results} == {jnp.dtype(jnp.bfloat16)}
    exact = min_gru(**jax.tree.map(lambda leaf: leaf.astype(jnp.float32), a))
    # States are kept in float32: what is left is the rounding of the result, 0.4 %.
    np.testing.assert_allclose(results[0].astype(jnp.float32), exact[0], rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": jnp.zeros((3, 7))}, "expected floats"),
        ({"inputs": jnp.zeros((3, 7, 2), jnp.int32)}, "int32"),
        ({"input_kernel": jnp.zeros((2, 7))}, "input_kernel has shape"),
        ({"bias": jnp.zeros(4)}, "bias has shape"),
        ({"initial_state": jnp.zeros((1, 4))}, "initial_state has shape"),
        ({"lengths": jnp.zeros(4, jnp.int32)}, "lengths has shape"),
        ({"lengths": jnp.zeros(3)}, "lengths are float32"),
    ],
)
def test_bad_arguments_of_min_gru_are_named(change, message):
    with pytest.raises(UserError, match=message):
        min_gru(**(make_layer() | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": jnp.zeros((3, 7, 4), jnp.int32)}, "inputs are int32"),
        ({"decay": jnp.zeros((3, 7))}, "decay has shape"),
        ({"initial_state": jnp.zeros((3, 7, 4))}, "initial_state has shape"),
    ],
)
def test_bad_arguments_of_a_linear_recurrence_are_named(change, message):
    operands = dict(zip(("decay", "inputs", "initial_state"), make_operands(), strict=True))
    with pytest.raises(UserError, match=message):
        linear_recurrence(**(operands | change))
