"""Every primitive in onnxruntime against JAX, at random numbers and for a batch of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from accelnet import ops

SIZES = ((1, 4), (3, 4))


def _weights(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def _positive(function):
    return lambda x: function(jnp.abs(x) + 0.1)


ELEMENTWISE = {
    "abs": jnp.abs,
    "arithmetic": lambda x: (x + 1) * x - x / (jnp.abs(x) + 1),
    "arctan2": lambda x: jnp.arctan2(x, x[:, ::-1]),
    "bits": lambda x: (jnp.int32(8) * x).astype(jnp.int32) & 5 | 2 ^ 7,
    "cast_to_uint8": lambda x: (jnp.abs(x) * 20).astype(jnp.uint8).astype(jnp.float32) / 255,
    "cbrt": jnp.cbrt,
    "ceil": jnp.ceil,
    "clip": lambda x: lax.clamp(-0.3, x, 0.4),
    "comparisons": lambda x: ((x > 0) & (x < 1) | (x == 0) ^ (x != x)).astype(jnp.float32) + (~(x >= 0.5)),
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "elu": jax.nn.elu,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1_of_small": lambda x: jnp.expm1(x * 1e-4),
    "expm1": jnp.expm1,
    "floor": jnp.floor,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "integer_division": lambda x: (x * 10).astype(jnp.int32) // 3 + (x * 10).astype(jnp.int32) % 3,
    "integer_pow": lambda x: x**3 + x**5 + (x + 5) ** -1,
    "inverse_trigonometric": lambda x: jnp.arctan(x) + jnp.arcsin(jnp.tanh(x)) + jnp.arccos(jnp.tanh(x)),
    "inverse_hyperbolic": lambda x: jnp.arcsinh(x) + jnp.arctanh(x / 9) + jnp.arccosh(jnp.abs(x) + 1.1),
    "is_finite": lambda x: jnp.isfinite(x / jnp.maximum(x, 0)).astype(jnp.float32),
    "leaky_relu": jax.nn.leaky_relu,
    "log": _positive(jnp.log),
    "log1p_of_small": lambda x: jnp.log1p(jnp.abs(x) * 1e-4),
    "log1p": _positive(jnp.log1p),
    "log_softmax": jax.nn.log_softmax,
    "logistic": jax.nn.sigmoid,
    "maximum_and_minimum": lambda x: jnp.maximum(x, x[:, ::-1]) + jnp.minimum(x, 0.2),
    "pow": _positive(lambda x: x**1.7),
    "relu6": jax.nn.relu6,
    "remainder": lambda x: jnp.fmod(x, 0.7) + jnp.mod(x, 0.7),
    "round": lambda x: jnp.round(x * 2) + lax.round(x * 3, lax.RoundingMethod.AWAY_FROM_ZERO),
    "rsqrt": _positive(lax.rsqrt),
    "short_integers": lambda x: (jnp.abs(x) * 9).astype(jnp.uint8) + jnp.uint8(3),
    "sign": jnp.sign,
    "sin": jnp.sin,
    "sinh": jnp.sinh,
    "softmax": jax.nn.softmax,
    "softplus": jax.nn.softplus,
    "sqrt": _positive(jnp.sqrt),
    "square": jnp.square,
    "stop_gradient": lax.stop_gradient,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
    "where": lambda x: jnp.where(x > 0, x, -2 * x),
    "where_of_bool": lambda x: jnp.where(x > 0, x > 1, x < -1),
    "where_of_three": lambda x: lax.select_n((x > 0).astype(jnp.int32) + (x > 1), x, 2 * x, 3 * x),
}
SHAPES = {
    "at_add": lambda x: x.at[jnp.arange(x.shape[0]), jnp.argmax(x, 1)].add(3.0),
    "at_set": lambda x: x.at[:, 2].set(9.0),
    "at_outside": lambda x: jnp.zeros(4).at[jnp.argmax(x, 1)].add(1.0, mode="drop"),
    "batch_as_number": lambda x: x / x.shape[0],
    "broadcast": lambda x: x[:, None, :] * jnp.arange(3.0)[None, :, None] + jnp.ones((1, 1, 6)),
    "concatenate": lambda x: jnp.concatenate([x, x * 2, jnp.ones((x.shape[0], 2))], 1),
    "concatenate_rows": lambda x: jnp.concatenate([x, jnp.ones((2, 6))], 0),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (0, jnp.int32(x.sum() > 0) * 9), (x.shape[0], 3)),
    "dynamic_update": lambda x: lax.dynamic_update_slice(
        x, jnp.ones((x.shape[0], 2)), (jnp.int32(0), jnp.int32(x.sum() > 0))
    ),
    "embedding": lambda x: jnp.take(_weights(7, 3), jnp.argmax(x, 1), axis=0),
    "embedding_outside": lambda x: jnp.nan_to_num(jnp.take(_weights(4, 3), jnp.argmax(x, 1), axis=0), nan=5.0),
    "flip": lambda x: jnp.flip(x, 0),
    "gather_of_two_axes": lambda x: x[jnp.arange(x.shape[0]), jnp.argmax(x, 1)],
    "gather_of_windows": lambda x: jax.vmap(lambda row, i: lax.dynamic_slice(row, (i,), (2,)))(x, jnp.argmax(x, 1)),
    "iota": lambda x: x + lax.broadcasted_iota(jnp.float32, (x.shape[0], 6), 0),
    "iota_of_known_size": lambda x: x + lax.broadcasted_iota(jnp.float32, (x.shape[0], 6), 1),
    "one_hot": lambda x: jax.nn.one_hot(jnp.argmax(x, 1), 6),
    "pad": lambda x: lax.pad(x, jnp.float32(1), [(0, 0, 0), (2, 1, 2)]),
    "pad_by_repeating": lambda x: jnp.pad(x, ((0, 0), (2, 1)), mode="edge"),
    "pad_and_crop": lambda x: lax.pad(x, jnp.float32(1), [(1, 2, 0), (-1, 3, 1)]),
    "repeat": lambda x: jnp.repeat(x, 2, axis=1),
    "reshape": lambda x: x.reshape(-1, 2, 3).transpose(2, 0, 1).reshape(3, -1),
    "roll": lambda x: jnp.roll(x, 2, 1) + jnp.roll(x, 1, 0),
    "slice": lambda x: x[:, 1:5:2] + x[:, ::-2][:, :2],
    "split": lambda x: sum(jnp.split(x, 3, 1)),
    "stack": lambda x: jnp.stack([x, x * 2], 1),
    "take": lambda x: jnp.take(x, jnp.array([[0, 2], [5, 1]]), axis=1),
    "take_along_axis": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "tile": lambda x: jnp.tile(x, (2, 3)),
    "triangle": lambda x: jnp.tril(x[:, :, None] * jnp.ones((1, 1, 6))),
}
REDUCTIONS = {
    "any_and_all": lambda x: (x > 0).any(1).astype(jnp.float32) + (x > -1).all(1),
    "argmax_and_argmin": lambda x: jnp.argmax(x, 1) + jnp.argmin(x, 1),
    "cumulative_sums": lambda x: jnp.cumsum(x, 1) + jnp.cumsum(x, 0) + lax.cumsum(x, 1, reverse=True),
    "cumulative_extremes": lambda x: (
        lax.cummax(x, 1) - lax.cummin(x, 0) + lax.cummin((x * 9).astype(int), 1, reverse=True)
    ),
    "cumulative_logsumexp": lambda x: lax.cumlogsumexp(x, axis=1) + lax.cumlogsumexp(x, axis=0, reverse=True),
    "cumulative_products": lambda x: jnp.cumprod(x, 1) + lax.cumprod(x, 0, reverse=True),
    "logsumexp": lambda x: jax.nn.logsumexp(x, 1),
    "median": lambda x: jnp.median(x, 1),
    "reductions": lambda x: x.sum(1) + x.max(1) - x.min(1) + x.prod(1),
    "sort": lambda x: jnp.sort(x, 1),
    "standardized": lambda x: (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True),
    "sum_of_repeated": lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 3, 6)).sum(1),
    "top_k": lambda x: lax.top_k(x, 3)[0] + lax.top_k(x, 3)[1],
}
PRODUCTS = {
    "batches": lambda x: jnp.einsum("bhd,bgd->bhg", x.reshape(-1, 2, 3), x.reshape(-1, 2, 3) + 1),
    "einsum": lambda x: jnp.einsum("bij,bjk->bki", x.reshape(-1, 2, 3), x.reshape(-1, 3, 2)),
    "gram": lambda x: x @ x.T,
    "matrix": lambda x: x @ _weights(6, 4),
    "matrix_before": lambda x: _weights(3, 6) @ x.T,
    "no_axis_in_common": lambda x: jnp.einsum("bi,bj->bij", x, x),
    "of_accelnet": lambda x: ops.dot_general(x, _weights(6, 4), (((1,), (0,)), ((), ()))),
    "two_axes": lambda x: jnp.tensordot(x.reshape(-1, 2, 3), _weights(3, 2, 5), ((2, 1), (0, 1))),
    "vector": lambda x: x @ jnp.arange(6.0),
}
LOOPS = {
    "checkpoint": jax.checkpoint(jnp.sin),
    "cond": lambda x: lax.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, x),
    "fori_loop": lambda x: lax.fori_loop(0, 4, lambda i, c: jnp.tanh(c) + i, x),
    "scan": lambda x: lax.scan(lambda c, y: (c * 0.5 + y, c), jnp.zeros(x.shape[0]), x.T)[1],
    "scan_backwards": lambda x: lax.scan(
        lambda c, y: ((c[0] * 0.5 + y, c[1] + 1), c[0] + c[1] + x.sum()), (jnp.zeros(x.shape[0]), 0), x.T, reverse=True
    )[1],
    "switch": lambda x: lax.switch(jnp.int32(x.sum() > 0) + 1, [jnp.cos, lambda x: x - 1, jnp.sin], x),
}
CASES = ELEMENTWISE | SHAPES | REDUCTIONS | PRODUCTS | LOOPS


@pytest.mark.parametrize("name", CASES)
def test_a_primitive_computes_what_jax_computes(name, agrees, tools):
    agrees(CASES[name], tools.shape("b", 6), SIZES)


CONVOLUTIONS = [
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 3), "padding": "VALID"},
    {"window_strides": (2, 2), "padding": "SAME", "rhs_dilation": (2, 1)},
    {"window_strides": (1, 1), "padding": ((-1, 2), (0, -2))},
    {"window_strides": (1, 1), "padding": ((1, 2), (2, 3)), "lhs_dilation": (2, 3)},
    {"window_strides": (2, 2), "padding": ((5, 2), (2, 6)), "lhs_dilation": (2, 1)},
    {"window_strides": (1, 1), "padding": ((4, 5), (2, 6)), "lhs_dilation": (2, 2), "rhs_dilation": (1, 2)},
]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("convolve", [lax.conv_general_dilated, ops.conv_general_dilated], ids=["lax", "accelnet"])
def test_a_convolution_is_one_operator(settings, groups, convolve, agrees, tools):
    kernel, layout = _weights(3, 3, 4 // groups, 8), ("NHWC", "HWIO", "NHWC")

    def function(x):
        return convolve(x, kernel, dimension_numbers=layout, feature_group_count=groups, **settings)

    counts = agrees(function, tools.shape("b", 9, 11, 4), SIZES)
    assert counts["Conv"] + counts["ConvTranspose"] == 1 and counts["MatMul"] == 0


def test_convolutions_of_other_layouts_and_axes(agrees, tools):
    def function(x):
        first = lax.conv_general_dilated(x.transpose(0, 3, 1, 2), _weights(6, 4, 3, 3), (1, 1), "SAME")
        line = lax.conv_general_dilated(
            x[:, 0], _weights(3, 4, 5), (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        own = lax.conv_general_dilated(
            x, x[0, :3, :3, :, None], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return {"first": first, "line": line, "own": own}

    assert agrees(function, tools.shape("b", 9, 11, 4), SIZES)["Conv"] == 3


POOLINGS = {
    "max": (lambda x: nnx.max_pool(x, (2, 2), (2, 2)), "MaxPool"),
    "max_that_overlaps": (lambda x: nnx.max_pool(x, (3, 2), (2, 1), "SAME"), "MaxPool"),
    "min": (lambda x: nnx.min_pool(x, (3, 2), (2, 1), "SAME"), "MaxPool"),
    "mean": (lambda x: nnx.avg_pool(x, (2, 2), (2, 2)), "AveragePool"),
    "mean_of_pixels_that_are": (
        lambda x: nnx.avg_pool(x, (3, 3), (2, 1), "SAME", count_include_pad=False),
        "AveragePool",
    ),
    "accelnet_max": (lambda x: ops.max_pool(x, (2, 2), (2, 2)), "MaxPool"),
    "accelnet_max_that_overlaps": (lambda x: ops.max_pool(x, (3, 2), (2, 1), "SAME"), "MaxPool"),
    "accelnet_mean": (lambda x: ops.avg_pool(x, (2, 2), (2, 2)), "AveragePool"),
    "accelnet_mean_that_overlaps": (lambda x: ops.avg_pool(x, (3, 3), (2, 1), "SAME", False), "AveragePool"),
    "accelnet_mean_of_padded": (lambda x: ops.avg_pool(x, (2, 3), (2, 3), "SAME"), "AveragePool"),
    "by_reshape": (lambda x: x[:, :8, :10].reshape(-1, 4, 2, 5, 2, 4).max((2, 4)), "MaxPool"),
    "of_channels": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 1, 2), (1, 1, 1, 2), "VALID"),
        "AveragePool",
    ),
    "of_a_line": (lambda x: nnx.max_pool(x[:, 0], (2,), (2,)), "MaxPool"),
    "wide_padding": (
        lambda x: lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, 2, 2, 1),
            (1, 1, 1, 1),
            ((0, 0), (1, 1), (0, 1), (0, 0)),
            base_dilation=(1, 2, 1, 1),
        ),
        "MaxPool",
    ),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_is_one_operator(name, agrees, tools):
    function, op = POOLINGS[name]
    assert agrees(function, tools.shape("b", 9, 11, 4), SIZES)[op] == 1


def test_an_image_stays_in_the_layout_of_convolutions(agrees, tools):
    kernel = _weights(3, 3, 4, 4)

    def function(x):
        for _ in range(3):
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = nnx.relu(ops.max_pool(y, (2, 2), (1, 1)) * jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4) + 0.5)
        return x.mean((1, 2))

    assert agrees(function, tools.shape("b", 9, 11, 4), SIZES)["Transpose"] == 1
