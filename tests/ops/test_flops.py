"""FLOPs from the jaxpr against formulas written by hand."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from accelnet.ops.flops import Product, count_flops
from accelnet.ops.recurrence import gru, lstm


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def convolve(x, w, strides=(1, 1), **options):
    return lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def test_mlp_equals_the_hand_formula_forward_and_backward():
    sizes = [784, 512, 256, 10]
    weights = [shape(m, n) for m, n in pairwise(sizes)]

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return x.sum()

    products = [128 * m * n for m, n in pairwise(sizes)]
    forward = count_flops(loss, weights, shape(128, 784))
    assert forward.product_flops == 2 * sum(products)
    # One operation per activation for tanh, one per input of the final sum.
    assert forward.elementwise == 128 * (512 + 256 + 10) + 128 * 10
    # Backward: the gradient of each kernel, and of each layer's input but the first.
    backward = count_flops(jax.grad(loss), weights, shape(128, 784))
    assert backward.product_flops == 2 * (2 * sum(products) + sum(products[1:]))


@pytest.mark.parametrize("strides", [1, 2])
def test_convolution_equals_the_hand_formula_and_both_gradients_equal_it_too(strides):
    x, w = shape(8, 14, 14, 32), shape(3, 3, 32, 64)
    side = 14 // strides
    formula = 2 * 8 * side * side * 64 * 3 * 3 * 32

    def loss(x, w):
        return convolve(x, w, (strides, strides)).sum()

    assert count_flops(loss, x, w).product_flops == formula
    for argument in (0, 1):
        # The loss needs the forward pass, its gradient alone does not.
        assert count_flops(jax.value_and_grad(loss, argument), x, w).product_flops == 2 * formula
        assert count_flops(jax.grad(loss, argument), x, w).product_flops == formula


def test_grouped_and_depthwise_convolutions_count_their_groups():
    x = shape(2, 8, 8, 12)
    assert count_flops(lambda x, w: convolve(x, w, feature_group_count=3), x, shape(3, 3, 4, 6)).products == {
        Product(2 * 8 * 8, 2, 9 * 4, 3, "float32"): 1
    }
    depthwise = count_flops(lambda x, w: convolve(x, w, feature_group_count=12), x, shape(3, 3, 1, 12))
    assert depthwise.product_flops == 2 * 2 * 8 * 8 * 12 * 9


@pytest.mark.parametrize(("layer", "gates"), [(lstm, 4), (gru, 3)])
def test_recurrent_layers_equal_the_hand_formula_forward_and_backward(layer, gates):
    batch, steps, features, hidden = 4, 7, 3, 5
    arrays = shape(batch, steps, features), shape(features, gates * hidden), shape(hidden, gates * hidden)

    def loss(x, w, r):
        return layer(x, w, r, jnp.zeros(gates * hidden))[0].sum()

    formula = 2 * batch * steps * gates * hidden * (features + hidden)
    assert count_flops(loss, *arrays).product_flops == formula
    assert count_flops(jax.grad(loss, (0, 1, 2)), *arrays).product_flops == 3 * formula


def test_products_are_listed_by_shape_and_type():
    flops = count_flops(
        lambda a, b, c: (jnp.einsum("bij,bjk->bik", a, b), c @ c),
        shape(6, 2, 3),
        shape(6, 3, 4),
        shape(5, 5, dtype=jnp.bfloat16),
    )
    assert flops.products == {Product(2, 4, 3, 6, "float32"): 1, Product(5, 5, 5, 1, "bfloat16"): 1}


def test_a_scan_and_a_loop_of_known_length_count_their_body_once_per_step():
    def scanned(x, w):
        return lax.scan(lambda x, _: (x @ w, None), x, None, length=9)[0]

    def looped(x, w):
        return lax.fori_loop(0, 9, lambda _, x: x @ w, x)

    for function in (scanned, looped):
        flops = count_flops(function, shape(2, 3), shape(3, 3))
        assert flops.products == {Product(2, 3, 3, 1, "float32"): 9}
        assert flops.unknown_loops == 0


def test_nested_scans_multiply():
    def inner(x):
        return lax.scan(lambda x, _: (x @ x, None), x, None, length=3)[0]

    flops = count_flops(lambda x: lax.scan(lambda x, _: (inner(x), None), x, None, length=5)[0], shape(2, 2))
    assert flops.products == {Product(2, 2, 2, 1, "float32"): 15}


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    flops = count_flops(lambda x, k: lax.fori_loop(0, k, lambda _, x: x @ x, x), shape(2, 2), shape(dtype=jnp.int32))
    assert flops.products == {Product(2, 2, 2, 1, "float32"): 1}
    assert flops.unknown_loops == 1


def test_a_cond_counts_its_largest_branch():
    flops = count_flops(lambda x: lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x @ x @ x, x), shape(3, 3))
    assert flops.products == {Product(3, 3, 3, 1, "float32"): 2}


def test_a_platforms_branch_is_counted_where_it_is_asked_for():
    def function(x):
        return lax.platform_dependent(x, cpu=lambda x: x @ x @ x, tpu=lambda x: x, default=lambda x: x @ x)

    counts = {p: count_flops(function, shape(3, 3), platform=p).product_flops for p in ("cpu", "tpu", "cuda", None)}
    assert counts == {"cpu": 108, "tpu": 0, "cuda": 54, None: 54}


def test_jit_remat_vmap_and_custom_rules_are_looked_into():
    @jax.custom_jvp
    def custom(x):
        return x @ x

    custom.defjvp(lambda primals, tangents: (custom(*primals), tangents[0]))

    @jax.custom_vjp
    def ruled(x):
        return x @ x

    ruled.defvjp(lambda x: (ruled(x), None), lambda _, g: (g,))
    for wrap in (jax.jit, jax.checkpoint, lambda f: f):
        for function in (custom, ruled, lambda x: x @ x):
            assert count_flops(wrap(function), shape(3, 3)).product_flops == 54
            assert count_flops(jax.vmap(wrap(function)), shape(7, 3, 3)).product_flops == 7 * 54


def test_integers_moves_and_comparisons_are_no_floating_point_operations():
    flops = count_flops(lambda i, x: (i + 1, x.T.reshape(-1)[::2], x > 0), shape(5, dtype=jnp.int32), shape(3, 4))
    assert flops.total == 0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x * x + x, 24),
        (jnp.exp, 12),
        (lambda x: x.sum(), 12),
        (lambda x: x.max(axis=0), 12),
        (lambda x: x.argmax(axis=1), 12),
        (lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 2), (1, 2), "VALID"), 12),
        (lambda x: x.at[jnp.array([0, 0])].add(jnp.ones((2, 4))), 8),
    ],
)
def test_elementwise_functions_and_reductions_count_their_elements(function, expected):
    assert count_flops(function, shape(3, 4)).total == expected


def test_named_scopes_share_out_the_whole_count():
    @jax.jit
    def inner(x):
        with jax.named_scope("inner"):
            return x @ x

    def function(x):
        with jax.named_scope("outer"):
            x = lax.scan(lambda x, _: (inner(x), None), x, None, length=4)[0]
        return x + 1

    flops = count_flops(jax.vmap(function), shape(2, 3, 3))
    assert flops.scopes == {("outer", "inner"): 4 * 2 * 54, (): 18}
    assert sum(flops.scopes.values()) == flops.total


def test_a_sharded_map_counts_all_devices():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert count_flops(mapped, shape(2 * mesh.size, 3)).product_flops == mesh.size * 2 * 2 * 3 * 2
