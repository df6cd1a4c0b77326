"""The few shapes that a server computes: batches and steps padded to powers of two, all compiled before it is ready."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from accelnet.artifact.model import Model
from accelnet.artifact.program import STEPS
from accelnet.artifact.schema import ArraySchema, held_of
from accelnet.errors import UserError
from accelnet.serving.limits import Limits

Answers = Mapping[str, np.ndarray]
_LEAST_STEPS = 16
# Padding at the end of a text must not change what stands before it: float32's rounding, and no more.
_SAME = 1e-4


@dataclass(frozen=True, eq=False)
class Encoded:
    """Hold encoded rows.

    Attributes:
        arrays: Arrays [B, ...], as the leaves of the model's inputs.
        steps: Number of their steps, 0 where inputs have none that may be any number.
        padded: Number of steps that the arrays have now.
    """

    arrays: list[np.ndarray]
    steps: int
    padded: int

    def __len__(self) -> int:
        return len(self.arrays[0])

    def part(self, first: int, last: int) -> "Encoded":
        """Return some of the rows."""
        return self if last - first >= len(self) else replace(self, arrays=[one[first:last] for one in self.arrays])


class Sizes:
    """Compute batches of a model at few shapes.

    Args:
        model: The model.
        limits: Limits of the server.

    Attributes:
        rows: Sizes of batches, rising.
        steps: Numbers of steps, rising; empty where inputs have none that may be any number.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model = model
        held = held_of(model.schema["inputs"])
        self._held, self._tree = jax.tree.flatten(held, is_leaf=lambda one: isinstance(one, ArraySchema))
        self._is_sequence = [len(one.shape) > 1 and one.shape[1] == STEPS for one in self._held]
        self._has_lengths = isinstance(model.schema["inputs"].get("lengths"), Mapping)
        fixed = model.schema["batch"]
        self.rows = (fixed,) if fixed else _powers(1, limits.batch_rows)
        self.steps: tuple[int, ...] = (
            _powers(min(_LEAST_STEPS, limits.steps), limits.steps) if any(self._is_sequence) else ()
        )
        self._outputs_with_steps = [
            name for name, one in model.schema["outputs"].items() if one["shape"][1:2] == [STEPS]
        ]
        self._pads_steps = True

    def compile(self, told: Callable[[int, int], object], stops: Callable[[], bool]) -> None:
        """Compile all shapes.

        Args:
            told: Function that is called before each with how many are done, and how many there are.
            stops: Function that says whether there is no need to go on.
        """
        shapes = [(rows, steps) for steps in self.steps or (0,) for rows in self.rows]
        for done, (rows, steps) in enumerate(shapes):
            if stops():
                return
            told(done, len(shapes))
            self._model.answers(self._example(rows, steps), rows)
        if self.steps and not self._has_lengths:
            self._pads_steps = self._ignores_what_follows()

    def padded(self, inputs: Any) -> Encoded:
        """Return encoded inputs as rows, padded in steps.

        Args:
            inputs: As `schema.encode` makes them.

        Raises:
            UserError: if there are too many steps.
        """
        found = jax.tree.leaves(inputs)
        if not self.steps:
            return Encoded(found, 0, 0)
        pairs = list(zip(found, self._is_sequence, strict=True))
        count = next(one.shape[1] for one, yes in pairs if yes)
        size = next((one for one in self.steps if one >= count), None)
        if size is None or not count:
            raise UserError(f"inputs have {count} steps, expected 1 to {self.steps[-1]}")
        if size != count and not self._pads_steps:
            raise UserError(f"inputs have {count} steps, and this model looks ahead: expected one of {self.steps}")
        return Encoded([_with_steps(one, size) if yes else one for one, yes in pairs], count, size)

    def compute(self, parts: Sequence[Encoded]) -> list[Answers]:
        """Compute rows of several requests together.

        Args:
            parts: Encoded, padded to the same number of steps.

        Returns:
            Answers of each, arrays [B, ...] by name.
        """
        whole = parts[0].arrays
        if len(parts) > 1:
            whole = [np.concatenate(ones) for ones in zip(*(part.arrays for part in parts), strict=True)]
        size = next(one for one in self.rows if one >= len(whole[0]))
        found = self._model.answers(jax.tree.unflatten(self._tree, whole), size)
        answers, first = [], 0
        for part in parts:
            last = first + len(part)
            answers.append({name: one[first:last] for name, one in found.items()})
            for name in self._outputs_with_steps:
                answers[-1][name] = answers[-1][name][:, : part.steps]
            first = last
        return answers

    def _example(self, rows: int, steps: int) -> Any:
        def array(one: ArraySchema) -> np.ndarray:
            return np.zeros((rows, *(steps if size == STEPS else size for size in one.shape[1:])), one.dtype)

        inputs = jax.tree.unflatten(self._tree, [array(one) for one in self._held])
        if self._has_lengths:
            inputs["lengths"][:] = steps
        return inputs

    def _ignores_what_follows(self) -> bool:
        """Say whether the outputs of the first steps stay the same with more behind them."""
        first_steps, *more = self.steps
        if not more:
            return True
        short, long = self._example(self.rows[0], first_steps), self._example(self.rows[0], more[0])
        rng = np.random.default_rng(0)
        for one, whole in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
            if one.ndim > 1:  # small numbers, which symbols may be too
                whole[:, : one.shape[1]] = one[...] = rng.integers(0, 2, one.shape)
        first, second = (self._model.answers(inputs, self.rows[0]) for inputs in (short, long))
        pairs = ((first[name], second[name][:, :first_steps]) for name in self._outputs_with_steps)
        close = (np.allclose(a, b, rtol=_SAME, atol=_SAME * np.abs(a).max()) for a, b in pairs if a.dtype.kind == "f")
        return set(first) == set(self._outputs_with_steps) and all(close)


def _with_steps(array: np.ndarray, steps: int) -> np.ndarray:
    missing = steps - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)]) if missing else array


def _powers(low: int, high: int) -> tuple[int, ...]:
    """Return the powers of two from one number to another; `low` itself where there is none."""
    found = [1 << power for power in range(high.bit_length()) if low <= 1 << power <= high]
    return tuple(found) or (low,)
