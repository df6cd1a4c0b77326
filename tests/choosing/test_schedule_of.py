import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import accelnet as an
from accelnet.choosing.schedule_of import schedule_of
from accelnet.optim import schedules

STEPS = 50
COSINE = [0.5 * (1 + np.cos(np.pi * step / STEPS)) for step in (0, 10, 25, 49)]
RATE = optax.cosine_decay_schedule(1e-2, STEPS)
PARAMS = {"embed": {"embedding": jnp.ones((7, 4))}, "dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}


def factors(schedule):
    return [float(schedule(step)) for step in (0, 10, 25, 49)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(RATE),
        lambda: optax.adamw(RATE, weight_decay=0.1, mask=an.optim.decayed),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(RATE, momentum=0.9)),
        lambda: optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(RATE), optax.scale(-1.0)),
        lambda: optax.inject_hyperparams(optax.adam)(RATE),
        lambda: optax.inject_hyperparams(optax.adam)(RATE, b1=optax.linear_schedule(0.8, 0.9, 9)),
        lambda: an.optim.adamw(0.1, schedule=optax.cosine_decay_schedule(1.0, STEPS)),
        lambda: optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(0)), optax.lion(RATE)),
        lambda: optax.contrib.schedule_free(optax.sgd(RATE), RATE),
        lambda: optax.lookahead(optax.adam(RATE), 5, 0.5),
        lambda: optax.contrib.sam(optax.adam(RATE), optax.sgd(0.1), opaque_mode=True),
        lambda: optax.partition({"a": optax.adam(RATE), "b": optax.sgd(RATE)}, labels),
        lambda: optax.apply_if_finite(optax.adam(RATE), 3),
        lambda: optax.chain(optax.scale_by_schedule(RATE), an.optim.sgd(0.1)),
    ],
)
def test_a_schedule_of_steps_is_kept(make):
    np.testing.assert_allclose(factors(schedule_of(make(), STEPS, PARAMS)), COSINE, rtol=1e-4, atol=1e-5)


def labels(params):
    return jax.tree.map(lambda leaf: "a" if leaf.ndim == 2 else "b", params)


@pytest.mark.parametrize(
    "make",
    [
        lambda: an.optim.adamw(0.1, schedule=schedules.cosine()),
        lambda: an.optim.schedule_free_adamw(0.1, schedule=schedules.cosine()),
        lambda: optax.chain(optax.clip(1.0), an.optim.muon(0.1, schedule=schedules.cosine())),
        lambda: optax.chain(an.optim.sgd(0.1, schedule=schedules.cosine()), an.optim.reduce_on_plateau()),
        lambda: optax.lookahead(an.optim.sgd(0.1, schedule=schedules.cosine()), 5, 0.5),
        lambda: optax.multi_transform(
            {"a": an.optim.adam(0.1, schedule=schedules.cosine()), "b": optax.sgd(RATE)}, labels
        ),
    ],
)
def test_a_schedule_of_progress_stays_one(make):
    schedule = schedule_of(make(), STEPS, PARAMS)
    values = [float(schedule(jnp.float32(step) / STEPS)) for step in (0, 10, 25, 49)]
    np.testing.assert_allclose(values, COSINE, rtol=1e-4, atol=1e-5)


def test_a_peak_that_the_schedule_does_not_reach_is_kept_where_it_is_known():
    half = an.optim.sgd(0.1, schedule=lambda progress: 0.5 - 0.5 * progress)
    assert float(schedule_of(half, 10)(0.0)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: an.optim.sgd(0.1),
        lambda: optax.sgd(0.1),
        optax.contrib.prodigy,
        optax.lbfgs,
        lambda: optax.MultiSteps(optax.adam(0.1), 4),
        lambda: optax.inject_hyperparams(optax.adam)(0.1),
    ],
)
def test_an_optimizer_without_a_schedule_follows_none(make):
    assert jax.vmap(schedule_of(make(), 5))(jnp.arange(5)).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: optax.MultiSteps(optax.adam(RATE), 2), "within MultiSteps, sam or apply_every cannot be told"),
        (lambda: optax.contrib.sam(optax.sgd(RATE), optax.sgd(0.1)), "within MultiSteps, sam or apply_every"),
        (lambda: optax.partition({"a": optax.adam(RATE), "b": optax.sgd(0.1)}, labels), "follow different schedules"),
        (
            lambda: optax.partition(
                {"a": an.optim.adam(0.1, schedule=schedules.cosine()), "b": an.optim.sgd(0.1)}, labels
            ),
            "groups that follow different schedules .learning_rate/a, learning_rate/b.: give one schedule to all",
        ),
        (lambda: optax.sgd(optax.constant_schedule(0.1)), "a schedule that its updates do not show"),
        (lambda: optax.chain(optax.adam(RATE), optax.add_decayed_weights(-1e-3)), "follow different schedules"),
    ],
)
def test_what_cannot_be_told_is_refused(make, words):
    with pytest.raises(an.UserError, match=words):
        schedule_of(make(), STEPS, PARAMS)
