"""Smaller networks: trained, measured and compared as they say, kept, and gone on with after a kill."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import accelnet as an
from accelnet.choosing.runs import compare_runs, runs_table
from accelnet.compressing import finetune, search, trainings
from accelnet.compressing.bits import quantize
from accelnet.compressing.candidate import Proposal, cost_of
from accelnet.compressing.compress import compress
from accelnet.compressing.finetune import untrained_run
from accelnet.compressing.proposals import ways_of
from accelnet.compressing.store import SearchStore
from accelnet.compressing.ways import Bits, Ways
from accelnet.errors import UserError
from accelnet.models.compressed import Compressed, Compression
from tests.pages import needs_browser, shows

WIDTH = 16
_rng = np.random.default_rng(0)
X = _rng.normal(size=(900, 4)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] + 0.3 * _rng.normal(size=900) > 0).astype(np.int32)
SPLITS = {"train": range(400), "validation": range(400, 800), "test": range(800, 900)}
DATA = an.data.Data("moons", {"inputs": X, "targets": Y}, SPLITS, info={"num_classes": 2})


def experiment(**settings):
    defaults = {"data": DATA, "optimizer": an.optim.adam(2e-2), "batch_size": 50, "epochs": 6, "config": {"epochs": 6}}
    defaults["model"] = lambda rngs: an.models.MLP(4, (WIDTH,), 2, rngs=rngs)
    return an.Experiment(
        objective=an.objectives.softmax_cross_entropy(),
        **(defaults | settings),
    )


class Named(nnx.Module):
    def __init__(self, size="small", *, rngs):
        hidden = {"small": 3}[size]
        self.first, self.second = nnx.Linear(4, hidden, rngs=rngs), nnx.Linear(hidden, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def narrower(run):
    """Return networks with the first of the hidden units, and with weights rounded to bfloat16."""
    whole = run.experiment

    def widths(factor):
        small = Compressed(whole.model, Compression(widths={"hidden_features.0": max(1, int(WIDTH / factor))}))
        made = whole.replace(model=small)

        def weigh():
            like, _ = jax.eval_shape(lambda: made.pure_model.init(jax.random.key(0)))
            parts = jax.tree.map(lambda a, b: np.asarray(a)[tuple(map(slice, b.shape))], run.params, like)
            return made, parts, run.model_state

        return Proposal(f"widths 1/{factor:g}", ("widths",), made, cost_of(made), weigh)

    def rounded(run):
        params = jax.tree.map(lambda leaf: jnp.asarray(jnp.asarray(leaf, jnp.bfloat16), jnp.float32), run.params)
        return run.experiment, params, run.model_state

    return Ways({"widths": widths}, {"rounded": Bits(rounded)}, notes=("out_features: it changes the outputs",))


@pytest.fixture(scope="module")
def trained():
    return an.fit(experiment(), progress=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("small") / "run"


@pytest.fixture(scope="module")
def found(trained, out, no_pictures):
    return compress(trained, max_drop=0.12, budget=3, out=out, progress=False, ways=narrower(trained))


@pytest.mark.slow  # of three trainings, each with its rates
def test_candidates_are_trained_as_they_say_beside_the_original_and_one_from_scratch(found, trained):
    one = {one.name: one.candidate for one in found.measured}
    assert next(iter(one)) == "original" and one["original"].run is trained
    tuned = [each for each in one.values() if each.name.endswith("fine-tuned")]
    (twin,) = [each for each in one.values() if "scratch" in each.how and "bits" not in each.how]
    assert len(tuned) == 2 and twin.name.split(",")[0] in {each.name.split(",")[0] for each in tuned}
    # The original's epochs are in the weights that fine-tuning begins with.
    assert twin.run.step == 2 * trained.step == 2 * tuned[0].run.step
    assert {each.training["total_epochs"] for each in (*tuned, twin)} == {12.0}
    assert twin.run.experiment.config["epochs"] == 12 and tuned[0].run.experiment.config["epochs"] == 6
    tried = tuned[0].training["rate"]["tried"]
    assert [row["factor"] for row in tried] == [1.0, 0.3, 0.1]
    assert tuned[0].training["rate"]["factor"] == min(tried, key=lambda row: row["loss"])["factor"]
    assert tried[0]["learning_rate"] == pytest.approx(2e-2)
    assert all(
        "test" not in each.run.metrics or not each.run.metrics["test"]
        for each in (*tuned, twin)
        if each.name != found.recommended.name
    )


@pytest.mark.slow
def test_what_is_measured_is_what_there_is(found, trained):
    for one in found.measured:
        arrays = jax.tree.leaves((one.run.params, one.run.model_state))
        whole = sum(leaf.nbytes for leaf in arrays)
        assert whole < one.bytes < whole + 1000  # and a header
        assert one.candidate.cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(one.run.params))
        rows = slice(SPLITS["validation"].start, SPLITS["validation"].stop)
        right, before = (np.asarray(run.predict(X[rows])).argmax(1) == Y[rows] for run in (one.run, trained))
        assert one.value == pytest.approx(right.mean(), abs=1e-6)
        assert one.drop is None or one.drop.value == pytest.approx(before.mean() - right.mean(), abs=1e-6)
        assert [row["batch_size"] for row in one.latency] == [1, 256] and one.memory_bytes > 0
    narrow = next(one for one in found.measured if "widths" in one.candidate.how)
    assert narrow.candidate.cost.flops < 0.6 * found.measured[0].candidate.cost.flops


@pytest.mark.slow
def test_the_cheapest_that_is_shown_to_lose_little_enough_is_recommended(found):
    good = [one for one in found.measured[1:] if one.drop.bound <= 0.12 and one.share < 1]
    assert found.recommended in good and found.nearest is None
    assert found.recommended.share <= 1.03 * min(one.share for one in good)
    assert found.recommended.name in found.words and "looked at once" in found.words
    # The bound is that of all networks at once, so it lies beyond the interval.
    assert all(one.drop.bound > one.drop.high for one in found.measured[1:])
    assert len(repr(found).splitlines()) <= 12 and "→" in found.table and "<table" in found._repr_html_()


@pytest.mark.slow
def test_the_answer_is_a_run_like_any_other(found, out):
    best = found.recommended.run
    restored = an.evaluate(best.experiment, out)
    assert restored.metrics["test"] == best.metrics["test"] and restored.step == best.step
    np.testing.assert_array_equal(restored.predict(X[:5]), best.predict(X[:5]))
    longer = an.fit(
        finetune.of_length(best.experiment, 2.0), workdir=out, resume=True, allow_change=True, progress=False
    )
    assert longer.step == 2 * best.step
    with pytest.raises(UserError, match="was trained on since"):
        compress(found.measured[0].run, max_drop=0.12, budget=3, out=out, progress=False)


@pytest.mark.slow
def test_a_compressed_run_stands_in_one_table_with_one_that_was_trained_for_itself(found, out, tmp_path):
    narrow = experiment(model=lambda rngs: an.models.MLP(4, (4,), 2, rngs=rngs))
    an.fit(narrow, workdir=tmp_path / "narrow", progress=False)
    values = compare_runs([out, tmp_path / "narrow"])
    small, other = values["runs"]
    assert small["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(found.recommended.run.params))
    assert other["parameters"] == 4 * 4 + 4 + 4 * 2 + 2 and values["left_out"] == []
    assert all(one["metrics"]["test"]["accuracy"] > 0.5 and one["finished"] for one in (small, other))
    assert "narrow" in runs_table(values) and out.name in runs_table(values)


@pytest.mark.slow
@needs_browser
def test_the_page_shows_the_front_and_a_browser_shows_it(found, out, browser, tmp_path):
    values = json.loads((out / "compress" / "compress.json").read_text())
    assert values == found.to_dict() and values["recommended"] == found.recommended.name
    page = (out / "compress" / "report.html").read_text()
    assert page == found.page()
    shows(browser, page, tmp_path)
    for name in values["front"]:
        assert name in page
    assert page.count("<svg") == 3 and "out_features: it changes the outputs" in page


@pytest.mark.slow  # two searches, of which one is killed
def test_a_search_that_was_killed_does_nothing_again(trained, tmp_path, monkeypatch, no_pictures):
    ways, settings = narrower(trained), {"max_drop": 0.12, "budget": 2, "out": tmp_path / "run", "progress": False}
    calls, find_rate = [], finetune.find_rate

    def counted(made, *args):
        calls.append(made.model.compression.widths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find_rate(made, *args)

    monkeypatch.setattr(trainings, "find_rate", counted)
    # Of two trainings the second one is from scratch, and needs no rate: here it is another network.
    monkeypatch.setattr(search.Search, "_train_twin", lambda self: False)
    with pytest.raises(KeyboardInterrupt):
        compress(trained, **settings, ways=ways)
    first = SearchStore(tmp_path / "run" / "compress").folder("widths 1/4, fine-tuned")
    before = sorted(one.stat().st_mtime_ns for one in first.glob("checkpoints/[0-9]*"))
    again = compress(trained, **settings, ways=ways)
    assert len(calls) == 3 and calls[1] == calls[2] != calls[0]
    assert sorted(one.stat().st_mtime_ns for one in first.glob("checkpoints/[0-9]*")) == before
    assert [one.name for one in again.measured[:2]] == ["original", "widths 1/4, fine-tuned"]
    other = an.fit(experiment(seed=1), progress=False)
    with pytest.raises(UserError, match="of another run"):
        compress(other, **settings, ways=ways)


def test_what_cannot_be_found_out_is_refused_with_what_can_be_done(trained, tmp_path):
    splits = {"train": range(400), "test": range(800, 900)}
    blind = dataclasses.replace(trained, experiment=experiment(data=dataclasses.replace(DATA, splits=splits)))
    with pytest.raises(UserError, match=r"no validation rows.*validation=0\.1"):
        compress(blind, progress=False)
    with pytest.raises(UserError, match=r"400 validation examples cannot show a drop of less than.*keep [\d,]+ rows"):
        compress(trained, max_drop=1e-4, progress=False)
    instance = dataclasses.replace(trained, experiment=experiment(model=trained.model))
    with pytest.raises(UserError, match=r"is an instance.*model=lambda rngs"):
        compress(instance, max_drop=0.5, progress=False)
    named = an.fit(experiment(model=lambda rngs: Named(rngs=rngs), epochs=None, steps=1), progress=False)
    with pytest.raises(UserError, match=r"and the constructor, Named\(size='small'\), has none"):
        compress(named, max_drop=0.5, methods=["widths"], progress=False)
    with pytest.raises(UserError, match=r"method is 'magic'|expected .*widths"):
        compress(trained, methods=["magic"], progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_where_none_qualifies_all_is_there_and_the_nearest_is_named(trained):
    ways = Ways(bits=narrower(trained).bits)
    slow = compress(trained, latency=1e-9, methods=["bits"], budget=0, progress=False, ways=ways)
    assert slow.recommended is None and slow.nearest.name == "rounded" and not slow.test
    assert "the fastest, rounded, takes" in slow.words and "longer --latency" in slow.words

    def broken(run):
        return run.experiment, jax.tree.map(jnp.zeros_like, run.params), run.model_state

    def spoiled(run):
        return run.experiment, jax.tree.map(lambda leaf: leaf * jnp.nan, run.params), run.model_state

    bad = compress(
        trained, max_drop=0.05, methods=["bits"], budget=0, progress=False,
        ways=Ways(bits={"nothing left": Bits(broken), "spoiled": Bits(spoiled)}),
    )  # fmt: skip
    assert bad.recommended is None and bad.nearest.name == "nothing left"
    assert "No network is shown to lose at most 5.00 points" in bad.words
    assert bad.to_dict()["candidates"][2]["value"] is None and "undefined" in bad.table


class Residual(linen.Module):
    hidden: int = 24

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(self.hidden)(x)
        x = x + linen.Dense(self.hidden)(linen.relu(linen.BatchNorm(use_running_average=not train)(x)))
        return linen.Dense(2)(linen.relu(x))


@pytest.mark.slow  # of a training, and all ways
def test_every_method_makes_a_linen_module_smaller_and_training_goes_on():
    run = an.fit(experiment(model=Residual(), epochs=3), progress=False)
    ways = ways_of(run, ("widths", "ranks", "bits"), (1,), lambda _: None)
    assert set(ways.structures) == {"widths", "ranks", "widths and ranks"} and set(ways.bits) >= {"int8", "int4"}
    for name, propose in ways.structures.items():
        proposal = propose(2.0)
        made = untrained_run(*proposal.weigh())
        assert cost_of(made.experiment) == proposal.cost, name
        again = an.fit(made.experiment.replace(initial=made.params, epochs=1), progress=False)
        assert np.isfinite(again.metrics["validation"]["loss"])
        stored = untrained_run(*quantize(again.experiment, again.params, again.model_state, 8))
        moved = np.abs(np.asarray(stored.predict(X[:50])) - np.asarray(again.predict(X[:50])))
        assert moved.mean() < 0.05 * np.abs(np.asarray(again.predict(X[:50]))).mean(), name
