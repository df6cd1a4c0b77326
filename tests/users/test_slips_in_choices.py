"""Slips in what is asked of trained runs, of populations, and of tune, compare, find_batch and plan."""

from functools import cache

import numpy as np
import pytest

import accelnet as an
from accelnet.choosing.candidates import Contender, optimizer_candidates
from accelnet.choosing.compare import compare
from accelnet.choosing.find_batch import find_batch
from accelnet.choosing.runs import compare_runs
from accelnet.choosing.tune import tune
from accelnet.populations.members import Member, grid
from accelnet.populations.population import Population
from tests.cli.conftest import Config, small
from tests.users import toy
from tests.users.slips import (
    CSV,
    FLAG,
    FOLDER,
    FUNC,
    FUNCTION,
    NAMES,
    NAN,
    NUMBER,
    ONE_LINE,
    PATH,
    TEXT,
    THING,
    WHOLE,
    check,
    without,
)

pytestmark = pytest.mark.usefixtures("no_pictures")

CONFIG = Config()


def tuned(**k):
    return tune(small, Config(steps=40), {"learning_rate": None}, **{"progress": False, **k})


CANDIDATES = [Contender("a", small, CONFIG), Contender("b", small, Config(width=8))]


def compared(**k):
    return compare(CANDIDATES, **{"progress": False, **k})


def population(**k):
    return Population(
        **{"function": small, "config": CONFIG, "members": grid(range(2), learning_rate=(0.1, 0.2)), **k}
    ).train(progress=False)


def trained_population(**k):
    return Population(small, CONFIG, grid(range(2))).train(**{"progress": False, **k})


@cache
def trained():
    return an.fit(small(CONFIG), progress=False)


@cache
def trained_on_tokens():
    return an.fit(
        toy.experiment(
            lambda rngs: an.models.RNN(3, 4, 12, num_symbols=12, output="steps", rngs=rngs),
            toy.TOKEN_DATA,
            an.objectives.token_cross_entropy(),
            steps=1,
        ),
        progress=False,
    )


def planned(**k):
    return an.plan(small(CONFIG), **{"targets": "cpu", "compile": False, "progress": False, **k})


ROWS = [
    ("function", lambda v: tune(v, CONFIG, {"learning_rate": None}, progress=False), [None, 3, "a", THING, []]),
    (
        ONE_LINE,
        lambda v: tune(small, v, {"learning_rate": None}, progress=False),
        [None, 3, "a", THING, [], Config, {}],
    ),
    (
        ONE_LINE,
        lambda v: tune(small, CONFIG, v, progress=False),
        [
            None,
            3,
            "a",
            THING,
            {},
            {"nope": None},
            {3: None},
            {"learning_rate": 3},
            {"learning_rate": (1,)},
            {"learning_rate": ("a", "b")},
            {"learning_rate": (1, 1)},
            {"learning_rate": (0, 1)},
            {"learning_rate": (NAN, 1)},
            {"learning_rate": (2, 1)},
            {"learning_rate": (None, 1)},
            {"width": None},
            ["learning_rate"],
            {"dropout": None},
            {"steps": (1, 2)},
        ],
    ),
    ("points", lambda v: tuned(points=v), [*without(WHOLE, None), 0, 1]),
    ("seed", lambda v: tuned(num_seeds=v), [*WHOLE, 0, 1]),
    ("budget", lambda v: tuned(budget=v), [*without(NUMBER, None), 0, 1, -1]),
    ("metric", lambda v: tuned(metric=v), [*TEXT, "nope"]),
    ("workdir", lambda v: tuned(workdir=v), PATH),
    ("progress", lambda v: tuned(progress=v), FLAG),
    (
        "devices",
        lambda v: tune(small, Config(steps=40), {"learning_rate": None}, progress=False, devices=v),
        [3, "a", THING, [3], []],
    ),
    (
        "candidate",
        lambda v: compare(v, progress=False),
        [None, 3, "a", THING, [], [3], [CANDIDATES[0]], [CANDIDATES[0], CANDIDATES[0]], {}],
    ),
    ("seeds", lambda v: compared(seeds=v), [*without(WHOLE, None), 0, 2]),
    ("metric", lambda v: compared(metric=v), [3, 1.5, b"a", "", THING, [], {}, int, "nope"]),
    ("target", lambda v: compared(target=v), without(NUMBER, None)),
    ("rate", lambda v: compared(rates=v), [None, 3, "a", THING, [], [0], ["a"], [NAN], [-1], [None], {}]),
    ("tuning_seeds", lambda v: compared(tuning_seeds=v), [*WHOLE, 0]),
    ("alpha", lambda v: compared(alpha=v), [*NUMBER, 0, 1, -1]),
    ("workdir", lambda v: compared(workdir=v), PATH),
    ("progress", lambda v: compared(progress=v), FLAG),
    ("candidate", lambda v: Contender(v, small, CONFIG), TEXT),
    ("function", lambda v: Contender("a", v, CONFIG), FUNC),
    (ONE_LINE, lambda v: optimizer_candidates(small, CONFIG, v), ["a", 3, None, ["nope"], [3], THING]),
    (ONE_LINE, lambda v: find_batch(v, progress=False), [None, 3, small, THING]),
    ("points", lambda v: find_batch(small(CONFIG), points=v, progress=False), [*WHOLE, 0]),
    ("workdir", lambda v: find_batch(small(CONFIG), workdir=v, progress=False), PATH),
    ("progress", lambda v: find_batch(small(CONFIG), progress=v), FLAG),
    ("run", compare_runs, [None, 3, "a", THING, [], [3], [""], [FOLDER / "none"], [None]]),
    ("function", lambda v: population(function=v), [None, 3, "a", THING]),
    ("config", lambda v: population(config=v), [None, 3, "a", THING, Config]),
    (
        ONE_LINE,
        lambda v: population(members=v),
        [
            None,
            3,
            "a",
            THING,
            [],
            [3],
            [Member(-1)],
            [Member(1.5)],
            [Member("a")],
            [Member(0, {"nope": 1})],
            [Member(0, {"learning_rate": 1}), Member(0)],
            [Member(0, {"learning_rate": "a"})],
            [Member(0, {"width": 4}), Member(1, {"width": 8})],
            [Member(0, {"steps": 4}), Member(1, {"steps": 8})],
            [Member(0, 3)],
        ],
    ),
    ("batches", lambda v: population(batches=v), [*TEXT, "x"]),
    ("evaluations", lambda v: population(evaluations=v), [*WHOLE, 0]),
    ("split", lambda v: population(split=v), [3, "", THING, [], "nope"]),
    ("splits", lambda v: population(splits=v), [*NAMES, None, ["nope"]]),
    ("workdir", lambda v: trained_population(workdir=v), PATH),
    ("devices", lambda v: trained_population(devices=v), [3, "a", THING, [3], []]),
    ("memory_bytes", lambda v: trained_population(memory_bytes=v), [*without(WHOLE, None), 0]),
    ("events", lambda v: trained_population(events=v), [None, 3, THING, print, [print]]),
    ("progress", lambda v: trained_population(progress=v), FLAG),
    ("grid", grid, [None, 3, "ab", THING]),
    ("grid", lambda v: grid(range(2), learning_rate=v), [None, 3, "ab", THING]),
    ("run", an.assess, [None, 3, "a", THING, an.Experiment, small(CONFIG)]),
    ("split", lambda v: an.assess(trained(), v), [*TEXT, "nope"]),
    ("slices", lambda v: an.assess(trained(), slices=v), [None, *NAMES]),
    ("no label", lambda v: an.assess(trained(), slices=v), [["nope"]]),
    ("latency", lambda v: an.assess(trained(), latency=v), FLAG),
    ("weighted", lambda v: an.assess(trained(), weighted=v), FLAG),
    ("say", lambda v: an.assess(trained(), say=v), [None, 3, "a", THING]),
    (
        "inputs",
        lambda v: trained().predict(v),
        [
            None,
            "abc",
            [],
            THING,
            {},
            int,
            FUNCTION,
            3,
            [[1, 2]],
            [["a", "b", "c"]],
            np.zeros((0, 3)),
            np.zeros((2, 4)),
            np.zeros(3),
            [[1, 2, NAN]],
            [[1, 2], [3]],
            {"inputs": np.zeros((2, 3))},
            np.zeros((2, 3, 1)),
            [[1, 2, 3j]],
            np.array([[None] * 3]),
        ],
    ),
    ("key", lambda v: trained().predict(np.zeros((1, 3)), key=v), [3, "a", THING, np.zeros(3), []]),
    (
        "inputs",
        lambda v: trained_on_tokens().predict(v),
        [np.full((2, 8), 0.5), [["a"] * 8], "abc", np.zeros((2, 7), int)],
    ),
    (
        "experiment",
        lambda v: an.plan(v, "cpu", compile=False, progress=False),
        [None, 3, "a", THING, small, an.Experiment],
    ),
    (
        ONE_LINE,
        lambda v: planned(targets=v),
        [3, "", THING, [], [3], "nope", "v5e:3x3", ",", {}, int, ["nope"], [None]],
    ),
    ("mesh", lambda v: planned(mesh=v), [3, "", "x", "data=0", THING, [], "data=a"]),
    ("budget_usd", lambda v: planned(budget_usd=v), [*without(NUMBER, None), 0, -1]),
    ("deadline_hours", lambda v: planned(deadline_hours=v), [*without(NUMBER, None), 0, -1]),
    ("workdir", lambda v: planned(workdir=v), PATH),
    ("compile_seconds", lambda v: planned(compile_seconds=v), [*NUMBER, 0, -1]),
    *[(k, lambda v, k=k: planned(**{k: v}), FLAG) for k in ("compile", "measure", "remedies", "progress")],
    (ONE_LINE, lambda v: planned(targets_file=v), [3, THING, [], "/nope.toml", FOLDER, CSV]),
]


@pytest.mark.parametrize(
    ("words", "make", "values"), ROWS, ids=[f"{words}-{index}" for index, (words, *_) in enumerate(ROWS)]
)
def test_a_slip_is_one_line(words, make, values):
    check(words, make, values)
