"""What Orbax says of a save that failed is not said twice; what a user's own futures say is."""

import asyncio
import gc
import logging

import pytest

from accelnet.training import checkpoint


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
