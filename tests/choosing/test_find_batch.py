"""The noise scale, on a quadratic whose gradients' mean and covariance are known."""

import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.choosing.find_batch import BatchSizes, NoiseScale, find_batch, largest_batch, noise_scale, noise_scales
from accelnet.choosing.find_batch_page import page
from accelnet.objectives import Objective
from tests.pages import needs_browser, needs_nothing, shows

NOISE, START = 8.0, 3.0
ROWS = np.random.default_rng(0).normal(scale=NOISE, size=(4000, 3)).astype(np.float32)


class Point(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.at = nnx.Param(jax.numpy.full((3,), START))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return inputs - self.at.get_value()[None]


def experiment(batch_size=16):
    def loss(outputs, batch):
        losses = 0.5 * jax.numpy.sum(outputs**2, axis=-1)
        return losses, an.objectives.example_weights(batch, losses.shape)

    return an.Experiment(
        data=an.data.from_arrays(ROWS, np.zeros(len(ROWS), np.float32), normalize=False),
        model=Point,
        optimizer=an.optim.sgd(1e-3),
        objective=Objective(loss),
        batch_size=batch_size,
        steps=20,
    )


@pytest.mark.parametrize("batch_size", [16, 64])
def test_the_noise_scale_is_the_trace_of_the_covariance_over_the_squared_gradient(batch_size):
    made = experiment(batch_size)
    train = made.data.splits["train"]
    rows = np.asarray(made.data.arrays["inputs"])[train.start : train.stop]
    truth = rows.var(0).sum() / np.sum((START - rows.mean(0)) ** 2)
    (scale,) = noise_scales(made, 1, progress=False)
    assert scale.step == 0 and scale.low < truth < scale.high
    assert scale.value == pytest.approx(truth, rel=0.35)  # four standard errors


def test_the_interval_covers_the_truth_in_95_of_100_repetitions():
    rng, hits, num = np.random.default_rng(1), 0, 300
    for _ in range(num):
        grads = 1.0 + rng.normal(scale=4.0, size=(32, 40)) / np.sqrt(8)  # b = 8, tr(S) / |G|^2 = 16
        scale = noise_scale(grads @ grads.T, 8)
        hits += scale.low < 16.0 < scale.high
    assert 0.90 < hits / num < 0.99


@pytest.mark.parametrize("batch_size", [20, 200, 1000])
def test_batches_that_hold_no_example_twice_are_allowed_for(batch_size):
    rng = np.random.default_rng(0)
    examples = 1.0 + rng.normal(scale=4.0, size=(2000, 40))
    truth = examples.var(axis=0, ddof=0).sum() / np.sum(examples.mean(axis=0) ** 2)
    batches = [examples[rng.permutation(2000)[:batch_size]].mean(axis=0) for _ in range(400)]
    gram = np.array(batches) @ np.array(batches).T
    scale = noise_scale(gram, batch_size, num_examples=2000)
    # Four standard errors of 400 batches; without the factor half of the truth would come out at 1,000.
    assert scale.value == pytest.approx(truth, rel=0.06)
    assert noise_scale(gram, batch_size).value == pytest.approx(truth * (2000 - batch_size) / 1999, rel=0.06)


@pytest.mark.slow
def test_the_largest_batch_fits_and_a_larger_one_does_not():
    made = experiment()
    whole, whole_bytes = largest_batch(made, 1 << 40)
    assert whole == made.order.num_examples
    size, needed = largest_batch(made, int(0.9 * whole_bytes))
    assert 1 <= size < whole and needed <= 0.9 * whole_bytes < whole_bytes
    with pytest.raises(an.UserError, match="one example takes"):
        largest_batch(made, 10)


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_it(browser, tmp_path):
    scales = (NoiseScale(0, 20.0, 12.0, 31.0), NoiseScale(50, 180.0, 90.0, 400.0), NoiseScale(100, *[math.nan] * 3))
    found = BatchSizes("toy", 64, 60.0, scales, 900, 5 << 20, 4 << 30, "The critical batch size is about 60.")
    shows(browser, page(found.to_dict()), tmp_path)


def test_what_was_found_is_kept(tmp_path):
    found = find_batch(experiment(), points=2, workdir=tmp_path, progress=False)
    assert json.loads((tmp_path / "batch.json").read_text()) == found.to_dict()
    shown = needs_nothing((tmp_path / "report.html").read_text())
    assert found.reason in shown.text and f"{found.largest:,} examples" in shown.text
    assert [scale.step for scale in found.scales] == [0, 10] and "critical batch size" in found.reason
    with pytest.raises(an.UserError, match="at most half the training split"):
        find_batch(experiment(3000), progress=False)
