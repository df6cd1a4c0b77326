"""Spikes of the training loss: what stands out of the losses before it, by a rule that a spike itself does not move."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

_WINDOW, _FEWEST = 32, 8
# In standard deviations of normal noise, by the median absolute deviation, and as a part of the median: where a loss
# hardly moves any more, everything stands out.
_DEVIATIONS, _SHARE = 8.0, 0.2
_NORMAL = 1.4826


def spike_of(losses: Sequence[float], loss: float) -> float | None:
    """Return how many times the median of the losses before it a loss is, where that is a spike.

    Args:
        losses: Losses before it, the newest last; of these the last 32 count, and fewer than 8 say nothing.
        loss: The loss.

    Example:
        >>> spike_of([1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.1], 4.0), spike_of([1.0, 3.0] * 4, 4.0)
        (4.0, None)

    Source: the rule of the median absolute deviation (Hampel, "The Influence Curve and Its Role in Robust Estimation",
    1974).
    """
    last = np.asarray(losses[-_WINDOW:], float)
    if len(last) < _FEWEST or not np.isfinite(loss):
        return None
    median = float(np.median(last))
    deviation = _NORMAL * float(np.median(np.abs(last - median)))
    stands_out = loss - median > max(_DEVIATIONS * deviation, _SHARE * abs(median))
    return loss / median if stands_out and median > 0 else None


class Spikes:
    """Mark the rows of spikes, and say so at the first one.

    Args:
        note: Function that gets the sentence.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note: Callable[[str], None] | None = note

    def marked(self, rows: Sequence[Mapping[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
        """Return a row, with "spike" (the loss as a multiple of the running median) if its training loss is one.

        Args:
            rows: Rows before it.
            row: The row.

        Example:
            >>> rows = [{"split": "train", "loss": 1.0, "step": step} for step in range(9)]
            >>> Spikes(print).marked(rows, {"split": "train", "loss": 3.0, "step": 9})["spike"]
            the loss jumped to 3 at step 9, 3.0 times its running median; curves.png marks such steps
            3.0
        """
        if row["split"] != "train" or np.ndim(row["loss"]):
            return row  # of a population there are many losses
        loss = float(row["loss"])
        before = (old["loss"] for old in reversed(rows) if old["split"] == "train" and old["loss"] is not None)
        times = spike_of(list(islice(before, _WINDOW))[::-1], loss)
        if times is None:
            return row
        if self._note is not None:
            step = row["step"]
            self._note(
                f"the loss jumped to {loss:.4g} at step {step:,}, {times:.1f} times its running median; curves.png "
                "marks such steps"
            )
            self._note = None
        return {**row, "spike": times}
