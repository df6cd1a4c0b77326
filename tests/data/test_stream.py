"""Batches of other loaders and generators."""

import dataclasses
import time

import jax
import numpy as np
import pytest

import accelnet as an
from accelnet.data.ahead import Ahead
from accelnet.errors import UserCodeError, UserError
from accelnet.populations.members import grid
from accelnet.populations.population import Population
from tests.data.conftest import die_at, params, same
from tests.data.conftest import experiment as experiment_of

pytestmark = pytest.mark.usefixtures("no_pictures")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(80, 3)).astype(np.float32), np.arange(80) % 3


def batches(epoch=0, size=8):
    order = np.random.default_rng(epoch).permutation(80)
    for start in range(0, 80, size):
        rows = order[start : start + size]
        yield X[rows], Y[rows]


def from_step(epoch, step):
    for index, batch in enumerate(batches(epoch)):
        if index >= step:
            yield batch


def stream(make=batches, **settings):
    settings = {"steps": 10, "validation": (X[:20], Y[:20]), "num_classes": 3, **settings}
    return an.data.from_batches(make, **settings)


def experiment(data, **settings):
    return experiment_of(data, **{"epochs": 3, **settings})


def test_the_model_is_trained_on_the_batches_in_their_order():
    """Gradient descent by hand on the same batches gives the same weights."""
    run = an.fit(experiment(stream(), optimizer=an.optim.sgd(0.1), epochs=2))
    pure = run.experiment.pure_model
    init = an.fit(experiment(stream(), optimizer=an.optim.sgd(0.0), epochs=2)).params

    def loss(weights, x, y):
        outputs, _ = pure.apply(weights, {}, x, key=jax.random.key(0), train=True)
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1).mean()

    weights = init
    for epoch in range(2):
        for x, y in batches(epoch):
            gradient = jax.grad(loss)(weights, x, y)
            weights = jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient)
    for ours, hand in zip(params(run), jax.device_get(jax.tree.leaves(weights)), strict=True):
        np.testing.assert_allclose(ours, hand, rtol=2e-5, atol=1e-6)


def test_the_splits_that_are_held_out_are_evaluated_and_the_stream_is_not():
    run = an.fit(experiment(stream(test=(X[20:50], Y[20:50]))))
    assert set(run.metrics["validation"]) == {"loss", "accuracy"} and run.metrics["test"]
    assert not run.metrics.get("train")
    with pytest.raises(UserError, match="final_evaluation has 'train', which of a stream"):
        experiment(stream(), final_evaluation=["train"])
    with pytest.raises(UserError, match="can be trained on, but not evaluated"):
        stream().take(np.array([70]))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "step"), [(batches, 1), (from_step, 10), (batches, 17), (from_step, 17)])
def test_a_run_that_died_goes_on_to_the_same_bits(make, step, tmp_path, capsys):
    settings = {"save_every": an.Every(steps=1)}
    whole = an.fit(experiment(stream(make), **settings))
    with pytest.raises(RuntimeError, match="died"):
        an.fit(experiment(stream(make), **settings), workdir=tmp_path, events=[die_at(step)])
    again = an.fit(experiment(stream(make), **settings), workdir=tmp_path, resume=True)
    assert same(whole, again) and again.metrics == whole.metrics
    read_again = "batches are read again to get to step 17" in capsys.readouterr().err
    assert read_again == (make is batches and step == 17)


@pytest.mark.slow
def test_chunks_microbatches_and_devices_see_the_same_batches():
    plain = an.fit(experiment(stream()))
    one_step = an.fit(experiment(stream()), events=[an.Event(an.Every(steps=1), lambda moment: None)])
    assert same(plain, one_step)
    for other in (
        an.fit(experiment(stream(), microbatch_size=3)),
        an.fit(experiment(stream()), mesh="data=8"),
    ):
        for a, b in zip(params(plain), params(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_batches_may_be_dicts_and_an_object_that_is_read_again_and_again():
    class Loader:
        def __init__(self):
            self.passes = 0

        def __len__(self):
            return 10

        def __iter__(self):
            self.passes += 1
            return ({"x": x.astype(np.float64), "y": y, "w": np.ones(8)} for x, y in batches())

    loader = Loader()
    data = an.data.from_batches(loader, inputs="x", targets="y", weights="w", num_classes=3)
    assert data.num_examples() == 80 and data.arrays["inputs"].dtype == np.float32
    passes = loader.passes
    an.fit(experiment(data))
    assert loader.passes - passes == 3


def test_a_stream_may_give_names_of_classes_for_its_outputs():
    assert stream(num_classes=None, class_names=["a", "b", "c"]).decode(np.array([2])).tolist() == ["c"]


def changed(at, change):
    def make(epoch):
        for index, batch in enumerate(batches(epoch)):
            yield change(*batch) if index == at else batch

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (changed(4, lambda x, y: (x[:, :2], y)), r"batch 4 of stream 'stream': inputs are float32 \[8, 2\], those of"),
        (changed(4, lambda x, y: (x[:5], y[:5])), r"leave out a smaller last batch \(drop_last"),
        (changed(4, lambda x, y: (x, y + 0.5)), r"batch 4 .*targets are float32 \[8\], those of the first batch int32"),
        (changed(4, lambda x, y: (x, y[:3])), r"batch 4 of stream 'stream' has unequal numbers of rows"),
        (changed(4, lambda x, y: (x * np.nan, y)), r"inputs of batch 4 of stream 'stream' is NaN or infinite"),
        (
            changed(4, lambda x, y: (x, y + 5)),
            r"targets of batch 4 of stream 'stream' is no label from 0 to 2",
        ),
        (changed(4, lambda x, y: x), r"batch 4 of stream 'stream' is an array of float32 \[8, 3\], and"),
        (lambda: list(batches())[:4], r"ended after 4 of 10 batches: give steps=4"),
    ],
)
def test_a_bad_batch_ends_training_with_one_message(make, message):
    with pytest.raises(UserError, match=message):
        an.fit(experiment(stream(make)))


def test_an_exception_of_the_stream_keeps_the_frames_of_the_user():
    def make():
        yield next(batches())
        yield 1 / len([])

    with pytest.raises(UserCodeError, match=r"stream 'stream' failed(.|\n)*yield 1 / len\(\[\]\)"):
        an.fit(experiment(stream(make)))


def test_a_stream_that_does_not_answer_ends_with_the_timeout():
    def make():
        yield from list(batches())[:2]
        time.sleep(30)

    start = time.monotonic()
    with pytest.raises(UserError, match=r"gave no batch for 0\.3 s"):
        an.fit(experiment(stream(make, timeout_seconds=0.3)))
    assert time.monotonic() - start < 25


def test_a_stream_may_fill_the_same_arrays_with_every_batch():
    def one_buffer(epoch):
        x, y = np.empty((8, 3), np.float32), np.empty(8, np.int32)
        for inputs, targets in batches(epoch):
            x[:], y[:] = inputs, targets
            yield x, y
            x[:], y[:] = 100.0, 2

    assert same(an.fit(experiment(stream(one_buffer))), an.fit(experiment(stream())))
    data = stream(one_buffer)
    first, _ = next(batches())
    assert np.array_equal(data.take(np.arange(8))["inputs"], first)


def test_no_more_batches_wait_than_were_allowed():
    given = []

    def items():
        for index in range(100):
            given.append(index)
            yield index

    ahead = Ahead(items(), "it", size=3, timeout_seconds=10, of=lambda number, item: item)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(given) <= 6
    ahead.close()


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (batches, {"steps": None}, "steps is missing"),
        (iter([1]), {}, "an iterator, which can be read once: give the function that makes it"),
        (7, {}, "expected a function that returns an iterator"),
        (lambda: 7, {}, "the function gave 7, expected an iterator of batches"),
        (list, {}, "has no batches"),
        (lambda shuffle: batches(), {}, "asks for shuffle, which it cannot have"),
        (batches, {"validation": 0.1}, "validation is 0.1, expected"),
        (batches, {"validation": (X[:, :2], Y)}, "validation: inputs: train and held-out arrays differ"),
        (batches, {"inputs": "x"}, "inputs is to be its field 'x'"),
        (batches, {"timeout_seconds": 0}, "timeout_seconds"),
        (batches, {"class_names": ["a"], "num_classes": 2}, "num_classes is 2, but"),
        (
            lambda: ((x, y > 0) for x, y in batches()),
            {"validation": None},
            "targets are bool, expected integers for num_classes=3",
        ),
    ],
)
def test_what_is_no_stream_is_refused_with_advice(make, settings, message):
    with pytest.raises(UserError, match=message):
        stream(make, **settings)


def test_another_batch_size_than_the_streams_is_refused():
    with pytest.raises(UserError, match="batch_size is 16, expected 8, the size of the batches that stream 'stream'"):
        experiment(stream(), batch_size=16)


def test_a_population_says_that_it_cannot_train_on_a_stream():
    @dataclasses.dataclass(frozen=True)
    class Config:
        seed: int = 0

    population = Population(lambda config: experiment(stream(), seed=config.seed), Config(), grid((0, 1)))
    with pytest.raises(UserError, match="a population trains on a copy that lies on the device: train its members one"):
        population.train(progress=False)
