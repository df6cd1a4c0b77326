"""What is to be typed next, after a comparison."""

import shlex
import sys
from pathlib import Path

import pytest

from accelnet.cli.compare import CompareOptions, _answer, _next
from accelnet.cli.script import Script
from tests.cli.conftest import Config, small

MEAN = {"mean": 0.25, "low": 0.2, "high": 0.3}


def values(*names, winner):
    candidates = [
        {"name": name, "learning_rate": 0.01, "final": MEAN, "steps_to_target": {"median": steps}}
        for name, steps in zip(names, (None, 1200.0), strict=False)
    ]
    told = {"first": names[0], "second": names[1], "difference": 0.1, "low": -0.1, "high": 0.3, "corrected": 0.5}
    return {
        "split": "validation", "metric": "loss", "seeds": 12, "target": 0.5, "winner": winner,
        "words": f"{winner} has the best mean: no difference shown", "candidates": candidates,
        "comparisons": [{**told, "words": "no difference shown"}], "test": {"accuracy": MEAN},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("winner", "options", "expected"),
    [
        ("width=8 widths=2,3", CompareOptions(set=("width=8 widths=2,3",)),
         ["run.py", "train", "--learning-rate", "0.01", "--width", "8", "--widths", "2", "3", "--steps", "9"]),
        ("as it is", CompareOptions(set=("width=8",)), ["run.py", "train", "--learning-rate", "0.01", "--steps", "9"]),
        ("b", CompareOptions(variants=(Path("x/b.py"),)), ["x/b.py", "train", "--learning-rate", "0.01"]),
    ],
)  # fmt: skip
def test_the_winner_is_a_command(winner, options, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    then = _next(Script(small), Config(steps=9), options, values(winner, "other", winner=winner))
    _, *words, flag, _ = shlex.split(then)
    assert (words, flag) == (expected, "--workdir")


def test_an_optimizer_is_named_with_what_to_write(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    then = _next(Script(small), Config(), CompareOptions(optimizers="sgd,adam"), values("sgd", "adam", winner="adam"))
    assert then.startswith("optimizer=an.optim.adam(...) in run.py, then ") and "--learning-rate 0.01" in then


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_an_answer_has_the_recommendation_first_and_fits(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = _answer(values("sgd", "adam", winner="adam")).splitlines()
    assert lines[0] == "adam has the best mean: no difference shown." and max(map(len, lines)) <= columns
    (best,) = (line for line in lines if line.startswith("→"))
    assert best.split()[1] == "adam" and ("1,200" in best) == (columns > 60)
