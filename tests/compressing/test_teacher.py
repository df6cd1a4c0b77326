"""A teacher's outputs are a part of the loss in training, and of nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import accelnet as an
from accelnet.compressing.teacher import taught

ROWS = 23  # of which the last batch of 8 is partly padding


def experiment_of(width=4, *, task="classes", **settings):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 3)).astype(np.float32)
    targets, objective, outputs = {
        "classes": (rng.integers(0, 4, ROWS), an.objectives.softmax_cross_entropy(class_weights=(1, 2, 3, 1)), 4),
        "labels": (rng.integers(0, 2, (ROWS, 2)), an.objectives.sigmoid_cross_entropy(), 2),
        "numbers": (rng.normal(size=(ROWS, 2)).astype(np.float32), an.objectives.squared_error(num_outputs=2), 2),
    }[task]
    data = an.data.Data(
        "toy", {"inputs": inputs, "targets": targets}, {"train": range(15), "validation": range(15, 23)}
    )
    return an.Experiment(
        data=data,
        model=lambda rngs: an.models.MLP(3, (width,), outputs, rngs=rngs),
        optimizer=an.optim.adam(1e-1),
        objective=objective,
        batch_size=8,
        **({"epochs": 2} | settings),
    )


def weights_of(experiment, seed=3):
    return experiment.pure_model.init(jax.random.key(seed))


@pytest.mark.parametrize("task", ["classes", "labels", "numbers"])
def test_the_loss_is_the_stated_mixture_and_in_evaluation_the_old_one(task):
    teacher, student = experiment_of(16, task=task), experiment_of(task=task)
    params, state = weights_of(teacher)
    made = taught(student, teacher, params, state, share=0.3, temperature=3.0)
    rows = np.arange(5)
    batch = {**made.data.take(rows), "mask": np.ones(5, bool)}
    expected, _ = teacher.pure_model.apply(params, state, batch["inputs"], key=jax.random.key(0), train=False)
    np.testing.assert_allclose(batch["teacher"], expected, rtol=1e-5, atol=1e-6)  # other programs, in float32
    assert (made.data.take(np.arange(15, 23))["teacher"] == 0).all()
    outputs, _ = student.pure_model.apply(*weights_of(student), batch["inputs"], key=jax.random.key(0), train=False)
    plain, own = student.objective.raw(outputs, batch, {"train": True})
    mixed, weights = made.objective.raw(outputs, batch, {"train": True})

    o, t = np.asarray(outputs, np.float64), np.asarray(batch["teacher"], np.float64)
    if task == "numbers":
        distance = ((o - t) ** 2).mean(tuple(range(plain.ndim, 2)))
    else:
        if task == "labels":
            o, t = (np.stack([np.zeros_like(one), one], -1) for one in (o, t))
        p, q = (np.exp(one / 3) / np.exp(one / 3).sum(-1, keepdims=True) for one in (t, o))
        distance = 9 * (p * np.log(p / q)).sum(-1)
        distance = distance.mean(tuple(range(plain.ndim, distance.ndim)))
    np.testing.assert_allclose(mixed, 0.7 * np.asarray(plain) + 0.3 * distance, rtol=1e-4)
    assert (own is None) == (weights is None)
    evaluated, _ = made.objective.raw(outputs, batch, {"train": False})
    np.testing.assert_array_equal(evaluated, plain)


def test_training_follows_the_teacher_and_keeps_nothing_of_it(tmp_path):
    teacher, student = experiment_of(16), experiment_of(16, steps=100, epochs=None)
    params, state = weights_of(teacher)
    made = taught(student, teacher, params, state, share=1.0)
    run = an.fit(made, workdir=tmp_path / "run")
    outputs = run.predict(made.data.arrays["inputs"][:15])
    agreement = (np.argmax(outputs, -1) == made.data.arrays["teacher"][:15].argmax(-1)).mean()
    assert agreement == 1.0  # the targets are random: without the teacher it cannot be
    assert jax.tree.map(jnp.shape, run.params) == jax.tree.map(jnp.shape, params)
    assert set(run.metrics["validation"]) == {"loss", "accuracy"}
    assert not made.couples_padding


def test_what_a_teacher_cannot_help_is_refused():
    teacher, student = experiment_of(16), experiment_of()
    params, state = weights_of(teacher)
    mixing = dataclasses.replace(student.data, augment=an.data.mixup(num_classes=4))
    with pytest.raises(an.UserError, match="mixes examples"):
        taught(student.replace(data=mixing), teacher, params, state)
    moving = dataclasses.replace(student.data, augment=lambda key, batch: {**batch, "inputs": -batch["inputs"]})
    assert "teacher" in taught(student.replace(data=moving), teacher, params, state).data.arrays
    other = student.replace(objective=an.objectives.Objective(lambda outputs, batch: outputs.sum(-1)))
    with pytest.raises(an.UserError, match="task"):
        taught(other, teacher, params, state)
    with pytest.raises(an.UserError, match="same shape"):
        taught(experiment_of(task="labels"), teacher, params, state)
    with pytest.raises(an.UserError, match="not finite"):
        taught(student, teacher, jax.tree.map(lambda leaf: leaf * jnp.nan, params), state)


def test_a_loss_of_a_whole_batch_still_leaves_the_last_batch_out():
    batch_loss = an.objectives.Objective(lambda outputs, batch: (outputs**2).sum(), task="classes")
    student = experiment_of().replace(objective=batch_loss)
    assert student.couples_padding
    assert taught(student, experiment_of(16), *weights_of(experiment_of(16))).couples_padding
