import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from accelnet import optim
from accelnet.errors import UserError


def path_of(optimizer, steps, params):
    """Return the params after each update, and the last state."""

    def one(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    gradients = jax.random.normal(jax.random.key(1), (steps, *params.shape))
    (_, state), path = jax.jit(lambda p: jax.lax.scan(one, (p, optimizer.init(p)), gradients))(params)
    return path, state


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_the_average_weighs_the_params_after_each_update_and_not_the_first_ones(decay):
    optimizer = optax.chain(optax.sgd(0.1), optim.average_params(decay))
    path, state = path_of(optimizer, 20, 100.0 + jnp.arange(3.0))
    weights = np.array([decay ** (19 - i) for i in range(20)])
    expected = np.average(np.asarray(path, float), axis=0, weights=weights)
    # Float32 at 100: 8e-6 per rounding.
    np.testing.assert_allclose(optim.eval_params(state, path[-1]), expected, atol=5e-5)


def test_the_average_of_one_update_is_its_result():
    optimizer = optax.chain(optax.sgd(0.1), optim.average_params(0.9999))
    path, state = path_of(optimizer, 1, 1000.0 * jnp.ones(3))
    np.testing.assert_allclose(optim.eval_params(state, path[-1]), path[-1], rtol=1e-6)


def test_before_any_update_the_average_is_the_params():
    params = {"kernel": jnp.ones((2, 2))}
    state = optim.average_params(0.9).init(params)
    assert jnp.array_equal(optim.eval_params(state, params)["kernel"], params["kernel"])


def test_updates_pass_unchanged():
    optimizer = optim.average_params(0.9)
    params = jnp.ones(3)
    updates, _ = optimizer.update(2 * params, optimizer.init(params), params, value=1.0)
    assert updates.tolist() == [2.0, 2.0, 2.0]


def test_the_average_of_bfloat16_params_is_float32_and_is_returned_as_bfloat16():
    params = jnp.ones(3, jnp.bfloat16)
    optimizer = optim.average_params(0.99)
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(jnp.full(3, 0.01, jnp.bfloat16), state, params)
    assert state.average.dtype == jnp.float32
    assert optim.eval_params(state, params).dtype == jnp.bfloat16


def test_an_average_inside_of_other_transformations_is_found():
    params = {"kernel": jnp.ones((2, 2))}
    inner = optax.chain(optim.sgd(0.5), optim.average_params(0.5))
    optimizer = optax.apply_if_finite(inner, max_consecutive_errors=3)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    averaged = optim.eval_params(state, optax.apply_updates(params, updates))
    np.testing.assert_allclose(averaged["kernel"], 0.5, rtol=1e-6)


def test_the_schedule_free_average_is_found_beside_clipping():
    params = {"kernel": jnp.ones((2, 2))}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optim.schedule_free_adamw(0.5))
    state = optimizer.init(params)
    np.testing.assert_allclose(optim.eval_params(state, params)["kernel"], 1.0, rtol=1e-6)
    trained = params
    for _ in range(3):
        updates, state = optimizer.update(params, state, trained)
        trained = optax.apply_updates(trained, updates)
    averaged = jax.jit(optim.eval_params)(state, trained)
    # Constant gradients: z is at -0.5, x = mean(0.5, 0, -0.5), y = 0.1 z + 0.9 x.
    np.testing.assert_allclose(averaged["kernel"], 0.0, atol=1e-5)
    np.testing.assert_allclose(trained["kernel"], -0.05, atol=1e-5)


def test_without_an_average_the_params_themselves_are_evaluated():
    params = {"kernel": jnp.ones((2, 2))}
    assert optim.eval_params(optim.adamw(0.1).init(params), params) is params


def test_missing_params_are_named():
    optimizer = optim.average_params(0.9)
    with pytest.raises(UserError, match="average_params needs the params"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
