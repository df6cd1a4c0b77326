"""Rows taken by the compiled kernel against jax.numpy's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accelnet.errors import UserError
from accelnet.ops import kernels, lstm, take_rows


def make_table(dtype, *shape):
    return np.random.default_rng(0).integers(-100, 100, shape).astype(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool", "bfloat16", "int32"])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (40, 33, 50)])
@pytest.mark.parametrize("count", [(), (5,), (4, 90)])
def test_rows_of_every_type_are_those_of_take(dtype, shape, count):
    table = make_table(dtype, *shape)
    numbers = np.random.default_rng(1).integers(-3, shape[0] + 3, count)  # some beyond the table
    taken = jax.jit(take_rows)(table, numbers)
    assert taken.dtype == table.dtype
    np.testing.assert_array_equal(taken, np.take(table, numbers, axis=0, mode="clip"))


def test_numbers_beyond_what_32_bits_hold_name_the_last_row():
    taken = take_rows(jnp.arange(5.0), jnp.asarray(np.array([3_000_000_000, 2, 2**32 - 1], np.uint32)))
    assert taken.tolist() == [4.0, 2.0, 4.0]
    with jax.enable_x64(True):
        numbers = jnp.asarray(np.array([2**40, -(2**40), 2**32 + 1, 3], np.int64))
        assert take_rows(jnp.arange(5.0), numbers).tolist() == [4.0, 0.0, 4.0, 3.0]


def test_numbers_that_are_no_integers_are_refused():
    with pytest.raises(UserError, match="float32, expected integers"):
        take_rows(jnp.arange(5.0), jnp.array([1.0]))


def test_nothing_is_taken_of_nothing():
    chex.assert_shape(take_rows(jnp.ones((4, 0)), jnp.array([1, 2])), (2, 0))
    chex.assert_shape(take_rows(jnp.ones((4, 3)), jnp.zeros(0, jnp.int32)), (0, 3))


@pytest.mark.cpu
@pytest.mark.skipif(not kernels.load(), reason="no C++ compiler: the CPU's program is XLA's own")
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_members_take_in_one_call(axes):
    table, numbers = make_table("float32", 9, 6), np.array([8, 0, 3, 3])
    own = [np.stack([a, a + 1, a[::-1]]) if axis == 0 else a for a, axis in zip((table, numbers), axes, strict=True)]
    ours, theirs = (jax.jit(jax.vmap(take, in_axes=axes)) for take in (take_rows, lambda t, n: t[n]))
    assert ours.lower(*own).as_text().count("@accelnet_take_rows") == 1
    np.testing.assert_array_equal(ours(*own), theirs(*own))


def test_a_gradient_flows_to_the_rows_that_were_taken():
    table, numbers = make_table("float32", 9, 200), jnp.array([[8, 0, 3], [3, 3, 1]])
    weights = make_table("float32", 2, 3, 200)
    gradient = jax.jit(jax.grad(lambda t: (take_rows(t, numbers) * weights).sum()))(table)
    np.testing.assert_array_equal(gradient, jnp.zeros((9, 200)).at[numbers].add(weights))


@pytest.mark.parametrize("with_kernels", [False, True])
def test_a_token_that_is_no_symbols_shows(with_kernels):
    table, tokens = jnp.ones((5, 4)), jnp.array([[0, 4, 1], [2, 5, 3]])
    weights = jnp.ones((4, 12)), jnp.ones((3, 12)), jnp.zeros(12)
    with kernels.with_kernels(with_kernels):
        outputs, _ = jax.jit(lambda *w: lstm(table, *w, tokens=tokens))(*weights)
    assert jnp.isnan(outputs).any(-1).tolist() == [[False] * 3, [False, True, True]]
