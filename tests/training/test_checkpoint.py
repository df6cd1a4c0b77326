"""Orbax beneath: what it says of a save that failed is not said twice, and its clock may jump."""

import asyncio
import gc
import itertools
import logging
import time

import pytest

from accelnet.training import checkpoint
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
