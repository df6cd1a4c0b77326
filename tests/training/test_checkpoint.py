"""Orbax beneath: what it says of a save that failed is not said twice, and its clock may jump."""

import asyncio
import gc
import itertools
import logging
import time
from typing import NamedTuple

import jax.numpy as jnp
import pytest

import accelnet as an
from accelnet.errors import UserError
from accelnet.training import checkpoint, saving
from tests.training.test_resume import fit


def left_alone(error):
    """Let a future fail that nobody waits for, as TensorStore's do when Orbax has given up."""

    async def leave():
        asyncio.get_running_loop().create_future().set_exception(error)
        gc.collect()

    asyncio.run(leave())


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (
            ValueError("Error writing file:///a/checkpoints/.saving-45/state.orbax-checkpoint-tmp/d/62: read-only"),
            False,
        ),
        (ValueError("Error reading file:///runs/a/checkpoints/45/state/ocdbt.process_0/manifest"), False),
        (ValueError("Error reading file:///data/checkpoints/best.bin"), True),
        (ValueError("of the user"), True),
    ],
)
def test_a_future_that_orbax_left_behind_says_nothing(error, is_told, caplog):
    checkpoint.orbax()
    with caplog.at_level(logging.ERROR, "asyncio"):
        left_alone(error)
    assert ("never retrieved" in caplog.text) is is_told


def test_a_clock_that_jumps_forward_ends_no_save(make_experiment, tmp_path, monkeypatch, no_pictures):
    hours, now = itertools.count(), time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * next(hours))
    run = fit(make_experiment(steps=3), workdir=tmp_path / "run")
    assert run.step == 3 and checkpoint.Checkpoints(tmp_path / "run").steps() == [3]


class State(NamedTuple):
    step: jnp.ndarray


@pytest.fixture
def saver(tmp_path, monkeypatch):
    """Give a writer whose second, until it writes again, does not end."""
    monkeypatch.setattr(saving, "_APART_SECONDS", 1e6)
    made = saving.Saver(checkpoint.Checkpoints(tmp_path), keep_last=2, keep_best=1)
    yield made
    made.close()


def save(saver, step, ranks=None, *, may_wait=True):
    saver.save(State(jnp.int32(step)), {}, ranks, may_wait=may_wait)


def wait_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_so()


def test_the_first_of_many_small_states_is_written_at_once_and_of_the_others_those_that_are_kept(saver, monkeypatch):
    steps = saver.checkpoints.steps
    save(saver, 1)
    wait_until(lambda: steps() == [1])
    ranks, written, end = {3: 0.5}, [], saver._end
    monkeypatch.setattr(saver, "_end", lambda step, copy: (written.append(step), end(step, copy)))
    for step in range(2, 7):
        save(saver, step, ranks)
    assert steps() == [1]
    saver.finish()
    assert written == steps() == [3, 5, 6]


def test_what_a_user_asks_for_is_written_at_once_after_what_waits(saver):
    for step in (1, 2):
        save(saver, step)
    save(saver, 3, may_wait=False)
    wait_until(lambda: saver.checkpoints.steps() == [2, 3])


def test_large_states_do_not_wait(saver, monkeypatch):
    monkeypatch.setattr(saving, "_SMALL_BYTES", 3)
    for step in (1, 2):
        save(saver, step)
    wait_until(lambda: saver.checkpoints.steps() == [1, 2])


def test_a_run_that_fails_keeps_what_waits(make_experiment, tmp_path, monkeypatch, no_pictures):
    monkeypatch.setattr(saving, "_APART_SECONDS", 1e6)

    def fail(moment):
        raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        fit(
            make_experiment(steps=12, eval_every=an.Every(steps=2)),
            workdir=tmp_path / "run",
            events=[an.Event(an.Every(steps=10), fail)],
        )
    assert 10 in checkpoint.Checkpoints(tmp_path / "run").steps()


def test_a_write_that_failed_is_said_at_the_next_save(saver, monkeypatch):
    def fail(step):
        raise OSError("no space left")

    monkeypatch.setattr(saver, "_make_room", fail)
    save(saver, 1)
    wait_until(lambda: all(one.done() for one in saver._writing))
    with pytest.raises(UserError, match=r"no space left.*go on with --resume"):
        save(saver, 2)


def test_a_user_who_asks_to_save_what_an_evaluation_found_gets_it_at_once(
    make_experiment, tmp_path, monkeypatch, no_pictures
):
    monkeypatch.setattr(saving, "_APART_SECONDS", 1e6)
    there = []

    def look(moment):
        moment.save()
        wait_until(lambda: moment.step in checkpoint.Checkpoints(tmp_path / "run").steps())
        there.append(moment.step)

    every = an.Every(steps=2)
    fit(make_experiment(steps=6, eval_every=every, events=[an.Event(every, look)]), workdir=tmp_path / "run")
    assert there == [2, 4, 6]
