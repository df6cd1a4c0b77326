import logging
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from accelnet import optim
from accelnet.errors import UserError
from tests.optim.toy_loop import NUM_STEPS, loss_of, make_params, step_with, train

C = optax.contrib
NORMALIZED = optax.chain(C.normalize(), optax.sgd(0.05))


def transformation(update, init=lambda params: optax.EmptyState()):
    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.adam, r"optimizer is the function adam itself, expected what it returns: call it, as adam\(...\)"),
        (optim.adamw, "optimizer is the function adamw itself"),
        (optax.MultiSteps, "optimizer is the function MultiSteps itself"),
        (0.1, r"optimizer is 0.1, expected an Optax transformation such as optax.adam\(1e-3\)"),
        ("adam", "optimizer is 'adam', expected an Optax transformation"),
        (None, "optimizer is None, expected an Optax transformation"),
        ((lambda params: (), lambda *args: args), r"optimizer is \(<function"),
        (
            nnx.Optimizer(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.adam(0.1), wrt=nnx.Param),
            "optimizer is a flax.nnx.*Optimizer, expected its Optax transformation, without the model: optimizer=tx",
        ),
        (SimpleNamespace(init=1, update=2), "optimizer is namespace"),
    ],
)
def test_what_is_no_optimizer_is_named(optimizer, message):
    with pytest.raises(UserError, match=message):
        optim.adapt_optimizer(optimizer)


def test_only_what_an_update_names_is_passed_on():
    seen = {}

    def update(updates, state, params=None, *, value, step=None):
        seen.update(value=value, step=step)
        return updates, state

    optimizer = optim.adapt_optimizer(optax.GradientTransformation(lambda _: optax.EmptyState(), update))
    params = jnp.ones(2)
    state = optimizer.init(params)
    optimizer.update(params, state, params, value=2.0, step=3, grad=params, progress=0.5, key=None)
    assert seen == {"value": 2.0, "step": 3}


def test_all_that_a_step_has_arrives_and_an_own_argument_of_a_loop_too():
    seen = set()

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    optimizer = optax.chain(optax.clip(1.0), transformation(update))
    train(optimizer, 1)
    assert seen == {"value", "grad", "value_fn", "grad_fn", "obj_fn", "key", "step", "progress"}
    adapted, params = optim.adapt_optimizer(optimizer), jnp.ones(2)
    adapted.update(params, adapted.init(params), params, temperature=2.0)
    assert "temperature" in seen


def wants_curvature(updates, state, params=None, *, curvature, **_):
    return updates, state


def wants_grad(updates, state, params=None, *, grad, **_):
    return grad, state


def test_an_extra_that_does_not_exist_is_named_with_those_that_do():
    optimizer = optim.adapt_optimizer(optax.chain(optax.clip(1.0), transformation(wants_curvature)))
    with pytest.raises(UserError, match="needs curvature, and a training step has only value, grad, value_fn, grad_fn"):
        optimizer.init(jnp.ones(2))


def test_in_a_hand_written_loop_a_missing_extra_is_named():
    optimizer, params = optim.adapt_optimizer(transformation(wants_grad)), jnp.ones(2)
    with pytest.raises(UserError, match=r"needs grad, and got value: call optimizer.update\(..., grad=...\)"):
        optimizer.update(params, optimizer.init(params), params, value=1.0)


def test_where_one_part_refuses_what_another_needs_the_remedy_is_named_and_works():
    sam = C.sam(optax.sgd(0.05), NORMALIZED)
    with pytest.raises(UserError, match="one part of the optimizer needs value and another part refuses it: wrap"):
        optim.adapt_optimizer(optax.chain(sam, C.reduce_on_plateau())).init(make_params())
    _, _, loss = train(optax.chain(optim.adapt_optimizer(sam), C.reduce_on_plateau()))
    assert loss < float(loss_of(make_params()))


def test_a_failing_update_is_one_message_that_keeps_its_cause():
    def update(updates, state, params=None):
        raise KeyError("mine")

    with pytest.raises(UserError, match="the optimizer's update fails with KeyError: 'mine'") as caught:
        optim.adapt_optimizer(optax.GradientTransformation(lambda _: (), update)).init(jnp.ones(2))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("init", "after", "message"),
    [
        (
            lambda _: {"a": jnp.zeros(2)},
            lambda s: {"a": jnp.zeros(3)},
            r"turns \['a'\] of its state from shape \(2,\) into",
        ),
        (lambda _: {"a": jnp.zeros(2)}, lambda s: {"b": jnp.zeros(2)}, "a state of another structure than its init"),
        (lambda _: {"a": "text"}, lambda s: s, r"state holds 'text' at \['a'\], expected arrays and numbers only"),
    ],
)
def test_a_state_that_no_loop_can_carry_is_refused(init, after, message):
    optimizer = optim.adapt_optimizer(transformation(lambda u, s, p=None: (u, after(s)), init))
    with pytest.raises(UserError, match=message):
        optimizer.init(jnp.ones(2))


def test_types_that_an_update_widens_are_there_from_the_start():
    def init(params):
        return {"count": 0, "rate": 0.5, "sum": jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params)}

    def update(updates, state, params=None):
        total = jax.tree.map(lambda s, u: s + u.astype(jnp.float32), state["sum"], updates)
        return updates, {"count": state["count"] + 1, "rate": np.float32(0.5), "sum": total}

    optimizer = optim.adapt_optimizer(transformation(update, init))
    state = optimizer.init(jnp.ones(2))
    assert state["sum"].dtype == jnp.float32
    _, after = optimizer.update(jnp.ones(2), state, jnp.ones(2))
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_noise_has_the_key_of_its_own_and_the_state_is_plain():
    noisy = optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(4)), optax.sgd(0.05))
    params, state, _ = train(noisy)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"int32", "uint32"}
    # As a checkpoint has it.
    copied = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
    optimizer = optim.adapt_optimizer(noisy)
    again, _ = step_with(optimizer)(NUM_STEPS, (params, copied))

    expected, raw = make_params(), noisy.init(make_params())
    for _ in range(NUM_STEPS + 1):
        updates, raw = noisy.update(jax.grad(loss_of)(expected), raw, expected)
        expected = optax.apply_updates(expected, updates)
    # Rounding of a compiled loop, over 21 steps.
    chex.assert_trees_all_close(again, expected, rtol=1e-4, atol=1e-5)


def test_lookahead_is_that_of_optax_and_is_evaluated_with_its_slow_weights():
    optimizer = optax.lookahead(optax.adam(0.05), 6, 0.5)
    params, state, loss = train(optimizer)
    both = optax.LookaheadParams.init_synced(make_params())
    raw = optimizer.init(both)
    for _ in range(NUM_STEPS):
        updates, raw = optimizer.update(jax.grad(loss_of)(both.fast), raw, both)
        both = optax.apply_updates(both, updates)
    for ours, theirs in ((params, both.fast), (optim.eval_params(state, params), both.slow)):
        chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert loss == pytest.approx(float(loss_of(both.slow)), rel=1e-4)


def test_lookahead_says_nothing_of_fast_params(caplog):
    with caplog.at_level(logging.WARNING, "absl"):
        train(optax.lookahead(optax.adam(0.05), 6, 0.5), 1)
    assert not caplog.records


@pytest.mark.parametrize(
    "make",
    [
        lambda lookahead: optax.masked(lookahead, jax.tree.map(lambda _: True, make_params())),
        lambda lookahead: optax.chain(optax.add_decayed_weights(0.1), lookahead),
    ],
)
def test_lookahead_within_what_looks_at_params_is_refused_with_the_remedy(make):
    optimizer = optim.adapt_optimizer(make(optax.lookahead(optax.adam(0.05), 6, 0.5)))
    with pytest.raises(UserError, match=r"let optax.lookahead be the outermost transformation"):
        optimizer.init(make_params())


def test_sam_is_evaluated_at_the_weights_and_not_at_its_adversarys():
    sam = C.sam(optax.sgd(0.05), NORMALIZED)
    for num_steps in (6, 7):
        params, state, _ = train(sam, num_steps)
        evaluated = optim.eval_params(state, params)
        even, _, _ = train(sam, 6)
        chex.assert_trees_all_close(evaluated, even, rtol=1e-6)


def test_opaque_sam_takes_its_gradient_where_the_loss_is_highest_nearby():
    params, _, _ = train(C.sam(optax.sgd(0.05), NORMALIZED, opaque_mode=True), 2)
    expected = make_params()
    for _ in range(2):
        grads = jax.grad(loss_of)(expected)
        away = optax.tree.add_scale(expected, 0.05 / optax.tree.norm(grads), grads)
        expected = jax.tree.map(lambda p, g: p - 0.05 * g, expected, jax.grad(loss_of)(away))
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


def test_l_bfgs_is_that_of_optax():
    _, _, loss = train(optax.lbfgs(), 8)
    expected, optimizer = make_params(), optax.lbfgs()
    state = optimizer.init(expected)
    for _ in range(8):
        value, grad = jax.value_and_grad(loss_of)(expected)
        updates, state = optimizer.update(grad, state, expected, value=value, grad=grad, value_fn=loss_of)
        expected = optax.apply_updates(expected, updates)
    assert loss == pytest.approx(float(loss_of(expected)), rel=1e-3)
    assert loss < 0.2 * float(loss_of(make_params()))


def test_an_average_of_a_group_is_evaluated_beside_the_params_of_the_others():
    labels = {"first": "a", "last": "b"}
    groups = {"a": optax.chain(optax.sgd(0.05), optim.average_params(0.5)), "b": C.schedule_free(optax.sgd(0.05), 0.05)}
    optimizer = optax.multi_transform(groups, labels)
    params, state, loss = train(optimizer)
    evaluated = optim.eval_params(state, params)
    assert not np.allclose(evaluated["first"]["kernel"], params["first"]["kernel"], atol=1e-6)
    assert not np.allclose(evaluated["last"]["kernel"], params["last"]["kernel"], atol=1e-6)
    plain = optax.multi_transform(groups | {"b": optax.sgd(0.05)}, labels)
    params, state, _ = train(plain)
    assert np.array_equal(optim.eval_params(state, params)["last"]["kernel"], params["last"]["kernel"])
    assert loss < float(loss_of(make_params()))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: optim.adam(0.1, schedule=optim.schedules.cosine()), True),
        (lambda: optim.adam(0.1), False),
        (lambda: optim.adam(0.1, schedule=optim.schedules.constant()), False),
        (lambda: optim.adam(0.1, schedule=optax.cosine_decay_schedule(1.0, 9)), False),
        (lambda: optax.adam(optax.cosine_decay_schedule(1.0, 9)), False),
        (lambda: optax.MultiSteps(optim.muon(0.1, schedule=optim.schedules.one_cycle()), 2), True),
        (lambda: optax.lookahead(optim.sgd(0.1, schedule=optim.schedules.cosine()), 5, 0.5), True),
        (lambda: optax.chain(optax.lbfgs(), C.reduce_on_plateau()), False),
        (lambda: transformation(lambda u, s, p=None, *, progress: (jax.tree.map(lambda x: x * progress, u), s)), True),
        (lambda: transformation(lambda u, s, p=None, *, progress: (u, s)), False),
    ],
)
def test_whether_the_length_of_the_run_matters_is_known(make, expected):
    assert optim.uses_progress(make(), make_params()) is expected
    assert optim.uses_progress(make(), jax.eval_shape(make_params)) is expected


def test_adapting_twice_is_adapting_once():
    adapted = optim.adapt_optimizer(optax.adam(0.1))
    assert optim.adapt_optimizer(adapted) is adapted


def test_a_population_can_be_adapted_inside_of_a_compiled_function():
    def run(rate):
        optimizer = optim.adapt_optimizer(optim.adam(rate, schedule=optim.schedules.cosine()))
        params = make_params()
        return jax.lax.fori_loop(0, 5, step_with(optimizer, 5), (params, optimizer.init(params)))[0]

    rates = jnp.array([0.01, 0.1])
    together = jax.jit(jax.vmap(run))(rates)
    solo = jax.jit(run)(rates[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5, atol=1e-6), together, solo)
