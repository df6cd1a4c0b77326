"""The verb `compress`: a smaller network that the other verbs take, and mistakes with what can be done."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

import accelnet as an


@dataclass(frozen=True)
class Config:
    learning_rate: float = 2e-2
    widths: tuple[int, ...] = (32,)
    epochs: float = 4


def script(config: Config) -> an.Experiment:
    x = np.random.default_rng(0).normal(size=(900, 4)).astype(np.float32)
    return an.Experiment(
        data=an.data.from_arrays(x, (x[:, 0] * x[:, 1] > 0).astype(int), num_classes=2, validation=0.4, test=0.1),
        model=lambda rngs: an.models.MLP(4, config.widths, 2, rngs=rngs),
        optimizer=an.optim.adam(config.learning_rate, schedule=an.optim.schedules.cosine()),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=50,
        epochs=config.epochs,
    )


@pytest.mark.slow  # it goes through six verbs
def test_what_compress_makes_is_evaluated_predicts_and_is_trained_on(command, tmp_path, no_pictures):
    run, small = tmp_path / "run", tmp_path / "run-small"
    assert command(script, "train", "--workdir", str(run), "--quiet").code == 0
    done = command(
        script, "compress", "--workdir", str(run), "--max-drop", "8%", "--methods", "bits", "--budget", "0", "--json",
        "--targets", "h100",
    )  # fmt: skip
    assert done.code == 0, done.err
    values = json.loads(done.out.splitlines()[-1])
    assert values == json.loads((small / "compress" / "compress.json").read_text())
    assert values["recommended"] in ("bfloat16", "int8", "int4") and values["recommended"] in done.out
    assert f"evaluate --workdir {small}" in done.out
    int8 = next(one for one in values["candidates"] if one["name"] == "int8")
    # A layer keeps its floats where 8 bits are slower, as they may be in so small a network.
    bits = int8["compression"]["bits"]
    assert set(bits.values()) <= {8} and (bits or any("kept their floats" in note for note in values["notes"])), values
    assert int8["targets"][0]["name"] == "h100"
    assert values["sensitivity"][0]["layers"][0]["name"] == "head"

    evaluated = command(script, "evaluate", "--workdir", str(small), "--json", "--quiet")
    assert evaluated.code == 0, evaluated.err
    found = json.loads(evaluated.out.splitlines()[-1])["metrics"]
    assert found["test"]["accuracy"] == pytest.approx(values["test"]["value"], abs=1e-6)
    np.save(tmp_path / "new.npy", np.zeros((3, 4), np.float32))
    predicted = command(
        script, "predict", "--workdir", str(small), str(tmp_path / "new.npy"), "-o", str(tmp_path / "p.csv")
    )
    assert predicted.code == 0 and "3 predictions" in predicted.out, predicted.err
    again = command(script, "train", "--resume", "--workdir", str(small), "--quiet", "--json")
    assert again.code == 0 and json.loads(again.out.splitlines()[-1])["metrics"] == found, again.err

    unreachable = command(
        script, "compress", "--workdir", str(run), "--latency", "1ns", "--methods", "bits", "--budget", "0",
        "--out", str(tmp_path / "fast"),
    )  # fmt: skip
    assert unreachable.code == 2 and "No network answers within" in unreachable.err and "int4" in unreachable.out
    assert (tmp_path / "fast" / "compress" / "report.html").exists() and not (
        tmp_path / "fast" / "config.json"
    ).exists()


def test_mistakes_are_told_before_anything_is_done(command, tmp_path):
    run = str(tmp_path / "run")
    for flags, told in {
        ("--max-drop", "much"): "--max-drop is 'much', expected a share above 0, such as 0.5% or 0.005",
        ("--max-drop", "150%"): "--max-drop is '150%'",
        ("--latency", "5 minutes"): "--latency is '5 minutes', expected a time above 0, such as 0.05ms",
        (): "holds no run",
    }.items():
        done = command(script, "compress", "--workdir", run, *flags)
        assert done.code == 2 and told in done.err and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())
