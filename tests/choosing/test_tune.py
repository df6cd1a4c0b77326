"""Tuning, on quadratics of known curvature: theory gives the edge of stability and the loss at every rate."""

import dataclasses
import json
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import accelnet as an
from accelnet.choosing.search import below, leader
from accelnet.choosing.search import search as search_in
from accelnet.choosing.stage import Stage
from accelnet.choosing.tune import tune
from accelnet.choosing.tune_page import curve
from accelnet.objectives import Objective
from accelnet.populations.members import Member
from tests.pages import needs_browser, needs_nothing, shows

CURVATURE = np.array([10.0, 1.0])
BATCH, ROWS, NOISE = 4, 400, 1.0
START = 3.0
POINTS = np.random.default_rng(0).normal(scale=NOISE, size=(ROWS, 2)).astype(np.float32)


@dataclass(frozen=True)
class Config:
    learning_rate: float = 0.01
    momentum: float = 0.0
    steps: int = 320
    rows: int = ROWS
    seed: int = 0


class Point(nnx.Module):
    """A point in the plane, the same for every example."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.at = nnx.Param(jnp.full((2,), START))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return inputs - self.at.get_value()[None]


def experiment(config: Config) -> an.Experiment:
    def loss(outputs, batch):
        losses = 0.5 * jnp.sum(jnp.asarray(CURVATURE, jnp.float32)[None] * outputs**2, axis=-1)
        return losses, an.objectives.example_weights(batch, losses.shape)

    return an.Experiment(
        data=an.data.from_arrays(POINTS, np.zeros(ROWS, np.float32), normalize=False),
        model=Point,
        optimizer=an.optim.momentum(config.learning_rate, momentum=config.momentum),
        objective=Objective(loss),
        batch_size=BATCH,
        steps=config.steps,
        seed=config.seed,
    )


def expected_excess(rate: float, steps: int) -> float:
    """Return E[sum h (w - m)^2 / 2] after SGD from START, with w' = w - rate h (w - mean of a batch)."""
    bias = (1 - rate * CURVATURE) ** (2 * steps) * START**2
    kept = (1 - rate * CURVATURE) ** 2
    noise = (rate * CURVATURE) ** 2 * NOISE**2 / BATCH * (1 - kept**steps) / (1 - kept)
    return float(0.5 * np.sum(CURVATURE * (bias + noise)))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    return tune(experiment, Config(), {"learning_rate": (1e-4, 3.0)}, workdir=folder, progress=False), folder


def test_the_edge_is_that_of_stability(tuned):
    spacing = (3.0 / 1e-4) ** (1 / 15)
    edge = 2 / CURVATURE.max()
    assert edge / spacing < tuned[0].edge["learning_rate"] < edge * spacing


def test_the_recommended_rate_is_as_good_as_the_best_by_theory(tuned):
    tuning, _ = tuned
    rates = [setting["learning_rate"] for setting in tuning.stages[0].settings]
    # What no rate can remove, the scatter of the validation examples, is part of every loss.
    floor = 0.5 * CURVATURE.sum() * NOISE**2
    excess = {rate: expected_excess(rate, 320) + floor for rate in rates if rate < 2 / CURVATURE.max()}
    chosen = tuning.recommended["learning_rate"]
    assert excess[chosen] < 1.02 * min(excess.values())
    low, high = tuning.basin["learning_rate"]
    assert low <= chosen <= high < tuning.edge["learning_rate"]


def test_a_fifth_of_the_grid_is_trained_each_population_as_one_program(tuned):
    tuning, _ = tuned
    assert tuning.cost <= 16 * 4 / 5
    assert all(run.compiles["train"] == 1 for stage in tuning.stages for run in stage.runs)
    assert [stage.steps for stage in tuning.stages] == [16, 320] and tuning.full.num_members == 10
    first, *others = tuning.table().splitlines()[1:]
    assert first.split()[:2] == ["→", f"{tuning.recommended['learning_rate']:.3g}"]
    assert len(others) + 1 == len(tuning.full.leading()) and not any("→" in line for line in others)


def test_results_are_kept_and_not_trained_again(tuned, monkeypatch):
    tuning, folder = tuned
    kept = json.loads((folder / "tune.json").read_text())
    assert kept["recommended"] == tuning.recommended and kept["basin"] == list(tuning.basin["learning_rate"])
    assert kept["edge"] == tuning.edge["learning_rate"] and kept["members"] == 48 + 10
    assert (folder / "tune.png").stat().st_size > 10_000
    html = (folder / "report.html").read_text()
    assert tuning.reason.split(". ")[0] in html and "<script" not in html
    assert tuning.reason.split(". ")[0] in tuning._repr_html_() and "<body" not in tuning._repr_html_()
    monkeypatch.setattr("accelnet.populations.population.make_programs", lambda *_: pytest.fail("it was finished"))
    again = tune(experiment, Config(), {"learning_rate": (1e-4, 3.0)}, workdir=folder, progress=False)
    assert again.recommended == tuning.recommended and again.basin == tuning.basin
    with pytest.raises(an.UserError, match="another population"):
        tune(experiment, Config(seed=1), {"learning_rate": (1e-4, 3.0)}, workdir=folder, progress=False)


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_the_page(tuned, browser, tmp_path):
    text = (tuned[1] / "report.html").read_text()
    needs_nothing(text)
    shows(browser, text, tmp_path)


def test_where_all_diverge_the_range_that_did_not_is_given():
    with pytest.raises(
        an.UserError, match=r"all members diverged, for learning_rate from 1 to 100.*did not for"
    ) as said:
        tune(experiment, Config(), {"learning_rate": (1.0, 100.0)}, points=4, num_seeds=2, progress=False)
    low, high = (float(word) for word in str(said.value).split("learning_rate from ")[2].split(":")[0].split(" to "))
    assert low == pytest.approx(1e-6) and high == pytest.approx(1e-4, rel=0.01)


@pytest.mark.parametrize(
    ("ranges", "settings", "words"),
    [
        ({"learning_rate": (0.1, 0.01)}, {}, "learning_rate is 0.1 to 0.01, expected two numbers above 0"),
        ({"learning_rate": (-1.0, 1.0)}, {}, "the axis is logarithmic"),
        ({"momentum": None}, {}, "momentum is 0, which suggests no range"),
        ({"learning_rate": (0.01, 0.1)}, {"num_seeds": 1}, "needs at least 2"),
        ({"rows": (4, 8)}, {}, "rows is a whole number, and tune tries numbers such as"),
        ({"rate": None}, {}, "rate is no field that can vary"),
        ({"learning_rate": None}, {"points": 1}, "points is 1"),
        ({"learning_rate": None}, {"budget": 1.5}, "expected a share of the training"),
        ({"learning_rate": None}, {"budget": 1e-3}, "too few for any statement"),
        ({"learning_rate": None}, {"metric": "f1"}, "there is no metric 'f1', only: loss"),
        ({}, {}, "0 fields are to be tuned"),
    ],
)
def test_a_mistake_is_one_message(ranges, settings, words):
    with pytest.raises(an.UserError, match=words):
        tune(experiment, Config(), ranges, progress=False, **settings)


@pytest.mark.parametrize(("lower", "best"), [(True, 0), (False, 1)])
def test_the_metric_says_which_setting_leads_and_nan_never_does(lower, best):
    losses = (np.array([1.0, 1.1]), np.array([2.0, 2.1]), np.array([np.nan, 3.0]))
    settings = ({"rate": 0.1}, {"rate": 0.2}, {"rate": 0.3})
    stage = Stage(1.0, "wer", lower, settings, losses, losses, (SimpleNamespace(steps=np.array([0, 2])),))
    assert stage.leading() == [best, 1 - best] and stage.contest.best == best


@pytest.mark.slow
def test_a_budget_in_which_nothing_is_learned_is_refused():
    with pytest.raises(an.UserError, match="nothing shows that anything was learned"):
        tune(experiment, Config(), {"learning_rate": (1e-12, 1e-11)}, points=2, num_seeds=2, progress=False)


@pytest.mark.slow
def test_two_fields_at_once(tmp_path):
    ranges = {"learning_rate": (1e-3, 1.0), "momentum": (0.1, 0.9)}
    tuning = tune(experiment, Config(steps=160), ranges, points=4, num_seeds=2, workdir=tmp_path, progress=False)
    kept = json.loads((tmp_path / "tune.json").read_text())
    assert set(kept["basin"]) == set(kept["edge"]) == set(tuning.recommended) == set(ranges)
    assert len(tuning.short.settings) == 16
    assert tuning.short.steps == 10  # a twentieth would be 8
    assert 1e-3 < tuning.recommended["learning_rate"] < 0.5


RATES = {"rate": [2.0**n for n in range(8)]}


def make_stage(settings, means, noise=0.01):
    seeds = noise * np.array([-1.0, 1.0, 0.0])
    losses = tuple(np.exp(mean + np.roll(seeds, index)) for index, mean in enumerate(means))
    return Stage(0.25, "loss", True, tuple(settings), losses, losses, (SimpleNamespace(steps=np.array([0, 2])),))


def one_field(means, noise=0.01):
    return make_stage([{"rate": rate} for rate in RATES["rate"]], means, noise)


def test_a_lucky_setting_between_worse_ones_does_not_lead():
    means = [0.0, -0.7, -1.6, -2.4, -2.6, -2.5, 0.0, -2.7]
    assert leader(one_field(means, noise=3.0)) == {"rate": 2.0**4}


def test_what_is_no_chance_is_not_smoothed():
    assert leader(one_field([-2.0, -2.1, -2.0, 0.0, -2.5, 0.0, 0.0, 0.0])) == {"rate": 2.0**4}


def test_what_diverged_is_no_neighbour():
    assert leader(one_field([np.nan, np.nan, -2.0, np.nan, -1.0, 0.0, np.nan, np.nan])) == {"rate": 4.0}


def test_neighbours_are_those_of_either_field():
    settings = [{"a": a, "b": b} for a in (1.0, 2.0, 4.0) for b in (1.0, 2.0, 4.0)]
    means = [0.0, 0.0, -1.1, -1.0, -1.0, -1.0, 0.0, -1.0, 1.0]
    assert leader(make_stage(settings, means, noise=3.0)) == {"a": 2.0, "b": 2.0}


def test_the_search_begins_at_the_leader_and_below_it_on_the_grid():
    rates = {"rate": np.geomspace(1e-4, 1.0, 17).tolist()}
    at = [rates["rate"].index(setting["rate"]) for setting in below({"rate": rates["rate"][6]}, rates)]
    assert at == [6, 4, 2]
    at = [rates["rate"].index(setting["rate"]) for setting in below({"rate": rates["rate"][1]}, rates)]
    assert at == [1, 0]
    both = {"a": [0.1, 1.0], "b": [0.01, 0.1, 1.0]}
    found = below({"a": 1.0, "b": 1.0}, both)
    assert {"a": 1.0, "b": 1.0} in found and {"a": 0.1, "b": 1.0} in found and {"a": 1.0, "b": 0.1} in found


def search(losses):
    """Search where a full training of 2**n with its k-th seed ends with losses[n][k], NaN for divergence."""
    trained = []

    def train(wanted, number):
        assert number == len(trained) + 1
        trained.append([(int(np.log2(setting["rate"])), nth) for setting, nth in wanted])
        ends = np.array([losses[n][nth] for n, nth in trained[-1]])
        start = np.full(len(ends), 5.0)
        return SimpleNamespace(
            members=[Member(nth, setting) for setting, nth in wanted],
            steps=np.array([0, 10]),
            curves={"loss": np.stack([start, ends])},
            train={"loss": np.stack([start, ends])},
            failed=np.where(np.isnan(ends), 3, -1),
            compiles={"train": 1},
        )

    short = one_field([0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0])
    return search_in(short, RATES, train), trained


def test_the_search_follows_the_leader_and_gives_the_two_that_lead_further_seeds():
    stage, trained = search([[3.0] * 9, [1.0] * 9, [2.0] * 9, [2.5] * 9, [3.0] * 9, [3.0] * 9, [4.0] * 9, [5.0] * 9])
    assert trained == [[(5, 0), (3, 0), (2, 0)], [(1, 0)], [(0, 0)], [(1, 1), (2, 1)], [(1, 2), (2, 2)], [(1, 3)]]
    assert stage.settings[stage.leading()[0]] == {"rate": 2.0}


def test_a_lucky_seed_in_full_is_found_out():
    luck = [[3.0] * 9, [3.0] * 9, [1.5] * 9, [2.0] * 9, [2.2] * 9, [0.5, 9.0, 9.0, 9.0], [4.0] * 9, [5.0] * 9]
    stage, trained = search(luck)
    assert stage.settings[stage.leading()[0]] == {"rate": 4.0} and sum(map(len, trained)) == 10


def test_a_setting_that_diverges_in_full_does_not_lead_and_all_that_do_are_a_mistake():
    stage, _ = search([[3.0] * 9, [2.0] * 9, [1.5] * 9, *[[np.nan] * 9] * 5])
    assert stage.settings[stage.leading()[0]] == {"rate": 4.0} and not stage.contest.contenders[-1]
    stage, trained = search([[2.0] * 9, *[[np.nan] * 9] * 7])
    assert trained[1:3] == [[(0, 0)], [(1, 0)]] and stage.settings[stage.leading()[0]] == {"rate": 1.0}
    alone = Stage(
        1.0, "loss", True, stage.settings[:2], (np.array([2.0]), np.array([3.0])), stage.before[:2], stage.runs
    )
    bad = dataclasses.replace(alone, settings=stage.settings[:3], losses=(*alone.losses, np.array([np.nan] * 2)))
    points = curve({"lower_is_better": True}, bad.to_dict(), "rate")
    np.testing.assert_allclose(points, [(1.0, 2.0, 2.0, 2.0), (2.0, 3.0, 3.0, 3.0)])
    with pytest.raises(an.UserError, match=r"diverged within 10 \(rate 1, rate 4, rate 8, rate 32\): give a lower"):
        search([[np.nan] * 9] * 8)
