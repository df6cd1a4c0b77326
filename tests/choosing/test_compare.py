"""Candidates are tuned, trained, compared and tested in this order, and the page shows it."""

import dataclasses
import json
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import accelnet as an
from accelnet.choosing.candidates import Contender, optimizer_candidates, without_test
from accelnet.choosing.compare import compare
from accelnet.choosing.compare_page import comparison_page
from accelnet.populations.population import Population
from tests.pages import needs_browser, needs_nothing, shows

HOSTILE = "<script>"


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    hidden_features: tuple[int, ...] = (4,)
    steps: int = 24


def experiment(config):
    inputs = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    labels = (inputs.sum(axis=1) > 0).astype(int)
    return an.Experiment(
        data=an.data.from_arrays(inputs, labels, num_classes=2, test=0.2, validation=0.2),
        model=lambda rngs: an.models.MLP(4, config.hidden_features, 2, rngs=rngs),
        optimizer=an.optim.adamw(
            config.learning_rate, weight_decay=config.weight_decay, schedule=an.optim.schedules.cosine()
        ),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=16,
        steps=config.steps,
    )


def test_an_optimizer_takes_the_scripts_schedule_and_decay():
    (sgd,) = optimizer_candidates(experiment, Config(), ["sgd"])
    made = sgd.function(Config(learning_rate=0.5))
    state = made.optimizer.init({"w": jnp.ones((2, 2))})
    assert an.optim.hyperparams(state).keys() == {"learning_rate", "weight_decay"}
    assert float(an.optim.hyperparams(state)["weight_decay"]) == pytest.approx(0.1)
    for step in range(20):
        _, state = made.optimizer.update({"w": jnp.ones((2, 2))}, state, {"w": jnp.ones((2, 2))}, progress=step / 24)
        expected = 0.5 * float(an.optim.schedules.cosine()(step / 24))
        assert float(an.optim.learning_rate(state)) == pytest.approx(expected, rel=1e-5)


def test_the_schedule_of_a_plain_optax_chain_is_kept():
    def plain(config):
        rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
        chain = optax.chain(optax.clip(1.0), optax.adamw(rate, mask=an.optim.decayed))
        return experiment(config).replace(optimizer=chain)

    (adam,) = optimizer_candidates(plain, Config(), ["adam"])
    optimizer = adam.function(Config(learning_rate=0.5)).optimizer
    state = optimizer.init({"w": jnp.ones(2)})
    for step in range(24):
        _, state = optimizer.update({"w": jnp.ones(2)}, state, {"w": jnp.ones(2)})
        expected = float(optax.cosine_decay_schedule(0.5, 24)(step))
        assert float(an.optim.learning_rate(state)) == pytest.approx(expected, abs=1e-5)


def test_no_test_split_is_left():
    assert "test" not in without_test(experiment)(Config()).data.splits


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    candidates = [
        Contender(HOSTILE, experiment, Config(hidden_features=(1,))),
        Contender("twin", experiment, Config(hidden_features=(1,))),
        Contender("wide", experiment, Config(hidden_features=(16,))),
    ]
    trained = []

    def recorded(function, config, members, **settings):
        trained.append((config.hidden_features, "test" in function(config).data.splits))
        return Population(function, config, members, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelnet.choosing.compare.Population", recorded)
        values = compare(candidates, rates=(1e-2, 1e-1), tuning_seeds=1, workdir=folder, progress=False)
    return folder, values, candidates, trained


@pytest.mark.slow
def test_twins_show_no_difference_and_the_better_ones_win(compared):
    _, values, _, trained = compared
    words = {frozenset((one["first"], one["second"])): one["words"] for one in values["comparisons"]}
    assert len(words) == 3
    assert words[frozenset((HOSTILE, "twin"))] == "no difference shown"
    assert words[frozenset(("wide", "twin"))] == "wide is better than twin"
    assert values["winner"] == "wide" and f"better than {HOSTILE}, twin" in values["words"]
    # The test split is there in the last training alone, that of the winner.
    assert [one for one in trained if one[1]] == [trained[-1]] == [((16,), True)]
    first, twin = values["candidates"][:2]
    assert first["final"] == twin["final"] and first["learning_rate"] == twin["learning_rate"]
    assert set(values["test"]) == {"loss", "accuracy"}


@pytest.mark.slow
def test_a_winner_is_tested_with_the_very_trainings_that_won(compared):
    _, values, candidates, _ = compared
    wide = values["candidates"][2]
    config = dataclasses.replace(candidates[2].config, learning_rate=wide["learning_rate"])
    losses = [
        an.fit(experiment(config).replace(seed=seed), progress=False).metrics["test"]["loss"] for seed in range(2)
    ]
    trained = json.loads((compared[0] / "wide" / "test" / "population.json").read_text())["result"]
    # float32 rounding, of a population and of a training alone.
    assert trained["metrics"]["test"]["loss"][:2] == pytest.approx(losses, rel=1e-4)


@pytest.mark.slow
def test_structures_stand_against_what_they_cost(compared):
    _, values, _, _ = compared
    parameters = {one["name"]: one["parameters"] for one in values["candidates"]}
    assert parameters["wide"] == 4 * 16 + 16 + 16 * 2 + 2
    flops = {one["name"]: one["flops"] for one in values["candidates"]}
    assert flops[HOSTILE] == flops["twin"] < flops["wide"]
    assert values["pareto"]["parameters"] == [HOSTILE, "wide"]
    assert all(one["latency_seconds"] > 0 and one["step_seconds"] > 0 for one in values["candidates"])


@pytest.mark.slow
def test_what_is_finished_is_not_trained_again(compared, monkeypatch):
    folder, values, candidates, _ = compared
    monkeypatch.setattr("accelnet.populations.population.make_programs", lambda *_: pytest.fail("trains again"))
    again = compare(candidates, rates=(1e-2, 1e-1), tuning_seeds=1, workdir=folder, progress=False)
    assert again["comparisons"] == values["comparisons"] and again["test"] == values["test"]


@pytest.mark.slow
@needs_browser
def test_the_page_is_whole_and_a_browser_shows_it(compared, browser, tmp_path):
    folder = compared[0]
    text = (folder / "report.html").read_text()
    assert text == comparison_page(json.loads((folder / "compare.json").read_text()))
    page = needs_nothing(text)
    assert "no difference shown" in page.text and HOSTILE in page.text
    for section in ("Results", "Differences", "Test", "Learning rates", "What it costs"):
        assert section in page.text
    shows(browser, text, tmp_path, colors=((0x00, 0x72, 0xB2),))


ONE = Contender("a", experiment, Config())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"candidates": [ONE]}, "expected at least two, of different names"),
        ({"candidates": [ONE, ONE]}, "expected at least two, of different names"),
        ({"seeds": 5}, "5 seeds cannot show any difference between 2 candidates: give at least 7"),
        ({"rates": (0.0,)}, "expected at least one, all above 0"),
        ({"tuning_seeds": 0}, "expected a whole number of at least 1"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"metric": "f1"}, "no metric 'f1', only: loss, accuracy"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(settings, words):
    candidates = settings.pop("candidates", [ONE, Contender("b", experiment, Config())])
    with pytest.raises(an.UserError, match=words):
        compare(candidates, progress=False, **settings)


class Orbits(an.objectives.Mean):
    def values(self, outputs, batch, losses, weights):
        return outputs[:, 0], weights


class ManyOrbits(Orbits):
    lower_is_better = False


class FewOrbits(Orbits):
    lower_is_better = True


def with_orbits(metric):
    objective = an.objectives.softmax_cross_entropy(metrics={"orbits": metric})
    return lambda config: experiment(config).replace(objective=objective)


def test_a_metric_that_does_not_say_which_is_better_orders_nothing():
    candidates = [Contender(name, with_orbits(Orbits()), Config()) for name in "ab"]
    with pytest.raises(an.UserError, match="metric 'orbits' does not say whether lower is better: give its class"):
        compare(candidates, metric="orbits", progress=False)
    candidates = [
        Contender("a", with_orbits(ManyOrbits()), Config()),
        Contender("b", with_orbits(FewOrbits()), Config()),
    ]
    with pytest.raises(an.UserError, match="disagree on which is better"):
        compare(candidates, metric="orbits", progress=False)


@pytest.mark.slow
def test_where_all_rates_diverge_it_says_so():
    (sgd, other) = optimizer_candidates(experiment, Config(), ["sgd", "momentum"])
    with pytest.raises(an.UserError, match=r"sgd: all learning rates from 1e\+30 to 1e\+32 diverged: give lower ones"):
        compare([sgd, other], rates=(1e30, 1e32), tuning_seeds=1, progress=False)
