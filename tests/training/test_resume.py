"""Kill anywhere, go on, same bits."""

import random
import signal
import time

import chex
import pytest

import accelnet as an
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.evaluator import Evaluator
from accelnet.training.rhythm import Pace
from tests.training.conftest import toy_experiment

pytestmark = pytest.mark.usefixtures("no_pictures")

TIMES = ("seconds", "examples_per_second")
STEPWISE = Pace(chunk_seconds=1e-9)  # chunks of one step


class Killed(Exception):
    pass


def die(moment):
    raise Killed


def fit(experiment, **options):
    return an.fit(experiment, progress=False, **options)


def rows_of(run):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in run.rows]


def same(a, b):
    chex.assert_trees_all_equal(a.state, b.state)
    assert a.metrics == b.metrics and rows_of(a) == rows_of(b)


def test_a_run_that_died_again_and_again_ends_with_the_same_bits(full, whole, tmp_path):
    for leg, step in enumerate((1, 5, 12, 18)):
        event, pace = an.Event(an.Every(steps=step), die), (Pace(), STEPWISE)[leg % 2]  # in other chunks than before
        with pytest.raises(Killed):
            fit(full, workdir=tmp_path, resume=True, events=[event], pace=pace)
        assert Checkpoints(tmp_path).steps()[-1:] == [[], [4], [12], [16]][leg]
    same(fit(full, workdir=tmp_path, resume=True, pace=STEPWISE), whole)


def test_a_run_that_was_told_to_end_goes_on_to_the_same_bits(full, whole, tmp_path):
    for step in (9, 13):  # the second is followed by an evaluation

        def tell(moment, step=step):
            if moment.step == step:
                signal.raise_signal(signal.SIGTERM)

        event = an.Event(an.Every(steps=1), tell)
        message = rf"told to end \(SIGTERM\) at step {step + 1}: the state is saved in"
        with pytest.raises(an.PreemptedError, match=message):
            fit(full, workdir=tmp_path, resume=True, events=[event], pace=STEPWISE)
        assert Checkpoints(tmp_path).steps()[-1] == step + 1
    same(fit(full, workdir=tmp_path, resume=True), whole)


def test_a_run_that_is_told_to_end_while_it_evaluates_stops_between_batches(full, tmp_path, monkeypatch):
    evaluate, pace = Evaluator.evaluate, Pace(eval_batches=1)

    def told(self, state, split):
        if split == "test":
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self, state, split)

    monkeypatch.setattr(Evaluator, "evaluate", told)
    with pytest.raises(an.PreemptedError, match="at step 21"):
        fit(full, workdir=tmp_path / "run", pace=pace)
    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    same(fit(full, workdir=tmp_path / "run", resume=True, pace=pace), fit(full, pace=pace))


def test_without_a_work_directory_a_run_that_is_told_to_end_says_so(full):
    event = an.Event(an.Every(steps=3), lambda moment: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(an.PreemptedError, match="nothing was saved, because no work directory"):
        fit(full, events=[event])


_SCRIPT = """
import sys
import accelnet as an
from tests.training.test_resume import long_experiment
from accelnet.training.rhythm import Pace
an.fit(long_experiment(), workdir=sys.argv[1], resume=True, progress=False, pace=Pace(chunk_seconds=1e-3))
"""


def long_experiment():
    rhythms = {"log_every": an.Every(steps=5), "save_every": an.Every(steps=3), "eval_every": an.Every(steps=12)}
    return toy_experiment(microbatch_size=3, epochs=20, **rhythms)


@pytest.mark.slow
def test_a_process_killed_at_random_instants_goes_on_to_the_same_bits(forks, tmp_path):
    script, run, whole = tmp_path / "script.py", tmp_path / "run", tmp_path / "whole"
    script.write_text(_SCRIPT)

    def start(workdir):
        # Compiled as users do, with LLVM's optimization.
        return forks.start(script, str(workdir), output=tmp_path / "said.txt", XLA_FLAGS="")

    rng = random.Random(0)
    seen = set()
    for _ in range(2):
        process = start(run)
        deadline = time.monotonic() + 120
        wanted = len(seen) + rng.randint(1, 3)
        while process.poll() is None and time.monotonic() < deadline:
            seen |= set(Checkpoints(run).steps())
            if len(seen) >= wanted:
                time.sleep(rng.uniform(0, 0.1))
                process.kill()
                break
            time.sleep(0.002)
        assert process.wait(60) == -signal.SIGKILL, process.said()
    for workdir in (run, whole):  # to the end, in programs that are compiled alike
        process = start(workdir)
        assert process.wait(120) == 0, process.said()
    ended, expected = (fit(long_experiment(), workdir=workdir, resume=True) for workdir in (run, whole))
    same(ended, expected)


def test_resuming_where_there_is_nothing_starts_from_the_beginning(full, whole, tmp_path):
    same(fit(full, workdir=tmp_path / "run", resume=True), whole)


@pytest.mark.slow
def test_more_steps_are_a_harmless_change_and_continue_the_same_run(full, whole, tmp_path):
    fit(full.replace(epochs=1), workdir=tmp_path / "run")
    longer = fit(full, workdir=tmp_path / "run", resume=True)
    chex.assert_trees_all_equal(longer.state.params, whole.state.params)


@pytest.mark.slow
def test_a_changed_setting_is_named_and_needs_permission(make_experiment, tmp_path):
    fit(make_experiment(steps=3, config={"rate": 0.1}), workdir=tmp_path / "run")
    changed = make_experiment(steps=6, batch_size=10, config={"rate": 0.2})
    with pytest.raises(an.UserError, match=r"batch_size was 8 and is 10, .*rate was 0.1 and is 0.2.*--allow-change"):
        fit(changed, workdir=tmp_path / "run", resume=True)
    assert fit(changed, workdir=tmp_path / "run", resume=True, allow_change=True).step == 6


@pytest.mark.slow
def test_an_allowed_new_learning_rate_counts(make_experiment, tmp_path):
    def made(rate, steps):
        return make_experiment(optimizer=an.optim.adam(rate), steps=steps, config={"rate": rate})

    before = fit(made(1e-2, 4), workdir=tmp_path / "run")
    after = fit(made(0.0, 8), workdir=tmp_path / "run", resume=True, allow_change=True)
    chex.assert_trees_all_equal(before.state.params, after.state.params)
