"""The line about time that training waited for data."""

import time

import numpy as np
import pytest

import accelnet as an
from accelnet.training.waiting import waited_for_data

X, Y = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2


def stored(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return an.data.from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), Y)


KINDS = {
    "in memory": (lambda folder: an.data.from_arrays(X, Y), "on_device=True keeps all of 'arrays'"),
    "stored": (stored, "copy 'arrays' to a faster disk"),
    "source": (lambda folder: an.data.from_source(list(zip(X, Y, strict=True))), "in processes (workers=)"),
    "stream": (lambda folder: an.data.from_batches([(X[:8], Y[:8])] * 5), "the stream is slower than the model"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_how_long_and_what_helps(kind, tmp_path):
    make, advice = KINDS[kind]
    line = waited_for_data(make(tmp_path), input_seconds=10.0, train_seconds=30.0)
    assert line is not None
    assert line.startswith("training waited 10 s for data, 25 % of its time: ")
    assert advice in line


@pytest.mark.parametrize(("waited", "trained"), [(1.0, 1.0), (10.0, 1000.0)])
def test_it_is_silent_about_what_nobody_would_mend(waited, trained):
    assert waited_for_data(an.data.xor(), input_seconds=waited, train_seconds=trained) is None


def test_a_run_that_waited_for_a_slow_source_says_so_and_records_it(capsys, monkeypatch):
    monkeypatch.setattr("accelnet.training.waiting._LEAST_SECONDS", 0.2)

    class Slow:
        def __len__(self):
            return 40

        def __getitem__(self, row):
            time.sleep(0.005)
            return X[row], int(Y[row])

    run = an.fit(
        an.Experiment(
            data=an.data.from_source(Slow(), validation=0, test=0, num_classes=2),
            model=lambda rngs: an.models.MLP(3, (4,), 2, rngs=rngs),
            optimizer=an.optim.sgd(0.1),
            objective=an.objectives.softmax_cross_entropy(),
            batch_size=10,
            epochs=4,
        )
    )
    assert run.result["timing"]["input_seconds"] > 0.2
    assert "for data" in capsys.readouterr().err
