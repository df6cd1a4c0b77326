"""Products by the compiled kernel against jax.lax's: values, both gradients, under vmap, in both modes of autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from accelnet import ops
from accelnet.ops import kernels

PLAIN, TRANSPOSED = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * (float(np.abs(e).max()) + 1e-6), rtol=0)


def total(dot, numbers):
    # Of products near 1: the sine of a large number shows its last bits.
    return lambda lhs, rhs: jnp.sum(jnp.sin(dot(lhs, rhs, numbers) / np.sqrt(lhs.shape[-1])))


# Whole and partial vectors and tiles, more rows than a task has, depths of one and of several blocks, two threads.
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (1, 1, 1),
        (1, 1, 2000),
        (1, 64, 300),
        (9, 40, 33),
        (15, 19, 7),
        (64, 10, 128),
        (13, 16, 400),
        (300, 40, 33),
        (150, 130, 770),
    ],
)
@pytest.mark.parametrize("numbers", [PLAIN, TRANSPOSED])
def test_values_and_gradients_are_those_of_lax(m, n, k, numbers):
    lhs, rhs = random(m, k), random(n, k) if numbers is TRANSPOSED else random(k, n)
    assert_close(jax.jit(ops.dot_general, static_argnums=2)(lhs, rhs, numbers), lax.dot_general(lhs, rhs, numbers))
    both = [jax.jit(jax.grad(total(dot, numbers), (0, 1)))(lhs, rhs) for dot in (ops.dot_general, lax.dot_general)]
    assert_close(*both)


# Tasks are of whole tiles, so that fewer of them than there are times 128 rows may have all rows.
@pytest.mark.parametrize("m", [1441, 1568, 2500, 2899, 3430, 4219, 5000])
def test_many_rows_are_shared_out_whole(m):
    lhs, rhs = random(m, 48), random(48, 48)
    assert_close(jax.jit(ops.dot_general, static_argnums=2)(lhs, rhs, PLAIN), lhs @ rhs)


@pytest.mark.cpu
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("numbers", [PLAIN, TRANSPOSED])
def test_members_are_multiplied_in_one_call(axes, numbers):
    lhs, rhs = random(15, 17), random(9, 17) if numbers is TRANSPOSED else random(17, 9)
    lhs, rhs = (np.stack([a, 2 * a, -a]) if axis == 0 else a for a, axis in zip((lhs, rhs), axes, strict=True))

    def of_members(dot, position):
        alone = jax.vmap(jax.grad(total(dot, numbers), position), axes)
        together = jax.grad(lambda lhs, rhs: jax.vmap(total(dot, numbers), axes)(lhs, rhs).sum(), position)
        return jax.jit(lambda lhs, rhs: (alone(lhs, rhs), together(lhs, rhs)))

    for position in (0, 1):
        function = of_members(ops.dot_general, position)
        assert_close(function(lhs, rhs), of_members(lax.dot_general, position)(lhs, rhs))
        if kernels.load():
            text = function.lower(lhs, rhs).as_text()
            assert "accelnet_multiply" in text
            assert "dot_general" not in text


def test_second_derivatives_and_tangents():
    lhs, rhs = random(14, 13), random(13, 7)
    for derivative in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        assert_close(
            *(
                jax.jit(derivative(lambda w, d=dot: total(d, PLAIN)(lhs, w)))(rhs)
                for dot in (ops.dot_general, lax.dot_general)
            )
        )
    tangents = [
        jax.jit(lambda *by, d=dot: jax.jvp(total(d, PLAIN), (lhs, rhs), by))(lhs, 3 * rhs)
        for dot in (ops.dot_general, lax.dot_general)
    ]
    assert_close(*tangents)


def test_what_is_not_two_matrices_of_float32_is_laxs_own():
    lhs, rhs = random(2, 3, 4), random(2, 4, 5)
    cases = [
        (lhs, rhs, (((2,), (1,)), ((0,), (0,)))),
        (lhs, rhs, (((2,), (1,)), ((), ()))),
        (lhs, random(3, 5), (((1,), (0,)), ((), ()))),
        (lhs.astype(jnp.bfloat16), random(4, 5).astype(jnp.bfloat16), (((2,), (0,)), ((), ()))),
        (jnp.zeros((2, 0)), jnp.zeros((0, 3)), PLAIN),
        (jnp.arange(6).reshape(2, 3), jnp.ones((3, 2), int), PLAIN),
    ]
    for lhs, rhs, numbers in cases:
        np.testing.assert_array_equal(ops.dot_general(lhs, rhs, numbers), lax.dot_general(lhs, rhs, numbers))
    with pytest.raises(TypeError, match="contracting"):
        ops.dot_general(random(2, 3), random(4, 5), PLAIN)


def test_a_layer_of_flax_takes_it_and_other_platforms_get_their_own():
    layer = nnx.Linear(16, 25, dot_general=ops.dot_general, rngs=nnx.Rngs(0))
    x = random(2, 3, 16)
    assert_close(layer(x), x @ layer.kernel[...] + layer.bias[None, None, :])
    graph, state = nnx.split(layer)

    def loss(state, x):
        return jnp.sum(nnx.merge(graph, state)(x) ** 2)

    for platform in ("tpu", "cuda"):
        exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(state, x)
        text = exported.mlir_module()
        assert text.count("stablehlo.dot_general") == 2
        assert "custom_call" not in text


@pytest.mark.cpu
def test_on_many_devices_xla_partitions_the_plain_product():
    mesh = jax.make_mesh((4,), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    lhs, rhs = jax.device_put(random(8, 16), rows), random(16, 25)
    out = jax.jit(lambda lhs, rhs: ops.dot_general(lhs, rhs, PLAIN))(lhs, rhs)
    assert_close(out, lhs @ rhs)
