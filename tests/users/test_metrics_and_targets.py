"""Metrics and targets as people write them."""

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
from tests.users.test_losses import cross_entropy, linear


def one_output(rngs):
    return nnx.Linear(8, 1, rngs=rngs)


def test_soft_one_hot_and_pixel_targets_and_the_focal_loss():
    one_hot = np.eye(2, dtype=np.float32)[toy.Y]
    hard = toy.fit(linear).metrics["test"]
    soft = toy.fit(linear, toy.data(toy.X, one_hot)).metrics["test"]
    whole = toy.fit(linear, toy.data(toy.X, one_hot.astype(np.int32))).metrics["test"]
    assert soft == pytest.approx(hard, rel=1e-5) and whole == pytest.approx(hard, rel=1e-5)

    def evaluated(objective, outputs, targets):  # as one program: op by op, it is dozens of small ones
        return jax.jit(objective.evaluate)(outputs, {"targets": targets})

    logits = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    targets = np.zeros((2, 4, 4), np.int32)
    mean, states = evaluated(an.objectives.softmax_cross_entropy(), logits, targets)
    expected = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, targets).mean()
    assert float(mean) == pytest.approx(float(expected), rel=1e-6)
    accuracy = an.objectives.softmax_cross_entropy().compute(states)["accuracy"]
    assert float(accuracy) == pytest.approx(float((logits.argmax(-1) == 0).mean()))

    flat, labels = logits.reshape(-1, 3), np.arange(32) % 3
    p = (np.exp(flat) / np.exp(flat).sum(-1, keepdims=True))[np.arange(32), labels]
    focal, _ = evaluated(an.objectives.softmax_cross_entropy(focal=2.0), flat, labels)
    assert float(focal) == pytest.approx(float((-((1 - p) ** 2) * np.log(p)).mean()), rel=1e-5)
    binary, _ = evaluated(an.objectives.sigmoid_cross_entropy(focal=2.0), flat[:, 0], labels % 2)
    focal_loss = jax.jit(lambda outputs, labels: optax.sigmoid_focal_loss(outputs, labels, gamma=2.0))
    reference = focal_loss(flat[:, 0], (labels % 2).astype(np.float32)).mean()
    assert float(binary) == pytest.approx(float(reference), rel=1e-5)


class Heads(nnx.Module):
    def __init__(self, rngs):
        self.digit, self.size = nnx.Linear(8, 2, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return {"digit": self.digit(x), "size": self.size(x)}


def test_combined_objectives_are_the_weighted_sum_with_metrics_of_each():
    targets = {"digit": toy.Y, "size": toy.X.sum(axis=1)}
    objective = an.objectives.combine(
        {"digit": (an.objectives.softmax_cross_entropy(), 1.0), "size": (an.objectives.squared_error(), 0.5)},
        metrics={"right": an.objectives.Accuracy(on="digit")},
    )
    run = toy.fit(Heads, toy.data(toy.X, targets), objective, eval_batch_size=5)
    values, rows = run.metrics["test"], toy.SPLITS["test"]
    outputs = run.predict(toy.X[rows.start : rows.stop])
    digit = optax.softmax_cross_entropy_with_integer_labels(outputs["digit"], toy.Y[rows.start : rows.stop]).mean()
    size = ((outputs["size"][:, 0] - targets["size"][rows.start : rows.stop]) ** 2).mean()
    assert values["digit_loss"] == pytest.approx(float(digit), rel=1e-5)
    assert values["size_loss"] == pytest.approx(float(size), rel=1e-5)
    assert values["loss"] == pytest.approx(float(digit + 0.5 * size), rel=1e-5)
    assert values["right"] == values["digit_accuracy"] and "size_r2" in values
    with pytest.raises(an.UserError, match="the parts are a, and the outputs are digit, size"):
        toy.fit(Heads, toy.data(toy.X, targets), an.objectives.combine({"a": an.objectives.squared_error()}))


def test_a_plain_function_is_a_metric_and_orders_nothing_until_its_direction_is_said():
    def margin(outputs, batch):
        return outputs[:, 0] - outputs[:, 1]

    objective = Objective(cross_entropy, {"margin": margin})
    run = toy.fit(linear, objective=objective, eval_batch_size=5)
    outputs = run.predict(toy.X[32:])
    assert run.metrics["test"]["margin"] == pytest.approx(float((outputs[:, 0] - outputs[:, 1]).mean()), abs=1e-6)
    with pytest.raises(an.UserError, match="'margin' does not say whether lower is better"):
        toy.experiment(linear, objective=objective, best_metric="margin")
    said = Objective(cross_entropy, {"margin": an.objectives.FunctionMean(margin, lower_is_better=False)})
    assert toy.experiment(linear, objective=said, best_metric="margin").best_is_lower is False
    with pytest.raises(an.UserError, match="expected one value for each"):
        toy.fit(linear, objective=Objective(cross_entropy, {"f": lambda outputs, batch: 1.0}))


def test_an_optax_loss_never_broadcasts_examples_against_each_other():
    with pytest.raises((an.UserError, UserCodeError), match=r"\[8,1\]|\(8, 1\)"):
        toy.fit(one_output, toy.data(toy.X, toy.X[:, 0]), optax.squared_error)


@pytest.mark.parametrize(
    ("model", "targets", "objective", "settings", "message"),
    [
        (
            lambda rngs: nnx.Linear(8, 9, rngs=rngs),
            toy.Y,
            None,
            {"num_classes": 10},
            "gives 9 outputs, .* has 10 classes",
        ),
        (linear, toy.Y + 1, None, {}, "classes from 1 to 2, and the model gives 2 outputs"),
        (one_output, 7.0 * toy.X[:, 0], an.objectives.sigmoid_cross_entropy(), {}, "expected 0 to 1 for a sigmoid"),
    ],
)
def test_widths_and_ranges_are_looked_at_before_the_first_step(model, targets, objective, settings, message):
    with pytest.raises(an.UserError, match=message):
        toy.fit(model, toy.data(toy.X, targets, info=settings), objective)


def test_a_parts_metric_of_its_loss_is_of_its_own_loss_and_not_of_the_sum():
    part = an.objectives.softmax_cross_entropy(metrics={"perplexity": an.objectives.Perplexity()})
    objective = an.objectives.combine({"a": part, "b": (an.objectives.squared_error(), 10.0)})
    outputs = {"a": jnp.zeros((4, 5)), "b": jnp.full((4,), 3.0)}
    batch = {"targets": {"a": jnp.arange(4), "b": jnp.zeros(4)}, "mask": jnp.array([True, True, True, False])}
    _, states = jax.jit(objective.evaluate)(outputs, batch)
    values = objective.compute(states)
    assert float(values["a_perplexity"]) == pytest.approx(5.0, rel=1e-6)
    assert float(values["a_loss"]) == pytest.approx(np.log(5.0), rel=1e-6)
