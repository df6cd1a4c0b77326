"""Products with weights of 8 and 4 bits against NumPy, on every set of instructions that this machine has."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.errors import UserError
from accelnet.ops import gru, kernels, lstm, quantized, simple_rnn
from accelnet.ops import quantized_convolution as convolutions
from accelnet.ops.geometry import resolve
from accelnet.ops.quantized import MOST, pack, quantized_dot, unpack
from accelnet.ops.quantized_recurrence import QuantizedKernel, quantized_recurrence


def whole_numbers(rng, shape, bits):
    return rng.integers(-MOST[bits], MOST[bits], shape, endpoint=True).astype(np.int8)


def rounded(x):
    scale = np.abs(x).max(-1, keepdims=True) * np.float32(1 / 127)
    factor = np.float32(127) / np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    return np.round(x * factor).astype(np.int64), scale


@pytest.mark.cpu
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("instructions", [0, 1, 2])
def test_the_kernels_sums_are_exact_with_any_instructions(bits, instructions):
    rng = np.random.default_rng(bits)

    @jax.jit
    def product(*operands):
        with quantized.instructions(instructions):
            return quantized_dot(*operands)

    # One row and several panels, one panel, odd sizes, many rows; the largest numbers at all places at once.
    for rows, depth, columns in [(1, 40, 300), (1, 5, 3), (5, 31, 17), (70, 129, 130)]:
        x = rng.standard_normal((rows, depth)).astype(np.float32)
        weights = whole_numbers(rng, (depth, columns), bits)
        x[0], weights[:, 0] = np.abs(x[0]).max(), MOST[bits]
        scale, bias = rng.uniform(0.5, 2, (2, columns)).astype(np.float32)
        q, row_scale = rounded(x)
        expected = (q @ weights.astype(np.int64)).astype(np.float32) * (row_scale * scale) + bias
        packed = pack(weights, bits)
        actual = product(x, packed, scale, bias)
        chex.assert_trees_all_close(actual, expected, rtol=3e-7, atol=1e-6 * np.abs(expected).max())
        # Integers on accelerators, floats where there are no kernels.
        chex.assert_trees_all_close(quantized.product_of_integers(x, packed, scale, bias), expected, rtol=1e-6)


def test_rows_without_a_finite_largest_number_become_nan_and_zeros_stay():
    x = np.ones((5, 6), np.float32)
    x[0, 3], x[1, 2], x[2], x[3] = np.nan, -np.inf, 0, 1e-37
    weights, scale = pack(np.ones((6, 2), np.int8), 8), jnp.ones(2)
    by_kernel = jax.jit(quantized_dot)(x, weights, scale)
    for out in (by_kernel, quantized.product_of_integers(x, weights, scale)):
        assert np.isnan(out[:2]).all() and (out[2:4] == 0).all() and np.allclose(out[4], 6)


def test_a_product_has_the_gradient_of_the_product_without_rounding():
    rng = np.random.default_rng(0)
    weights = whole_numbers(rng, (6, 4), 8)
    x, scale, bias = (jnp.asarray(rng.uniform(0.5, 1, shape), jnp.float32) for shape in ((3, 6), (4,), (4,)))

    def loss(x, scale, bias):
        return jnp.sum(jnp.sin(quantized_dot(x, pack(weights, 8), scale, bias) / 100))

    out = np.asarray(quantized_dot(x, pack(weights, 8), scale, bias))
    outer = np.cos(out / 100) / 100
    dx, dscale, dbias = jax.jit(jax.grad(loss, (0, 1, 2)))(x, scale, bias)
    chex.assert_trees_all_close(dx, outer @ (weights * np.asarray(scale)).T, rtol=1e-5)
    chex.assert_trees_all_close(dscale, (outer * (out - np.asarray(bias)) / np.asarray(scale)).sum(0), rtol=1e-5)
    chex.assert_trees_all_close(dbias, outer.sum(0), rtol=1e-5)
    _, tangent = jax.jvp(lambda x: loss(x, scale, bias), (x,), (jnp.ones_like(x),))
    chex.assert_trees_all_close(tangent, dx.sum(), rtol=1e-5)


def test_members_of_a_population_have_weights_of_their_own_or_share_them():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((3, 2, 9)), jnp.float32)
    own = jnp.stack([pack(whole_numbers(rng, (9, 20), 4), 4) for _ in range(3)])
    scale = jnp.ones(20)
    for axes, operands in {(0, 0): (x, own), (0, None): (x, own[1]), (None, 0): (x[0], own)}.items():
        together = jax.jit(jax.vmap(lambda x, w: quantized_dot(x, w, scale), axes))(*operands)
        alone = [
            quantized_dot(*(o if axis is None else o[i] for o, axis in zip(operands, axes, strict=True)), scale)
            for i in range(3)
        ]
        chex.assert_trees_all_equal(together, jnp.stack(alone))


@pytest.mark.parametrize(
    ("bits", "shape", "taps", "features", "settings"),
    [
        (8, (3, 9, 8, 3), (3, 3), 18, {"padding": "SAME"}),
        (4, (2, 7, 9, 8), (3, 2), 33, {"padding": "VALID", "strides": (2, 3)}),
        (8, (2, 20, 5), (4,), 16, {"padding": ((3, 0),), "dilation": (2,)}),
        (4, (1, 4, 5, 3, 9), (2, 2, 2), 5, {"padding": "SAME"}),
    ],
)
def test_a_convolution_is_that_of_rounded_images(bits, shape, taps, features, settings):
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape).astype(np.float32)
    weights = whole_numbers(rng, (*taps, shape[-1], features), bits)
    scale, bias = rng.uniform(0.5, 2, (2, features)).astype(np.float32)
    strides = settings.get("strides", (1,) * len(taps))
    geometry = resolve(shape, weights.shape, strides, settings["padding"], None, settings.get("dilation"), 1)
    q, row_scale = rounded(x.reshape(len(x), -1))
    spatial = "DHW"[3 - len(taps) :]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=geometry.padding,
        rhs_dilation=geometry.rhs_dilation, dimension_numbers=layout,
    )  # fmt: skip
    sums = np.asarray(convolve(q.reshape(shape).astype(np.float32), weights.astype(np.float32)))
    expected = sums * row_scale.reshape(-1, *[1] * (len(shape) - 1)) * scale.reshape(*[1] * (len(shape) - 1), -1)
    expected = expected + bias.reshape(*[1] * (len(shape) - 1), -1)
    packed = convolutions.pack_kernels(weights, bits)
    chex.assert_trees_all_equal(convolutions.unpack_kernels(packed, weights.shape), weights)
    actual = jax.jit(lambda *a: convolutions.quantized_convolution(*a, taps, geometry))(x, packed, scale, bias)
    chex.assert_trees_all_close(actual, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())

    def loss(convolve):
        return lambda x, scale, bias: jnp.sum(jnp.sin(convolve(x, scale, bias) / 1e3))

    def plain(x, scale, bias):
        # Straight through: the values are the rounded ones, the derivative is that of the plain convolution.
        values = convolve(x, weights * scale.reshape(*[1] * (len(shape) - 1), -1))
        values = values + bias.reshape(*[1] * (len(shape) - 1), -1)
        return values + jax.lax.stop_gradient(expected - values)

    gradients = jax.grad(
        loss(lambda x, s, b: convolutions.quantized_convolution(x, packed, s, b, taps, geometry)), (0, 1, 2)
    )
    for one, other in zip(gradients(x, scale, bias), jax.grad(loss(plain), (0, 1, 2))(x, scale, bias), strict=True):
        chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


CELLS = {"lstm": (4, lstm), "gru": (3, gru), "simple": (1, simple_rnn)}


@pytest.mark.parametrize(
    ("cell", "bits", "hidden", "batch", "kind"),
    [
        ("lstm", 8, 33, 3, "lengths"),
        ("gru", 4, 48, 2, "tokens"),
        ("simple", 4, 20, 3, "lengths"),
        ("lstm", 8, 768, 1, "plain"),  # threads share the units
    ],
)
def test_a_recurrence_rounds_its_state_in_every_step(cell, bits, hidden, batch, kind):
    rng = np.random.default_rng(3)
    gates, plain = CELLS[cell]
    steps, features = 6, 7
    floats = functools.partial(np.asarray, dtype=np.float32)
    kernels_of = {}
    for name, depth in {"input": features, "recurrent": hidden}.items():
        whole = whole_numbers(rng, (depth, gates * hidden), bits)
        scale = floats(rng.uniform(0.5, 1.5, gates * hidden) / (MOST[bits] * math.sqrt(depth)))
        kernels_of[name] = QuantizedKernel(pack(whole, bits), scale)
        assert np.array_equal(unpack(kernels_of[name].packed, depth, gates * hidden), whole)
    bias = floats(0.1 * rng.standard_normal(gates * hidden))
    more = (floats(0.1 * rng.standard_normal(hidden)),) if cell == "gru" else ()
    options, inputs = {"reverse": kind == "lengths"}, floats(rng.standard_normal((batch, steps, features)))
    if kind == "lengths":
        options["lengths"] = jnp.array([6, 2, 0])
    if kind == "tokens":
        inputs, options["tokens"] = inputs.reshape(-1, features), rng.integers(0, 12, (batch, steps))
    weights = (kernels_of["input"], kernels_of["recurrent"], bias, *more)
    outputs, last = jax.jit(lambda i, w: quantized_recurrence(cell, i, *w, **options))(inputs, weights)
    with kernels.with_kernels(False):  # by the meaning, which says itself that it rounds every state
        expected = jax.jit(lambda i, w: quantized_recurrence(cell, i, *w, **options))(inputs, weights)
    # Where a state lies between two whole numbers, one of 127 steps of it can go either way.
    chex.assert_trees_all_close((outputs, last), expected, atol=2e-2)
    chex.assert_trees_all_close(np.mean(np.abs(outputs - expected[0])), 0, atol=1e-3)
    matrices = kernels_of["input"].floats(features), kernels_of["recurrent"].floats(hidden)
    near = plain(inputs, *matrices, bias, *more, **options)[0]
    assert np.abs(outputs - near).mean() < 0.02 < 5 * np.abs(near).mean()

    def loss(i, w):
        return jnp.mean(quantized_recurrence(cell, i, *w, **options)[0] ** 2)

    def plain_loss(i, scale):
        recurrent = kernels_of["recurrent"]._replace(scale=scale).floats(hidden)
        return jnp.mean(plain(i, matrices[0], recurrent, bias, *more, **options)[0] ** 2)

    got = jax.grad(lambda i, s: loss(i, (weights[0], weights[1]._replace(scale=s), *weights[2:])), (0, 1))
    for one, other in zip(
        got(inputs, weights[1].scale), jax.grad(plain_loss, (0, 1))(inputs, weights[1].scale), strict=True
    ):
        assert np.linalg.norm(one - other) < 0.2 * np.linalg.norm(other)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"packed weights have shape \(1, 2, 16, 4\), expected \(1, 3, 16, 4\)"):
        quantized_dot(jnp.ones((1, 9)), pack(jnp.ones((8, 2)), 8), jnp.ones(2))
    with pytest.raises(UserError, match="bits is 3, expected 8 or 4"):
        pack(jnp.ones((8, 2)), 3)


@pytest.mark.parametrize("bits", [8, 4])
def test_programs_for_accelerators_multiply_int8_with_sums_of_int32(bits):
    weights, scale = pack(np.ones((256, 128), np.int8), bits), jnp.ones(128)
    program = jax.export.export(jax.jit(quantized_dot), platforms=("cuda", "tpu"))
    text = program(jax.ShapeDtypeStruct((32, 256), jnp.float32), weights, scale).mlir_module()
    lines = [one for one in text.splitlines() if "stablehlo.dot_general" in one]
    assert lines and all("tensor<32x256xi8>, tensor<256x128xi8>) -> tensor<32x128xi32>" in line for line in lines)
