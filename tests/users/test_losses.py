"""Losses and metrics as people write them: what the framework adds (mask, weights) and what a loss may ask for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import accelnet as an
from accelnet.errors import UserCodeError
from accelnet.objectives import Objective
from tests.users import toy


def linear(rngs):
    return nnx.Linear(8, 2, rngs=rngs)


def cross_entropy(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["targets"])


STYLES = {
    "losses of the examples": cross_entropy,
    "(losses, ones)": lambda outputs, batch: (cross_entropy(outputs, batch), jnp.ones(outputs.shape[0])),
    "an optax loss as it is": optax.softmax_cross_entropy_with_integer_labels,
    "a mean over the mask": lambda outputs, batch, mask: jnp.mean(cross_entropy(outputs, batch), where=mask),
    "a plain mean": lambda outputs, batch: cross_entropy(outputs, batch).mean(),
    "the built-in objective": None,
}


@pytest.mark.parametrize("style", STYLES)
def test_each_style_of_one_loss_reports_the_true_mean_whatever_the_padding(style):
    # 24, 8 and 8 rows in batches of 7: each split ends with padding.
    objective = STYLES[style] or an.objectives.softmax_cross_entropy()
    run = toy.fit(linear, objective=objective, eval_batch_size=7, batch_size=8)
    for split, rows in toy.SPLITS.items():
        outputs = run.predict(toy.X[rows.start : rows.stop])
        true = optax.softmax_cross_entropy_with_integer_labels(outputs, toy.Y[rows.start : rows.stop]).mean()
        assert run.metrics[split]["loss"] == pytest.approx(float(true), rel=1e-5)


def test_a_forgotten_mask_is_applied_in_training_too():
    # 24 rows in batches of 9: the last batch has 6 rows and 3 of padding.
    runs = [toy.fit(linear, objective=o, batch_size=9, steps=6) for o in (cross_entropy, STYLES["(losses, ones)"])]
    reference = toy.fit(linear, batch_size=9, steps=6)
    for run in runs:
        chex.assert_trees_all_close(run.params, reference.params, rtol=1e-6)


def test_one_number_for_a_batch_leaves_the_last_partial_batch_out_and_says_so(capsys):
    experiment = toy.experiment(
        linear, objective=lambda outputs, batch: cross_entropy(outputs, batch).mean(), batch_size=9
    )
    assert experiment.order.steps_per_epoch == 2
    run = an.fit(experiment.replace(steps=None, epochs=2), progress=True)
    assert run.step == 4
    assert "the last 6 examples of each epoch" in capsys.readouterr().err
    assert run.result["compiles"]["train"] == 1


def test_one_number_for_a_batch_cannot_be_weighted():
    weighted = an.data.Data("w", {"inputs": toy.X, "targets": toy.Y, "weights": np.ones(40, np.float32)}, toy.SPLITS)
    with pytest.raises(an.UserError, match="one number for a whole batch, and the data has weights"):
        toy.fit(linear, weighted, STYLES["a plain mean"])


def test_sample_weights_are_applied_once_however_the_loss_is_written():
    weights = np.linspace(0.5, 2.0, 40).astype(np.float32)
    weighted = an.data.Data("w", {"inputs": toy.X, "targets": toy.Y, "weights": weights}, toy.SPLITS)

    def own(outputs, batch, weights):
        return cross_entropy(outputs, batch), weights

    runs = [toy.fit(linear, weighted, o) for o in (cross_entropy, own, an.objectives.softmax_cross_entropy())]
    losses = [run.metrics["test"]["loss"] for run in runs]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert losses[0] != pytest.approx(toy.fit(linear).metrics["test"]["loss"], rel=1e-3)


def contrastive(outputs, batch, mask):
    similarity = outputs @ outputs.T / 0.2
    others = mask[None, :] & ~jnp.eye(len(outputs), dtype=bool)
    return jax.nn.logsumexp(similarity, axis=1, where=others)


def test_a_contrastive_loss_with_its_mask_is_that_of_the_real_rows_alone():
    outputs = np.asarray(jax.random.normal(jax.random.key(0), (8, 4)))
    outputs = outputs / np.linalg.norm(outputs, axis=-1, keepdims=True)
    objective = Objective(contrastive)
    evaluate = jax.jit(objective.evaluate)
    real, _ = evaluate(outputs[:5], {"mask": np.ones(5, bool)})
    padded, _ = evaluate(outputs, {"mask": np.arange(8) < 5})
    assert float(padded) == pytest.approx(float(real), rel=1e-6)
    assert float(real) == pytest.approx(2.08, abs=0.01)  # 2.52 with the padding among the negatives


def test_a_loss_whose_examples_see_each_other_is_kept_from_padding_by_its_effect():
    def coupled(outputs, batch):
        similarity = outputs @ outputs.T / 0.2 - 1e9 * jnp.eye(len(outputs))
        return jax.nn.logsumexp(similarity, axis=1)

    assert toy.experiment(linear, objective=coupled).couples_padding
    assert not toy.experiment(linear, objective=contrastive).couples_padding  # it asks for the mask
    assert not toy.experiment(linear, objective=cross_entropy).couples_padding
    run = toy.fit(linear, objective=coupled, batch_size=8, eval_batch_size=5)
    # 8 test rows, in batches of 5 and 3 of their own.
    outputs = run.predict(toy.X[32:])
    parts = [coupled(outputs[:5], {}), coupled(outputs[5:], {})]
    assert run.metrics["test"]["loss"] == pytest.approx(float(jnp.concatenate(parts).mean()), rel=1e-5)


def test_a_metric_of_four_positional_arguments_may_call_them_anything():
    class Beta(an.objectives.Mean):
        def values(self, o, b, v, w):
            return 2.0 * v, w

    run = toy.fit(linear, objective=Objective(cross_entropy, {"twice": Beta(), "again": lambda o, b, v, w: v}))
    assert run.metrics["test"]["twice"] == pytest.approx(2 * run.metrics["test"]["loss"], rel=1e-6)
    assert run.metrics["test"]["again"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-6)


def test_a_loss_gets_what_it_names_and_nothing_else():
    seen = {}

    def loss(outputs, batch, *, model, params, key, step, progress, train, sown, mask, weights):
        seen[train] = {
            "model": model(batch["inputs"]).shape, "params": sorted(params), "key": key.shape, "step": step.shape,
            "progress": progress.dtype, "sown": sown, "mask": mask.dtype, "weights": weights.shape,
        }  # fmt: skip
        assert "weights" not in batch
        return cross_entropy(outputs, batch) * weights, jnp.ones_like(weights)

    toy.fit(linear, objective=loss)
    assert set(seen) == {True, False}
    assert seen[True] == {
        "model": (8, 2), "params": ["bias", "kernel"], "key": (), "step": (), "progress": jnp.float32, "sown": {},
        "mask": bool, "weights": (8,),
    }  # fmt: skip


def test_a_name_that_cannot_be_had_is_refused_with_those_that_can():
    with pytest.raises(an.UserError, match=r"asks for teacher, which it cannot have: .* key, mask, model, params"):
        toy.fit(linear, objective=lambda outputs, batch, teacher: outputs[:, 0])


def test_a_loss_that_fails_is_named_with_shapes_and_its_own_lines_alone():
    def mine(outputs, batch):
        return outputs @ batch["inputs"]

    with pytest.raises(UserCodeError) as caught:
        toy.fit(linear, objective=mine)
    text = str(caught.value)
    assert text.startswith("the loss failed, given float32[8,2], {") and "return outputs @ batch" in text
    assert "site-packages" not in text and "accelnet/training" not in text


def test_step_and_progress_of_a_loss_are_those_of_the_run():
    def beta(outputs, batch, progress):
        return jnp.full(outputs.shape[0], progress)

    objective = Objective(cross_entropy, {"progress": beta})
    with pytest.raises(an.UserError, match=r"the metric 'progress'|asks for progress"):
        toy.fit(linear, objective=objective)

    def annealed(outputs, batch, step, progress):
        return jnp.full(outputs.shape[0], 10.0 * step + progress) + 0.0 * outputs[:, 0]

    run = toy.fit(linear, objective=annealed, steps=4, log_every=an.Every(steps=1))
    rows = [row["loss"] for row in run.rows if row["split"] == "train"]
    assert rows == pytest.approx([0.0, 10.25, 20.5, 30.75])
    assert run.metrics["test"]["loss"] == pytest.approx(41.0)


def test_a_loss_can_differentiate_the_model_by_its_inputs():
    """A physics-informed network: u' = -u of exp, against the same written with jax alone."""
    x = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    data = an.data.Data("ode", {"inputs": x, "targets": np.exp(-x)}, {"train": range(40)})

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(1, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            return self.b(jnp.tanh(self.a(x)))

    def residual(outputs, batch, model):
        slope = jax.vmap(jax.grad(lambda t: model(t[None])[0, 0]))(batch["inputs"])
        return (slope + outputs)[:, 0] ** 2 + (outputs - batch["targets"])[:, 0] ** 2

    run = toy.fit(Net, data, residual, batch_size="full", steps=3, optimizer=optax.sgd(0.1))

    pure = run.experiment.pure_model
    from accelnet.training.state import init_state

    params = jax.jit(lambda: init_state(run.experiment, np.uint32(0)).params)()

    def by_hand(params):
        def u(t):
            return (
                jnp.tanh(t @ params["a"]["kernel"] + params["a"]["bias"][None]) @ params["b"]["kernel"]
                + params["b"]["bias"][None]
            )

        slope = jax.vmap(jax.grad(lambda t: u(t[None])[0, 0]))(jnp.asarray(x))
        return jnp.mean((slope + u(x))[:, 0] ** 2 + (u(x) - jnp.exp(-x))[:, 0] ** 2)

    gradient = jax.jit(jax.grad(by_hand))
    for _ in range(3):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params))
    chex.assert_trees_all_close(run.params, params, rtol=1e-4, atol=1e-6)
    assert pure is run.experiment.pure_model


def test_a_second_pass_draws_other_dropout():
    """R-Drop: the divergence of two passes is 0 only where both draw the same."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.drop, self.linear = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.drop(x))

    def apart(outputs, batch, model, train):
        again = model(batch["inputs"])
        return jnp.sum((outputs - again) ** 2, axis=-1) + 0.0 * train

    run = toy.fit(Net, objective=apart, steps=2, log_every=an.Every(steps=1))
    assert run.rows[0]["loss"] > 0
    assert run.metrics["test"]["loss"] == 0.0


def test_a_gan_trains_both_networks_by_one_loss():
    """The generator's gradient goes through the discriminator; stop_gradient keeps the two games apart."""

    class Gan(nnx.Module):
        def __init__(self, rngs):
            self.generator, self.critic = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x, key):
            return self.generator(jax.random.normal(key, (x.shape[0], 4)))

        def judge(self, x):
            return self.critic(x)[:, 0]

    def loss(outputs, batch, model, params):
        fixed = jax.tree.map(jax.lax.stop_gradient, params)
        fool = -model(outputs, params={**params, "critic": fixed["critic"]}, method="judge")
        told = model(jax.lax.stop_gradient(outputs), method="judge") - model(batch["inputs"], method="judge")
        return fool + told

    run = toy.fit(Gan, objective=loss, steps=3)
    fresh, _ = run.experiment.pure_model.init(jax.random.key(9), toy.X)
    assert jax.tree.structure(fresh) == jax.tree.structure(run.params)
    assert np.isfinite(run.metrics["test"]["loss"])
