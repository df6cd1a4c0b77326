"""The account of a run's time: it sums up, and knows what a crash cost."""

import time

import pytest

import accelnet as an
from accelnet.training.timing import SPENT_ON, account_line


def test_the_account_sums_up_and_goes_on_after_a_crash_with_what_was_lost(make_experiment, tmp_path):
    def crash(moment):
        if moment.step == 12:
            raise ZeroDivisionError
        time.sleep(0.05 if moment.step > 10 else 0)

    every = an.Every(steps=1)
    experiment = make_experiment(
        steps=14, log_every=every, save_every=an.Every(steps=10), eval_every=an.Every(steps=99)
    )
    began = time.perf_counter()
    with pytest.raises(ZeroDivisionError):
        an.fit(experiment, workdir=tmp_path / "run", progress=False, events=[an.Event(every, crash)])
    run = an.fit(experiment, workdir=tmp_path / "run", progress=False, resume=True)
    passed = time.perf_counter() - began
    timing = run.result["timing"]
    assert timing["lost_seconds"] >= 0.05
    parts = {name: timing[f"{name}_seconds"] for name in (*SPENT_ON, "other")}
    assert min(parts.values()) >= 0 and sum(parts.values()) == pytest.approx(timing["total_seconds"])
    assert timing["total_seconds"] <= passed
    line = account_line(timing)
    assert line in "time " + repr(run).partition("time        ")[2]
    assert "lost to restarts" in line or timing["lost_seconds"] < 0.005 * timing["total_seconds"]

    again = an.fit(experiment.replace(steps=15), workdir=tmp_path / "run", progress=False, resume=True)
    assert again.result["timing"]["lost_seconds"] == timing["lost_seconds"]
