"""The recurrent ops against a step-by-step oracle, Flax's cells and themselves, padding above all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from accelnet.errors import UserError
from accelnet.ops.recurrence import gru, lstm, simple_rnn
from tests.ops.recurrences import (
    BATCH,
    FEATURES,
    GATES,
    HIDDEN,
    LENGTHS,
    STEPS,
    assert_close,
    assert_equal,
    cells,
    directions,
    make_arrays,
    oracle,
    run,
    run_with_gradient,
    scalar,
)


@pytest.mark.parametrize(
    ("cell", "reverse", "ragged"),
    [
        ("simple", False, True), ("simple", True, False), ("lstm", False, False), ("lstm", True, True),
        ("gru", False, True), ("gru", True, False), ("gru", True, True),
    ],
)  # fmt: skip
def test_values_and_every_gradient_equal_a_loop_over_steps(cell, reverse, ragged):
    lengths = LENGTHS if ragged else None
    arrays = make_arrays(cell)
    results, ours = run_with_gradient(cell, arrays, lengths, reverse)
    expected, theirs = run_with_gradient(cell, arrays, lengths, reverse, function=oracle)
    assert_close(results, expected)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # gradients sum over all steps and sequences


def test_lstm_equals_the_cell_of_flax():
    a = make_arrays("lstm")
    cell = nnx.LSTMCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    for n, gate in enumerate(["i", "f", "g", "o"]):
        part = slice(n * HIDDEN, (n + 1) * HIDDEN)
        layer = getattr(cell, "if_" if gate == "f" else f"i{gate}")
        layer.kernel[...] = a["input_kernel"][:, part]
        getattr(cell, f"h{gate}").kernel[...] = a["recurrent_kernel"][:, part]
        getattr(cell, f"h{gate}").bias[...] = a["bias"][part]
    h, c = a["initial_state"]
    carry = (c, h)
    outputs, state = run("lstm", a)
    for t in range(STEPS):
        carry, expected = cell(carry, a["inputs"][:, t])
        assert_close(outputs[:, t], expected)
    assert_close(state, (carry[1], carry[0]))


@pytest.mark.parametrize("cell", ["gru", "simple"])
def test_gru_and_simple_equal_the_cells_of_flax(cell):
    a = make_arrays(cell)
    a.pop("recurrent_bias", None)
    flax_cell = (nnx.GRUCell if cell == "gru" else nnx.SimpleCell)(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    flax_cell.dense_i.kernel[...] = a["input_kernel"]
    flax_cell.dense_i.bias[...] = a["bias"]
    flax_cell.dense_h.kernel[...] = a["recurrent_kernel"]
    carry = a["initial_state"]
    outputs, state = run(cell, a)
    for t in range(STEPS):
        carry, expected = flax_cell(carry, a["inputs"][:, t])
        assert_close(outputs[:, t], expected)
    assert_close(state, carry)


@cells
@directions
def test_padding_never_changes_a_bit_of_an_output_or_gradient(cell, reverse):
    clean = make_arrays(cell)
    padding = (jnp.arange(STEPS)[None, :] >= LENGTHS[:, None])[:, :, None]
    step = jax.jit(lambda a: run_with_gradient(cell, a, LENGTHS, reverse))
    expected = step(clean)
    for garbage in (1e30, jnp.inf, jnp.nan):
        found = step(clean | {"inputs": jnp.where(padding, garbage, clean["inputs"])})
        assert_equal(found, expected)
        gradient = found[1]["inputs"]
        assert not np.any(np.where(padding, gradient, 0))
        assert np.any(gradient)


@cells
@directions
def test_more_padding_changes_nothing(cell, reverse):
    short, long = make_arrays(cell), make_arrays(cell, steps=STEPS + 7)
    long["inputs"] = long["inputs"].at[:, :STEPS].set(short["inputs"])
    long |= {name: array for name, array in short.items() if name != "inputs"}

    def cut(cell, a, lengths, reverse):
        outputs, state = run(cell, a, lengths, reverse)
        return outputs[:, :STEPS], state

    outputs, _ = run(cell, long, LENGTHS, reverse)
    assert not np.any(outputs[:, STEPS:])
    found, left = run_with_gradient(cell, long, LENGTHS, reverse, function=cut)
    expected, right = run_with_gradient(cell, short, LENGTHS, reverse)
    left["inputs"] = left["inputs"][:, :STEPS]
    assert_close((found, left), (expected, right))


@cells
def test_reverse_without_lengths_is_the_flipped_sequence(cell):
    a = make_arrays(cell)
    outputs, state = run(cell, a | {"inputs": a["inputs"][:, ::-1]})
    assert_close(run(cell, a, reverse=True), (outputs[:, ::-1], state))


@cells
def test_final_state_is_the_output_of_each_last_step(cell):
    outputs, state = run(cell, make_arrays(cell), LENGTHS)
    hidden = state[0] if cell == "lstm" else state
    for row in (0, 1, 3):
        np.testing.assert_array_equal(hidden[row], outputs[row, LENGTHS[row] - 1])


@cells
def test_a_sequence_in_two_pieces_equals_the_whole(cell):
    a = make_arrays(cell)
    first, state = run(cell, a | {"inputs": a["inputs"][:, :2]})
    second, state = run(cell, a | {"inputs": a["inputs"][:, 2:], "initial_state": state})
    assert_close((jnp.concatenate([first, second], axis=1), state), run(cell, a))


@cells
def test_a_missing_initial_state_is_zeros(cell):
    a = make_arrays(cell)
    zeros = a | {"initial_state": jax.tree.map(jnp.zeros_like, a["initial_state"])}
    # Two programs: an H200's differ in the last bit.
    assert_close(run(cell, a | {"initial_state": None}), run(cell, zeros), rtol=1e-6, atol=1e-7)


@cells
def test_vmap_over_weights_and_inputs_equals_one_at_a_time(cell):
    members = [make_arrays(cell, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    step = jax.jit(lambda a: run_with_gradient(cell, a, LENGTHS))
    alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[step(member) for member in members])
    assert_close(jax.jit(jax.vmap(step))(stacked), alone, rtol=1e-4, atol=1e-5)
    shared = members[0] | {"inputs": stacked["inputs"]}
    axes = dict.fromkeys(shared, None) | {"inputs": 0}
    outputs = jax.jit(jax.vmap(lambda a: run(cell, a)[0], in_axes=(axes,)))(shared)
    assert_close(outputs[2], run(cell, members[0] | {"inputs": members[2]["inputs"]})[0])


@cells
def test_gradient_inside_scan_and_remat_equals_the_one_outside(cell):
    a = make_arrays(cell)
    rematerialized = jax.grad(jax.checkpoint(lambda a: scalar(run(cell, a, LENGTHS))))
    body = lambda carry, _: (carry, rematerialized(carry))  # noqa: E731
    _, stacked = jax.jit(lambda a: jax.lax.scan(body, a, None, length=2))(a)
    _, expected = run_with_gradient(cell, a, LENGTHS)
    assert_close(jax.tree.map(lambda leaf: leaf[1], stacked), expected)


@cells
def test_bfloat16_stays_bfloat16_and_close_to_float32(cell):
    a = make_arrays(cell)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), a)
    results = run(cell, half, LENGTHS)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.bfloat16)}
    _, gradient = run_with_gradient(cell, half, LENGTHS)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    # bfloat16 holds 8 bits: 0.4 % per rounding, and the recurrence adds up six of them.
    exact = run(cell, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half), LENGTHS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x.astype(jnp.float32), y, atol=0.05), results, exact)


@cells
def test_wide_weights_do_not_widen_bfloat16_inputs(cell):
    a = make_arrays(cell)
    outputs, _ = run(cell, a | {"inputs": a["inputs"].astype(jnp.bfloat16)})
    assert outputs.dtype == jnp.bfloat16


@cells
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_tokens_read_rows_of_the_inputs_and_those_of_the_padding_change_nothing(cell, lengths):
    a = make_arrays(cell)
    table = jax.random.normal(jax.random.key(1), (7, FEATURES))
    tokens = jax.random.randint(jax.random.key(2), (BATCH, STEPS), 0, 7)
    function = {"simple": simple_rnn, "lstm": lstm, "gru": gru}[cell]

    def loss(arrays, tokens, gathered):
        inputs, options = (arrays["inputs"][tokens], {}) if gathered else (arrays["inputs"], {"tokens": tokens})
        results = function(**(arrays | {"inputs": inputs}), lengths=lengths, **options)
        return scalar(results), results

    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    arrays = a | {"inputs": table}
    gradient, results = step(arrays, tokens, False)
    theirs, expected = step(arrays, tokens, True)
    assert_close(results, expected)
    assert_close(gradient, theirs, rtol=1e-4, atol=1e-5)  # gradients sum over all steps and sequences
    if lengths is not None:
        padding = jnp.arange(STEPS)[None, :] >= LENGTHS[:, None]
        assert_equal(step(arrays, jnp.where(padding, 1000, tokens), False), (gradient, results))


def test_all_input_projections_are_one_product_and_so_is_the_kernels_gradient():
    a = make_arrays("lstm") | {"inputs": jnp.ones((4, 6, 3), jnp.float16)}  # float32 and bfloat16 have kernels
    jaxpr = jax.make_jaxpr(jax.grad(lambda a: scalar(lstm(**a)).astype(jnp.float32)))(a).jaxpr

    def scans(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                yield equation.params["jaxpr"]
            else:
                yield from (found for body in jaxprs_in_params(equation.params) for found in scans(body))

    assert [sum(e.primitive.name == "dot_general" for e in scan.eqns) for scan in scans(jaxpr)] == [1, 1]


@pytest.mark.parametrize(
    ("cell", "reverse", "ragged"), [("simple", False, True), ("lstm", True, True), ("gru", True, False)]
)
def test_a_recurrent_kernel_of_two_matrices_is_their_product_with_every_gradient(cell, reverse, ragged):
    lengths, arrays = LENGTHS if ragged else None, make_arrays(cell)
    down, up = arrays["recurrent_kernel"][:, :2], jax.random.normal(jax.random.key(9), (2, GATES[cell] * HIDDEN))

    def whole(cell, arrays, lengths, reverse):
        down, up = arrays["recurrent_kernel"]
        return run(cell, arrays | {"recurrent_kernel": down @ up}, lengths, reverse)

    arrays["recurrent_kernel"] = down, up
    results, ours = run_with_gradient(cell, arrays, lengths, reverse)
    expected, theirs = run_with_gradient(cell, arrays, lengths, reverse, function=whole)
    assert_close(results, expected)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # gradients sum over all steps and sequences
    if ragged:
        padding = jnp.arange(STEPS)[None, :, None] >= LENGTHS[:, None, None]
        other = arrays | {"inputs": jnp.where(padding, jnp.nan, arrays["inputs"])}
        assert_equal(run_with_gradient(cell, other, lengths, reverse), (results, ours))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": jnp.zeros((4, 6))}, "expected floats"),
        ({"inputs": jnp.zeros((4, 6, 3), jnp.int32)}, "int32"),
        ({"inputs": jnp.zeros((4, 6, 2))}, "input_kernel has shape"),
        ({"recurrent_kernel": jnp.zeros((5, 5))}, "recurrent_kernel has shape"),
        ({"recurrent_kernel": (jnp.zeros((5, 2)), jnp.zeros((3, 20)))}, "recurrent_kernel has shape"),
        ({"bias": jnp.zeros(5)}, "bias has shape"),
        ({"initial_state": (jnp.zeros((4, 5)),)}, "initial_state has 1"),
        ({"initial_state": (jnp.zeros((4, 5)), jnp.zeros((1, 5)))}, "initial_state.1. has shape"),
        ({"lengths": jnp.zeros(3, jnp.int32)}, "lengths has shape"),
        ({"lengths": jnp.zeros(4)}, "expected integers"),
        ({"tokens": jnp.zeros((4, 6))}, "tokens are float32"),
        ({"tokens": jnp.zeros((4, 6), jnp.int32)}, "expected floats .symbols, features."),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        lstm(**(make_arrays("lstm") | change))


def test_a_bad_recurrent_bias_is_named():
    with pytest.raises(UserError, match="recurrent_bias has shape"):
        gru(**(make_arrays("gru") | {"recurrent_bias": jnp.zeros(15)}))


def test_a_gpu_takes_several_steps_in_one_trip_of_the_loop():
    arguments = jnp.ones((2, 16, 3)), jnp.ones((3, 16)), jnp.ones((4, 16)), jnp.ones(16)
    traced = jax.jit(lambda *a: lstm(*a)[0]).trace(*arguments)
    turns = {
        platform: traced.lower(lowering_platforms=(platform,))
        .as_text()
        .count("stablehlo.constant dense<4> : tensor<i32>")
        for platform in ("cuda", "tpu")
    }
    assert turns["cuda"] > turns["tpu"] == 0  # of 4 steps each, not 16
