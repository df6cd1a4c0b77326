"""The step: the same numbers however it is computed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import accelnet as an
from accelnet.data.feed import DeviceFeed
from accelnet.training import program
from accelnet.training.state import init_state, random_key
from accelnet.training.step import make_gradient, make_loss, make_train_step


def prepare(experiment):
    """Return (state, microbatch of a step as a function, feed's operand)."""
    feed = DeviceFeed(experiment.data, experiment.order, eval_batch_size=5)
    operand = feed.train_operand(0, 1)

    def parts(step, seed=experiment.seed):
        def microbatch(_, number, part):
            return feed.train_batch(operand, jnp.int32(0), jnp.asarray(step), number, jnp.uint32(seed), part)

        return microbatch

    return jax.jit(lambda seed: init_state(experiment, seed))(np.uint32(experiment.seed)), parts


def close(a, b, rtol=2e-5, atol=1e-6):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


def test_jit_vmap_and_a_loop_by_hand_give_the_same_numbers(make_experiment, make_data, plain_model):
    experiment = make_experiment(
        model=plain_model, data=make_data(augment=False), optimizer=optax.sgd(0.1, momentum=0.9), seed=3
    )
    state, parts = prepare(experiment)
    step = make_train_step(experiment)
    jitted, solo = state, []
    one = jax.jit(lambda s: step(s, parts(s.step)))
    for _ in range(8):
        jitted, loss, _ = one(jitted)
        solo.append(float(loss))

    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)
    together = []
    population = jax.jit(jax.vmap(lambda s: step(s, parts(s.step))))
    for _ in range(8):
        many, losses, _ = population(many)
        together.append(np.asarray(losses))

    def mean_loss(params, batch):
        x = batch["inputs"].reshape(8, 16).astype(jnp.float32) / 100.0
        hidden = jnp.maximum(x @ params["first"]["kernel"] + params["first"]["bias"][None, :], 0.0)
        logits = hidden @ params["last"]["kernel"] + params["last"]["bias"][None, :]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.sum(losses * batch["mask"]) / jnp.sum(batch["mask"])

    params, by_hand = state.params, []
    gradient, batch_of = jax.jit(jax.value_and_grad(mean_loss)), jax.jit(lambda index: parts(index)(None, 0, 0))
    velocity = jax.tree.map(jnp.zeros_like, params)
    for index in range(8):
        loss, grads = gradient(params, batch_of(index))
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity)
        by_hand.append(float(loss))
    np.testing.assert_allclose(solo, by_hand, rtol=1e-5)
    np.testing.assert_allclose(np.stack(together, axis=1), [solo, solo], rtol=1e-5)
    close(jitted.params, params)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_accumulated_microbatches_equal_the_large_batch(make_experiment, make_data, plain_model, micro):
    settings = {"model": plain_model, "data": make_data(augment=False), "optimizer": optax.sgd(0.1)}
    state, whole = prepare(make_experiment(batch_size=8, **settings))
    _, parts = prepare(make_experiment(batch_size=8, microbatch_size=micro, **settings))
    large = make_gradient(make_experiment(batch_size=8, **settings))
    small = make_gradient(make_experiment(batch_size=8, microbatch_size=micro, **settings))
    at_once = jax.jit(lambda state, step: large(state, whole(step))[:3])
    in_parts = jax.jit(lambda state, step: small(state, parts(step))[:3])
    for step in (0, 6):  # the last step of an epoch has 2 examples and 6 of padding
        grads, loss, states = at_once(state, step)
        grads2, loss2, states2 = in_parts(state, step)
        close((grads, loss, states), (grads2, loss2, states2))


def test_full_batch_descent_is_the_gradient_of_the_whole_training_split(make_experiment, make_data, plain_model):
    experiment = make_experiment(model=plain_model, data=make_data(augment=False), batch_size="full", microbatch_size=7)
    state, parts = prepare(experiment)
    gradient = make_gradient(experiment)
    grads, loss = jax.jit(lambda state: gradient(state, parts(3))[:2])(state)
    rows = experiment.data.take(np.arange(50))

    def mean_loss(params):
        inputs = rows["inputs"].astype(np.float32) / 100.0
        outputs, _ = experiment.pure_model.apply(params, {}, inputs, key=jax.random.key(0), train=True)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, rows["targets"]).mean()

    expected, expected_grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    close((loss, grads), (expected, expected_grads))


def test_padding_rows_change_no_gradient_even_if_they_are_garbage(make_experiment, make_data, plain_model):
    experiment = make_experiment(model=plain_model, data=make_data(augment=False))
    state, parts = prepare(experiment)
    gradient = make_gradient(experiment)

    def spoiled(_, number, part):
        batch = parts(6)(None, number, part)  # 2 examples, 6 of padding
        keep = batch["mask"].reshape(-1, 1, 1, 1)
        return {**batch, "inputs": jnp.where(keep, batch["inputs"], jnp.uint8(255))}

    clean, dirty = (jax.jit(lambda state, of=of: gradient(state, of)[:3])(state) for of in (parts(6), spoiled))
    assert int(parts(6)(None, 0, 0)["mask"].sum()) == 2
    chex.assert_trees_all_equal(clean, dirty)


def _mlp(rngs):
    return an.models.MLP(64, [32] * 4, 3, norm="layer", activation=jax.nn.gelu, rngs=rngs)


def _cnn(rngs):
    # Two convolutions to a block.
    return an.models.CNN((8, 8, 1), [8], 3, num_convolutions=2, norm="layer", activation=jax.nn.gelu, rngs=rngs)


@pytest.mark.parametrize("model", [_mlp, _cnn])
def test_rematerialization_keeps_less_and_changes_no_gradient(make_experiment, model):
    images = np.random.default_rng(0).normal(size=(60, 8, 8, 1))
    data = an.data.from_arrays(images, np.arange(60) % 3, num_classes=3)
    kept, gradients = {}, {}
    for remat in ("none", "products", "blocks"):
        experiment = make_experiment(data=data, model=model, batch_size=16, remat=remat)
        state, parts = prepare(experiment)
        loss, batch = make_loss(experiment), experiment.data.prepare(parts(0)(None, 0, 0))

        def mean(params, loss=loss, batch=batch):
            return loss(params, {}, batch, key=jax.random.key(0), train=True)[0]

        # What a gradient keeps between the forward and the backward pass.
        residuals = jax.eval_shape(lambda params, mean=mean: jax.vjp(mean, params)[1], state.params)
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
        gradients[remat] = jax.jit(jax.grad(mean))(state.params)
    assert max(kept["products"], kept["blocks"]) < 0.6 * kept["none"]
    if model is _cnn:
        one_convolution = 16 * 8 * 8 * 8 * 4  # bytes
        assert kept["products"] - kept["blocks"] >= one_convolution
    close(gradients["none"], gradients["products"])
    close(gradients["none"], gradients["blocks"])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_computes_low_and_keeps_the_weights_in_float32(make_experiment, precision):
    experiment = make_experiment(precision=precision)
    state, parts = prepare(experiment)
    step = make_train_step(experiment)
    text = jax.jit(lambda s: step(s, parts(0))).lower(state).as_text()
    short = {"bfloat16": "bf16", "float16": "f16"}[precision]
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all(f"x{short}>" in line for line in products)
    run = an.fit(make_experiment(precision=precision, epochs=20), progress=False)
    losses = [row["loss"] for row in run.rows if row["split"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves((run.state.params, run.state.model_state))} == {np.dtype("float32")}


@pytest.mark.cpu
def test_cutting_a_run_in_bfloat16_changes_no_bit(make_experiment):
    experiment = make_experiment(
        model=lambda rngs: an.models.MLP(16, (40, 33), 3, rngs=rngs), precision="bfloat16", batch_size=25
    )
    feed, programs = program.prepare(experiment)
    operand = feed.train_operand(0, 6)

    def trained(*counts):
        state = programs.init(np.uint32(0))
        for count in counts:
            state, _ = programs.train(state, operand, np.int32(count), np.bool_(False))
        return state

    chex.assert_trees_all_equal(trained(4), trained(1, 3))


def test_an_overflow_in_float16_skips_the_update_and_halves_the_scale(make_experiment):
    experiment = make_experiment(precision="float16")
    state, parts = prepare(experiment)
    state = state.replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(2.0**40)))
    after, loss, _ = jax.jit(lambda s: make_train_step(experiment)(s, parts(0)))(state)
    assert np.isfinite(loss) and int(after.step) == 1
    assert float(after.loss_scale.scale) == 2.0**39
    chex.assert_trees_all_equal((state.params, state.opt_state), (after.params, after.opt_state))


def test_keys_of_purposes_steps_seeds_and_parts_all_differ():
    keys = {
        tuple(jax.random.key_data(random_key(seed, purpose, step, part)).tolist())
        for seed in range(4)
        for purpose in range(3)
        for step in range(5)
        for part in range(3)
    }
    assert len(keys) == 4 * 3 * 5 * 3


def test_averaged_weights_are_what_is_evaluated(make_experiment):
    run = an.fit(make_experiment(steps=9), progress=False)
    assert not np.array_equal(run.params["last"]["kernel"], run.state.params["last"]["kernel"])
    rows = run.experiment.data.take(np.asarray(run.experiment.data.splits["test"]))
    logits = run.model(jnp.asarray(rows["inputs"], jnp.float32) / 100.0)
    accuracy = np.mean(np.argmax(logits, axis=1) == rows["targets"])
    assert run.metrics["test"]["accuracy"] == pytest.approx(accuracy)
    np.testing.assert_allclose(run.predict(rows["inputs"]), logits, rtol=1e-5)
