"""What holds for every optimizer, whatever it computes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from accelnet import optim

SCHEDULE = optim.schedules.warmup_cosine(warmup=0.2)
OPTIMIZERS = {name: (lambda rate, make=make: make(rate, schedule=SCHEDULE)) for name, make in optim.algorithms.items()}
OPTIMIZERS["chain"] = lambda rate: optax.chain(
    optax.clip_by_global_norm(1.0),
    optim.adamw(rate, schedule=SCHEDULE),
    optim.reduce_on_plateau(patience=2),
    optim.average_params(0.9),
)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def make_params(dtype=jnp.float32):
    generator = np.random.default_rng(0)
    shapes = {"dense": {"kernel": (4, 3), "bias": (3,)}, "conv": {"kernel": (2, 2, 3, 5)}}
    draw = lambda shape: jnp.asarray(generator.normal(size=shape), dtype)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def loss_of(params):
    return sum(jnp.sum(jnp.cos(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params))


def step_with(optimizer):
    def step(params, state, progress=0.1):
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params, value=loss, progress=progress)
        return optax.apply_updates(params, updates), state

    return step


def types(tree):
    return jax.tree.map(jax.typeof, tree)


@every_optimizer
def test_the_step_keeps_every_type_can_donate_its_state_and_equals_eager(name):
    optimizer = OPTIMIZERS[name](0.1)
    params = make_params()
    state = optimizer.init(params)
    step = step_with(optimizer)
    eager = step(params, state)

    before = types((params, state))
    # Donation fails where one buffer appears twice; the eager step above still holds its own.
    donating = jax.jit(step, donate_argnums=(0, 1))
    compiled = donating(*jax.tree.map(jnp.array, (params, optimizer.init(params))))
    assert types(compiled) == before
    # XLA fuses differently than op by op; Newton-Schulz amplifies that.
    tolerance = 1e-4 if name == "muon" else 2e-6
    chex.assert_trees_all_close(compiled, eager, rtol=tolerance, atol=tolerance)


@every_optimizer
def test_a_fresh_state_shares_no_buffer_with_the_params_or_within(name):
    optimizer = OPTIMIZERS[name](0.1)
    params = make_params()
    leaves = jax.tree.leaves((params, optimizer.init(params)))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]
    assert len(set(pointers)) == len(pointers)


@every_optimizer
def test_shapes_suffice_to_build_the_state_and_the_step(name):
    optimizer = OPTIMIZERS[name](0.1)
    shapes = jax.eval_shape(make_params)
    state = jax.eval_shape(optimizer.init, shapes)
    new_params, new_state = jax.eval_shape(step_with(optimizer), shapes, state)
    assert (types_of_shapes(new_params), types_of_shapes(new_state)) == (
        types_of_shapes(shapes),
        types_of_shapes(state),
    )
    assert types_of_shapes(state) == types_of_shapes(optimizer.init(make_params()))


def types_of_shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@every_optimizer
def test_a_population_of_learning_rates_equals_solo_runs(name):
    rates = jnp.array([0.03, 0.1])

    def train(rate):
        optimizer = OPTIMIZERS[name](rate)
        params = make_params()
        carry = (params, optimizer.init(params))
        return jax.lax.fori_loop(0, 3, lambda _, carry: step_with(optimizer)(*carry), carry)[0]

    together = jax.jit(jax.vmap(train))(rates)
    solo = jax.jit(train)
    for member, rate in enumerate(rates):
        jax.tree.map(
            lambda a, b, member=member: np.testing.assert_allclose(a[member], b, rtol=1e-5, atol=1e-5),
            together,
            solo(rate),
        )
    assert not np.allclose(together["dense"]["kernel"][0], together["dense"]["kernel"][1])


@every_optimizer
def test_bfloat16_params_keep_their_type_and_get_float32_moments(name):
    optimizer = OPTIMIZERS[name](0.1)
    params = make_params(jnp.bfloat16)
    state = optimizer.init(params)
    new_params, new_state = jax.jit(step_with(optimizer))(params, state)
    assert types(new_params) == types(params)
    assert types(new_state) == types(state)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert dtypes <= {jnp.dtype("float32"), jnp.dtype("int32")}


@every_optimizer
def test_changing_the_learning_rate_compiles_nothing_and_changes_the_step(name):
    optimizer = OPTIMIZERS[name](0.1)
    step = jax.jit(step_with(optimizer))
    params, state = step(make_params(), optimizer.init(make_params()))
    slow, _ = step(params, optim.with_hyperparams(state, learning_rate=0.0))
    fast, _ = step(params, optim.with_hyperparams(state, learning_rate=jnp.asarray(0.5)))
    assert step._cache_size() == 1
    assert not jnp.array_equal(fast["dense"]["kernel"], params["dense"]["kernel"])
    if name != "lars":  # LARS keeps rates in its momentum.
        np.testing.assert_allclose(slow["dense"]["kernel"], params["dense"]["kernel"], rtol=1e-6)


def test_a_state_spread_over_devices_keeps_its_shardings_when_the_rate_changes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    optimizer = optim.adamw(0.1)
    params = jax.device_put(make_params(), everywhere)
    state = jax.device_put(optimizer.init(params), everywhere)
    step = jax.jit(step_with(optimizer))
    params, state = step(params, state)
    step(params, state)
    compiled = step._cache_size()
    changed = optim.with_hyperparams(state, learning_rate=0.2)
    assert jax.tree.map(lambda leaf: leaf.sharding, changed) == jax.tree.map(lambda leaf: leaf.sharding, state)
    step(params, changed)
    assert step._cache_size() == compiled
