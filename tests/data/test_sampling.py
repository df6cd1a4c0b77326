import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import accelnet as an
from accelnet.data.order import Order, draw
from accelnet.data.sampling import make_tickets

pytestmark = pytest.mark.usefixtures("no_pictures")


def experiment_of(data, **settings):
    settings = {"batch_size": 16, "steps": 30, "optimizer": an.optim.adam(0.01)} | settings
    return an.Experiment(
        data=data,
        model=lambda rngs: an.models.MLP(2, (8,), 2, rngs=rngs),
        objective=an.objectives.softmax_cross_entropy(),
        **settings,
    )


def imbalanced(num_rows=400, rare=20):
    """Return two clouds that overlap, the second with few rows."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [num_rows - rare, rare])
    inputs = rng.normal(size=(num_rows, 2)) + 1.2 * labels[:, None]
    return an.data.from_arrays(inputs, labels, num_classes=2, validation=0.25, test=0)


def drawn(data, steps, batch_size=16, seed=3):
    order = experiment_of(data, batch_size=batch_size).order
    rows, mask = order.block(range(steps), seed=seed)
    return rows[mask]


def test_rows_come_in_proportion_to_their_weights():
    weights = np.random.default_rng(0).exponential(size=50)
    weights[[0, 7, 49]] = 0
    tickets, epochs = make_tickets(weights, "toy"), 400
    cells = np.arange(50, dtype=np.uint32)
    rows = np.concatenate([draw(cells, seed=5, epoch=epoch, tickets=tickets) for epoch in range(epochs)])
    counts, due = np.bincount(rows, minlength=50), epochs * 50 * weights / weights.sum()
    assert (counts[[0, 7, 49]] == 0).all()
    # Drawn from cells, counts scatter less than those of independent draws, of which 1 in 1,000 exceeds this.
    chi_square = ((counts - due)[due > 0] ** 2 / due[due > 0]).sum()
    assert chi_square < stats.chi2.ppf(0.999, 46)
    # They do scatter: the draw within a cell is random.
    assert chi_square > 1


def test_two_neighbouring_cells_draw_independently():
    # Two rows of equal weight share every cell of n = 1: which of the two comes is a coin, thrown anew in each epoch.
    tickets = make_tickets(np.array([1.0, 2.0, 1.0, 2.0]), "toy")
    cells = np.arange(4, dtype=np.uint32)
    rows = np.stack([draw(cells, seed=1, epoch=epoch, tickets=tickets) for epoch in range(3000)])
    # The first cell holds row 0 to two thirds, the second row 1 alone, and the third row 2 to two thirds.
    first, third = (rows[:, 0] == 0), (rows[:, 2] == 2)
    assert set(rows[:, 1]) == {1} and set(rows[:, 3]) == {3}
    for chosen in (first, third):
        assert abs(chosen.mean() - 2 / 3) < 0.04  # 4 standard deviations are 0.034
    assert abs(np.corrcoef(first, third)[0, 1]) < 4 / np.sqrt(3000)
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4 / np.sqrt(3000)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 1000, 4096, 60000])
def test_with_equal_weights_every_row_comes_once_an_epoch(num_rows):
    tickets = make_tickets(np.full(num_rows, 0.3), "toy")
    order = Order(num_rows, min(num_rows, 64), min(num_rows, 64), tickets=tickets)
    rows, mask = order.block(range(order.steps_per_epoch), seed=0)
    assert np.array_equal(np.sort(rows[mask]), np.arange(num_rows))


@pytest.mark.parametrize(("batch", "micro"), [(8, 8), (8, 3), (53, 53), (53, 20)])
def test_host_and_device_draw_the_same_rows_in_any_parts(batch, micro):
    weights = np.random.default_rng(1).random(53) ** 4
    order = Order(53, batch, micro, first_row=10, tickets=make_tickets(weights, "toy"))
    block, masks = order.block(range(20), seed=9)
    tickets = jnp.asarray(order.tickets)
    device = jax.jit(lambda step, part: order.rows(step, part, seed=jnp.uint32(9), tickets=tickets, xp=jnp))
    for step in range(20):
        for part in range(order.num_microbatches):
            rows, mask = device(jnp.int32(step), jnp.int32(part))
            np.testing.assert_array_equal(rows, block[step, part])
            np.testing.assert_array_equal(mask, masks[step, part])
    if micro % 2 == 0:
        halves = [order.rows(np.int32(4), 0, seed=9, part=part, num_parts=2)[0] for part in range(2)]
        np.testing.assert_array_equal(np.concatenate(halves), block[4, 0])
    assert block.min() >= 10 and block.max() < 63


def test_balanced_classes_come_equally_often():
    data = imbalanced()
    assert data.arrays["targets"][drawn(data, 100)].mean() == pytest.approx(0.05, abs=0.01)
    balanced = data.sampled("balanced")
    rows = drawn(balanced, 190)  # ten epochs
    assert data.arrays["targets"][rows].mean() == pytest.approx(0.5, abs=0.01)
    # All rows of a class have the same chance.
    counts = np.bincount(rows, minlength=300)[:300][data.arrays["targets"][:300] == 1]
    assert len(counts) == 15 and counts.min() > 80 and counts.max() < 120


def test_weights_are_those_of_the_rows_as_they_were_given():
    inputs = np.arange(60.0)[:, None]
    weights = np.where(np.arange(60) < 30, 0.0, np.arange(60))
    data = an.data.from_arrays(inputs, np.arange(60) % 2, num_classes=2, normalize=False, validation=0.2, test=0.2)
    rows = drawn(data.sampled(weights), 200)
    assert rows.max() < data.splits["train"].stop
    counts = np.bincount(data.arrays["inputs"][rows].ravel().astype(int), minlength=60)
    mine = weights[data.arrays["inputs"][: data.splits["train"].stop].ravel().astype(int)]
    assert np.bincount(counts > 0, minlength=2)[1] == (mine > 0).sum()
    # Of one row, each of its epochs is off by at most two.
    due = len(rows) * weights[counts > 0] / mine.sum()
    np.testing.assert_allclose(counts[counts > 0], due, rtol=0.15)


def test_sampling_changes_the_fingerprint_and_nothing_else_of_the_data():
    data = imbalanced()
    assert len({one.fingerprint() for one in (data, data.sampled("balanced"), data.sampled(np.ones(400)))}) == 3
    assert data.sampled("balanced").fingerprint() == data.sampled("balanced").fingerprint()
    assert data.sampled("balanced").splits == data.splits and data.sampling is None
    descriptions = [experiment_of(one).description() for one in (data, data.sampled("balanced"))]
    assert {name for name in descriptions[0] if descriptions[0][name] != descriptions[1][name]} == {"data"}


def params_of(run):
    return jax.tree.map(np.asarray, run.params)


@pytest.mark.slow
def test_a_stream_resuming_and_other_devices_draw_as_one_device_does(tmp_path):
    data = imbalanced().sampled("balanced")
    whole = an.fit(experiment_of(data), progress=False)
    streamed = an.fit(experiment_of(data, on_device=False), progress=False)
    chex.assert_trees_all_equal(params_of(whole), params_of(streamed))
    an.fit(experiment_of(data, steps=11, on_device=False), workdir=tmp_path, progress=False)
    resumed = an.fit(
        experiment_of(data, on_device=False), workdir=tmp_path, resume=True, allow_change=True, progress=False
    )
    chex.assert_trees_all_equal(params_of(whole), params_of(resumed))
    for on_device in (True, False):
        cut = an.fit(experiment_of(data, on_device=on_device), mesh="data=8", progress=False)
        # Sums over devices round otherwise.
        chex.assert_trees_all_close(params_of(whole), params_of(cut), rtol=1e-7, atol=2e-5)


def test_a_run_that_was_sampled_is_not_gone_on_with_without(tmp_path):
    data = imbalanced()
    an.fit(experiment_of(data.sampled("balanced")), workdir=tmp_path, progress=False)
    with pytest.raises(an.UserError, match="data"):
        an.fit(experiment_of(data), workdir=tmp_path, resume=True, progress=False)


@pytest.mark.slow
def test_balanced_sampling_finds_the_rare_class_where_plain_training_does_not():
    found = {}
    for name, data in (("plain", imbalanced()), ("balanced", imbalanced().sampled("balanced"))):
        run = an.fit(experiment_of(data, steps=400), progress=False)
        rows = data.take(np.arange(data.splits["validation"].start, data.splits["validation"].stop))
        answers = np.argmax(run.predict(rows["inputs"]), axis=1)
        found[name] = (answers[rows["targets"] == 1] == 1).mean(), run.metrics["train"]["loss"]
    assert found["balanced"][0] >= found["plain"][0] + 0.3
    # Evaluation takes every row once: balanced training pays for the rare rows there.
    assert found["balanced"][1] > found["plain"][1]


def test_sampling_weights_are_no_weights_of_the_loss():
    rng = np.random.default_rng(0)
    weights, labels = rng.random(40) + 0.5, np.arange(40) % 2
    data = an.data.from_arrays(rng.normal(size=(40, 2)), labels, num_classes=2, validation=0, test=0)
    assert set(data.sampled(weights).arrays) == {"inputs", "targets"}
    weighted = an.data.from_arrays(
        rng.normal(size=(40, 2)), labels, weights=weights, num_classes=2, validation=0, test=0
    )
    assert weighted.tickets is None and np.array_equal(
        np.sort(weighted.arrays["weights"]), np.sort(np.float32(weights))
    )
    rows = drawn(weighted.sampled("weights"), 3)
    assert len(set(rows.tolist())) < 40


@pytest.mark.slow
def test_example_weights_count_the_same_streamed_and_grouped():
    rng = np.random.default_rng(0)
    labels, groups = np.arange(80) % 2, np.arange(80) // 4
    data = an.data.from_arrays(
        rng.normal(size=(80, 2)), labels, weights=rng.random(80), num_classes=2, groups=groups, test=0.2
    )
    on_device, streamed = (an.fit(experiment_of(data, on_device=one), progress=False) for one in (True, False))
    chex.assert_trees_all_equal(params_of(on_device), params_of(streamed))
    plain = an.data.from_arrays(data.arrays["inputs"], data.arrays["targets"], num_classes=2, groups=groups, test=0.2)
    assert on_device.metrics["train"] != an.fit(experiment_of(plain), progress=False).metrics["train"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(300), "expected one value for each of the 400 rows that data 'arrays' was made of"),
        (-np.ones(400), "sampling weights go down to -1.0, expected numbers of at least 0"),
        (np.zeros(400), "the sampling weights of all training rows are 0: nothing would be drawn"),
        (np.full(400, np.nan), "sampling weights is nan in row 0"),
        (np.array(["a"] * 400), "expected numbers of at least 0"),
        ("balance", "weights to sample by is 'balance', which is no array or column"),
        (3, "weights to sample by is 3, expected one value for each"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, message):
    with pytest.raises(an.UserError, match=re.escape(message)):
        imbalanced().sampled(weights)


def test_numbers_cannot_be_balanced():
    data = an.data.from_arrays(np.zeros((20, 1)), np.arange(20) / 7)
    with pytest.raises(an.UserError, match="values that are no classes"):
        data.sampled("balanced")
    with pytest.raises(an.UserError, match="sampling is 'often', expected 'balanced' or an array"):
        an.data.Data("toy", {"inputs": np.zeros(3), "targets": np.zeros(3)}, {"train": range(3)}, sampling="often")
