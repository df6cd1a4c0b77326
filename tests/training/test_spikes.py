"""A spike of the loss stands out of what was before it, is marked once in words and always in the rows."""

import numpy as np
import pytest

import accelnet as an
from accelnet.training.curves import curves
from accelnet.training.spikes import Spikes, spike_of


def test_noise_and_decay_are_no_spikes_and_a_jump_is():
    rng = np.random.default_rng(0)
    losses = (2 * np.exp(-np.arange(400) / 100) + 0.5) * np.exp(0.1 * rng.normal(size=400))
    found = [step for step in range(400) if spike_of(losses[:step], losses[step]) is not None]
    assert found == []
    losses[[150, 151, 300]] *= [5, 4, 3]
    found = [step for step in range(400) if spike_of(losses[:step], losses[step]) is not None]
    assert found == [150, 151, 300]


@pytest.mark.parametrize("before", [[1.0] * 7, [0.0] * 20, [1.0, 5.0] * 9])
def test_too_little_and_what_always_jumps_say_nothing(before):
    assert spike_of(before, 6.0) is None


def test_a_spike_is_said_once_and_marked_in_rows_and_curves():
    said, rows = [], []
    spikes = Spikes(said.append)
    for step in range(60):
        loss = 9.0 if step in (30, 50) else 1.0 + step % 3 / 10
        rows.append(spikes.marked(rows, {"step": step, "split": "train", "loss": loss}))
        rows.append({"step": step, "split": "validation", "loss": 50.0})
    assert [row["step"] for row in rows if "spike" in row] == [30, 50]
    assert len(said) == 1 and "jumped to 9 at step 30, 8.2 times its running median" in said[0]
    figure = curves(rows)
    assert [axes.get_title() for axes in figure.axes] == ["Loss"]
    assert "spike at step 30 and 1 more" in {text.get_text() for text in figure.axes[0].get_legend().get_texts()}


def test_a_run_marks_the_step_at_which_its_labels_were_wrong(tmp_path, capsys):
    def loss(outputs, batch, step):
        return (outputs[:, 0] - batch["targets"]) ** 2 + 90.0 * (step == 40)

    data = an.data.Data(
        "toy", {"inputs": np.ones((16, 2), np.float32), "targets": np.ones(16, np.float32)}, {"train": range(16)}
    )
    experiment = an.Experiment(
        data=data,
        model=lambda rngs: an.models.MLP(2, (2,), 1, rngs=rngs),
        optimizer=an.optim.sgd(1e-4),
        objective=loss,
        batch_size=8,
        steps=60,
        log_every=an.Every(steps=1),
    )
    run = an.fit(experiment, workdir=tmp_path / "run")
    assert [row["step"] for row in run.rows if "spike" in row] == [41]
    assert capsys.readouterr().err.count("the loss jumped to") == 1
