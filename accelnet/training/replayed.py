"""What the repetition of a failed step showed, in words."""

import linecache
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.json_file import plain_value
from accelnet.ops.origin import Origin
from accelnet.scopes import layer_of

_MOST_ROWS = 10  # in a message
_PARTS = {
    "": "the step", "loss": "the loss", "model": "the model", "input": "the preparation of the data",
    "augmentation": "the augmentation", "optimizer": "the update", "gradient": "the gradient", "loop": "the step",
}  # fmt: skip
_BEGINNINGS = {
    "loss": "",
    "gradient": "the loss is finite, and its gradient is not: ",
    "weights": "loss and gradient are finite, and the weights after the update are not: ",
    "norm": "the weights after the update are finite, and their norm is too large for float32: ",
}


@dataclass(frozen=True, repr=False)
class Replay:
    """What the repetition of a failed step showed.

    Attributes:
        experiment: Name of the experiment.
        start: Step of the checkpoint from which was repeated, 0 without one.
        step: Update that went wrong, from 1; where none did, the last that was repeated.
        kind: First that was not finite: "loss", its "gradient", the "weights" after the update, or their "norm", which
            overflows before they do. None: all were finite.
        operation: Primitive operation that made the first number that is not finite. None: it was in what the step got.
        made: That number: "nan", "inf" or "-inf".
        shape: Type and shape of the operation's result, or of the array that held the number.
        then: Operation that made NaN of infinite numbers, if another did.
        where: Layer with its path, or part of the step; of an array, its name.
        line: The user's line, "file:line (function)", "" where the operation is a library's.
        source: Text of that line.
        trips: Trips through the loops that it is in, such as positions of a sequence.
        rows: Rows of the data whose numbers are not finite, as they were given; None where that cannot be told.
        examples: Examples of the batch.
        batch: File of the batch, as the feed gave it, with its rows. None: not kept.

    Example:
        >>> found = Replay("toy", 0, 7, "loss", "log", "-inf", "float32[8]", where="the loss", rows=(17,), examples=8)
        >>> found.sentence
        'log of the loss gave -inf, float32[8], for row 17 of the data (1 of 8 in the batch)'
    """

    experiment: str
    start: int
    step: int
    kind: str | None = None
    operation: str | None = None
    made: str = ""
    shape: str = ""
    then: str | None = None
    where: str = ""
    line: str = ""
    source: str = ""
    trips: tuple[int, ...] = ()
    rows: tuple[int, ...] | None = None
    examples: int = 0
    batch: Path | None = None

    @property
    def values(self) -> dict[str, Any]:
        """JSON values."""
        return plain_value(asdict(self) | {"batch": None if self.batch is None else str(self.batch)})

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        if self.kind is None:
            return (
                f"Repeated from step {self.start} to step {self.step}, no operation gave a number that is not finite: "
                "the code, the data, or the machine is not what it was, or it depends on how XLA joins operations"
            )
        parts = [f"{self._beginning}{self._what}"]
        parts += [f"at {self.line}"] if self.line else []
        parts += [f"for {self._rows}"] if self.rows else []
        return ", ".join(parts) + (f". The batch is in {self.batch}" if self.batch else "")

    @property
    def _beginning(self) -> str:
        return "" if self.operation is None else _BEGINNINGS[self.kind or "loss"]

    @property
    def _what(self) -> str:
        if self.operation is None:
            return f"{self.where}, {self.shape}, holds {self.made} before the step"
        then = f", of which {self.then} made nan" if self.then else ""
        trips = f" (trip {', '.join(map(str, self.trips))} of its loop)" if self.trips else ""
        return f"{self.operation} of {self.where}{trips} gave {self.made}, {self.shape}{then}"

    @property
    def _rows(self) -> str:
        rows = self.rows or ()
        more = " ..." if len(rows) > _MOST_ROWS else ""
        listed = ", ".join(map(str, rows[:_MOST_ROWS])) + more
        return f"row{'s' if len(rows) > 1 else ''} {listed} of the data ({len(rows)} of {self.examples} in the batch)"

    def __repr__(self) -> str:
        if self.kind is None:
            return f"{self.experiment}: {self.sentence}"
        lines = [
            f"{self.experiment}, update {self.step:,}, repeated from step {self.start:,}",
            f"first      {self._beginning}{self._what}",
        ]
        lines += [f"line       {self.line}", f"           {self.source}"] if self.line else []
        lines += [f"rows       {self._rows}"] if self.rows else []
        lines += [f"batch      {self.batch}"] if self.batch else []
        return "\n".join(lines)


def described(
    told: Replay, origin: Origin, names: Sequence[str], rows: np.ndarray | None, weights: Collection[tuple[int, ...]]
) -> Replay:
    """Return what is told of a replay with what was found.

    Args:
        told: What is known.
        origin: What made the first number that is not finite.
        names: Names of the step's operands.
        rows: Rows of the batch, int [microbatches, examples]; None where they have no numbers.
        weights: Shapes of the weights.
    """
    shape = f"{origin.value.dtype}{list(origin.value.shape)}"
    num_microbatches, size = (1, 0) if rows is None else rows.shape
    microbatch = origin.trips[0] if num_microbatches > 1 and origin.trips else 0
    bad = None
    if origin.operand is not None:
        if rows is not None and names[origin.operand].startswith("batch"):
            bad = rows[tuple(origin.positions[:, :2].T)]
        told = replace(told, made=origin.made, shape=shape, where=names[origin.operand])
    else:
        axis = next((axis for axis, length in enumerate(origin.value.shape[:2]) if length == size), None)
        # Gradients have the shapes of weights, which may be as long as the batch.
        has_rows = told.kind == "loss" or (told.kind == "gradient" and origin.value.shape not in weights)
        if rows is not None and axis is not None and has_rows:
            bad = rows[microbatch, origin.positions[:, axis]]
        layer = layer_of(origin.scope)
        told = replace(
            told, operation=origin.operation, made=origin.made, shape=shape, line=origin.line,
            source=_source(origin.line), where=_PARTS.get(layer, f"the layer {layer}"),
            trips=origin.trips[1:] if num_microbatches > 1 else origin.trips,
            then=origin.then.operation if origin.then else None,
        )  # fmt: skip
    return told if bad is None else replace(told, rows=tuple(np.unique(bad).tolist()))


def _source(line: str) -> str:
    file, _, number = line.partition(" (")[0].rpartition(":")
    return linecache.getline(file, int(number)).strip() if number.isdecimal() else ""
