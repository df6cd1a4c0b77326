"""Held-out windows of one long sequence: at its end, or in blocks of it."""

from collections.abc import Collection
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from accelnet.arguments import integer, word
from accelnet.data.normalize import with_cast_targets
from accelnet.data.row_order import random_order
from accelnet.errors import UserError

HeldOut = Literal["end", "blocks"]

# For held-out parts that are like the rest: enough to meet all kinds of pages, few enough that what is held out is
# pages and not single windows between known ones.
_NUM_BLOCKS = 100


def held_out_windows(
    num_windows: int, held_out: HeldOut, seed: int, *, between: int, without: Collection[str] = (), what: str
) -> tuple[np.ndarray, dict[str, range]]:
    """Choose the windows of each split, so that no split begins with the last target of another.

    Args:
        num_windows: Number N of windows, which lie one after the other.
        held_out: Place of the windows held out. "end": the test split is the last tenth, validation the tenth before
            it. "blocks": each is ten of a hundred equal blocks, drawn at random.
        seed: Seed of the draw, at least 0.
        between: Windows that are left out between two splits.
        without: Splits, of "validation" and "test", for which nothing is held out.
        what: Name of the sequence in the message.

    Returns:
        (order, splits): int [n], the windows in the order train, validation, test, and the ranges of that order.

    Raises:
        UserError: if there are too few windows.

    Example:
        >>> order, splits = held_out_windows(10, "end", 0, between=1, what="a text")
        >>> {split: order[rows.start : rows.stop].tolist() for split, rows in splits.items()}
        {'train': [0, 1, 2, 3, 4, 5], 'validation': [7], 'test': [9]}
    """
    word("held_out", held_out, ("end", "blocks"))
    seed = integer("seed", seed, low=0)
    splits = ["train", *(split for split in ("validation", "test") if split not in without)]
    needed = len(splits) + between * (len(splits) - 1)
    num_blocks = min(_NUM_BLOCKS, num_windows // (between + 1))  # the last windows of a block may be left out
    if num_windows < needed or (held_out == "blocks" and num_blocks < len(splits)):
        raise UserError(
            f"{what}: {num_windows} windows, expected at least {needed if held_out == 'end' else needed + between}: "
            "give a longer one or a smaller window"
        )
    if held_out == "end":
        tenth = max(1, round(0.1 * num_windows))
        kind = np.zeros(num_windows, int)
        for index in range(1, len(splits)):
            later = len(splits) - 1 - index
            kind[num_windows - tenth - later * (tenth + between) :] = index
    else:
        tenth = max(1, round(0.1 * num_blocks))
        kinds, drawn = np.zeros(num_blocks, int), random_order(num_blocks, seed)
        for index in range(1, len(splits)):
            first = (len(splits) - 1 - index) * tenth
            kinds[drawn[first : first + tenth]] = index
        kind = kinds[np.arange(num_windows) * num_blocks // num_windows]
    changes = kind[1:] != kind[:-1]
    left_out = np.zeros(num_windows, bool)
    for back in range(between):
        left_out[: num_windows - 1 - back] |= changes[back:]
    rows = [np.flatnonzero((kind == index) & ~left_out) for index in range(len(splits))]
    stops = np.cumsum([len(part) for part in rows]).tolist()
    return np.concatenate(rows), dict(zip(splits, map(range, [0, *stops], stops), strict=False))


def with_cast_tokens(batch: Any) -> Any:
    """Return the batch with tokens and targets as int32."""
    return with_cast_targets({**batch, "inputs": jnp.asarray(batch["inputs"]).astype(jnp.int32)})
