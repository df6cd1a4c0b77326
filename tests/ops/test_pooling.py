import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from accelnet.ops import avg_pool, max_pool

CASES = [
    # shape, window, strides, padding
    ((2, 6, 8, 3), (2, 2), (2, 2), "VALID"),
    ((2, 7, 8, 3), (2, 3), (2, 3), "VALID"),
    ((2, 7, 8, 3), (2, 3), (2, 3), "SAME"),
    ((2, 6, 6, 3), (2, 2), (2, 2), ((1, 1), (0, 2))),
    ((2, 6, 6, 3), (2, 2), None, "VALID"),
    ((2, 7, 7, 3), (3, 3), (2, 2), "SAME"),
    ((2, 9, 3), (3,), (3,), "VALID"),
    ((2, 4, 4, 4, 3), (2, 2, 2), (2, 2, 2), "VALID"),
    ((5, 2, 6, 6, 3), (3, 3), (3, 3), "VALID"),
    ((6, 6, 3), (2, 2), (2, 2), "VALID"),
]
POOLS = {"max": (max_pool, linen.max_pool), "average": (avg_pool, linen.avg_pool)}


def values_and_gradient(pool, x, *arguments):
    def run(x):
        out, pull = jax.vjp(lambda x: pool(x, *arguments), x)
        return out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))

    return jax.jit(run)(x)


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradient_equal_flax(kind, case):
    shape, *arguments = case
    ours, flax = POOLS[kind]
    # Few distinct values: most windows hold ties, and the gradient must choose as XLA does.
    x = jax.random.randint(jax.random.key(0), shape, 0, 3).astype(jnp.float32)
    for actual, expected in zip(
        values_and_gradient(ours, x, *arguments), values_and_gradient(flax, x, *arguments), strict=True
    ):
        chex.assert_equal_shape([actual, expected])
        # The order of a float32 sum of at most nine terms is free.
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_a_window_larger_than_the_image_gives_no_output():
    chex.assert_shape(max_pool(jnp.ones((2, 1, 1, 3)), (2, 2), (2, 2)), (2, 0, 0, 3))


@pytest.mark.parametrize("strides", [(2, 2), (1, 1)])
def test_pixels_of_the_padding_can_be_left_out_of_the_mean(strides):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    expected = linen.avg_pool(x, (2, 2), strides, "SAME", count_include_pad=False)
    out = avg_pool(x, (2, 2), strides, "SAME", count_include_pad=False)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", POOLS)
def test_bfloat16_stays_bfloat16(kind):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3), jnp.bfloat16)
    out, gradient = values_and_gradient(POOLS[kind][0], x, (2, 2), (2, 2))
    assert out.dtype == gradient.dtype == jnp.bfloat16
    exact = POOLS[kind][0](x.astype(jnp.float32), (2, 2), (2, 2))
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_a_nan_in_the_window_is_its_maximum():
    for position in range(4):
        x = jnp.zeros((4,)).at[position].set(jnp.nan).reshape(1, 2, 2, 1)
        assert bool(jnp.isnan(max_pool(x, (2, 2), (2, 2))).all())


def test_integers_are_pooled_too():
    x = jnp.arange(16, dtype=jnp.int32).reshape(1, 4, 4, 1) - 20
    assert max_pool(x, (2, 2), (2, 2)).ravel().tolist() == [-15, -13, -7, -5]


@pytest.mark.parametrize("kind", POOLS)
def test_vmap_equals_a_loop(kind):
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3))
    grad = jax.grad(lambda x: jnp.sum(jnp.sin(POOLS[kind][0](x, (2, 2), (2, 2)))))
    np.testing.assert_array_equal(jax.vmap(grad)(x), jnp.stack([grad(row) for row in x]))


@pytest.mark.cpu
def test_tiled_pooling_in_a_loop_has_no_window_operation_on_the_cpu():
    def run(pool, x):
        step = lambda x, _: (x - jax.grad(lambda x: jnp.sum(pool(x, (2, 2), (2, 2)) ** 2))(x), None)  # noqa: E731
        return lax.scan(step, x, length=3)[0]

    def text(pool):
        return jax.jit(lambda x: run(pool, x)).lower(jnp.ones((2, 4, 4, 3))).compile().as_text()

    pattern = r"select-and-scatter|reduce-window|\bscatter\("
    assert re.search(pattern, text(linen.max_pool))  # the pattern can find one
    assert not re.search(pattern, text(max_pool))
    assert not re.search(pattern, text(avg_pool))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_xlas_own_maximum(platform):
    grad = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, (2, 2), (2, 2)))))
    program = jax.export.export(grad, platforms=[platform])(jnp.ones((2, 4, 4, 3))).mlir_module()
    assert "select_and_scatter" in program


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((2, 2), (2,)), "strides"),
        (((2, 2), (2, 2), ((0, 0),)), "padding"),
        (((2, 2, 2, 2), None), "few axes"),
    ],
)
def test_a_mistake_names_the_argument(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        POOLS[kind][0](jnp.ones((2, 4, 4, 3)), *arguments)
