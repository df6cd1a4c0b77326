"""How far the answers of an export are from the model's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of the largest output, by the precision of the run. float32: sums of some thousand products, rounded in another order,
# stay two orders below it. The others round every layer to 8 or 11 bits, and two programs do so at different places.
# Networks with weights of few bits round what goes into a layer to 127 steps, and a number between two goes either way.
TOLERANCES = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 2e-2, "int8": 1e-2}
# Answers that are the place of the largest of these outputs.
_LARGEST_OF = {"classes": "outputs", "tokens": "outputs"}
Answers = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """Measure how far an exported model is from the original.

    Attributes:
        outputs: Largest difference of each output, as a share of its largest number; infinity where the two have other
            shapes, or one alone is not finite. Of whole numbers and booleans, 0, or infinity where they should be equal
            and are not.
        changed: Of classes and tokens, how many are other ones, because two outputs are equal within rounding.
        num_rows: Rows that were compared.
    """

    outputs: Mapping[str, float]
    num_rows: int
    changed: Mapping[str, int]

    @property
    def largest(self) -> float:
        """The largest of the outputs' differences."""
        return max(self.outputs.values())

    @property
    def worst(self) -> str:
        """Name of the output that differs most."""
        return max(self.outputs, key=lambda name: self.outputs[name])


def compare(expected: Answers, got: Answers, tolerance: float = TOLERANCES["float32"]) -> Difference:
    """Compare answers by name.

    Args:
        expected: The model's own, arrays [B, ...].
        got: Those of its export.
        tolerance: Share of the largest output within which two outputs count as equal, where one of them is the class.

    Example:
        >>> expected = {"outputs": np.array([[1.0, 2.0]]), "classes": np.array([1])}
        >>> found = compare(expected, {"outputs": np.array([[1.0, 2.002]]), "classes": np.array([1])})
        >>> round(found.largest, 6), found.worst, found.changed
        (0.001, 'outputs', {'classes': 0})
    """
    found, changed = {}, {}
    for name, array in expected.items():
        one = np.asarray(got[name])
        if array.dtype.kind not in "iub" or one.shape != array.shape:
            found[name] = of_array(array, one)
        elif name in _LARGEST_OF and _LARGEST_OF[name] in expected:
            changed[name] = int((one != array).sum())
            found[name] = 0.0 if _is_tie(expected[_LARGEST_OF[name]], array, one, tolerance) else np.inf
        else:
            found[name] = 0.0 if np.array_equal(one, array) else np.inf
    return Difference(found, len(next(iter(expected.values()))), changed)


def of_array(expected: Any, got: Any) -> float:
    """Return the largest difference as a share of the largest number, infinity where one alone is not finite.

    Example:
        >>> of_array(np.array([1.0, 2.0]), np.array([1.0, 2.5])), of_array(np.array([1.0]), np.array([np.nan]))
        (0.25, inf)
    """
    if got.shape != expected.shape:
        return np.inf
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf
    largest = np.abs(expected[finite]).max(initial=0.0)
    differences = np.abs(got[finite] - expected[finite]).max(initial=0.0)
    return float(differences / largest) if largest else float(differences)


def farthest(expected: Answers, got: Answers, name: str) -> int:
    """Return the row whose output of this name differs most; 0 where shapes differ.

    Example:
        >>> farthest({"a": np.zeros((3, 2))}, {"a": np.array([[0, 0], [0, np.nan], [0, 1]])}, "a")
        1
    """
    one, other = (np.asarray(answers[name], np.float64) for answers in (expected, got))
    if one.shape != other.shape:
        return 0
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        differences = np.where(same, 0, np.nan_to_num(np.abs(one - other), nan=np.inf))
    return int(differences.reshape(len(one), -1).max(axis=1).argmax())


def joined(parts: Sequence[Difference]) -> Difference:
    """Return the largest differences of several comparisons.

    Example:
        >>> joined([Difference({"a": 0.1}, 2, {}), Difference({"a": 0.2}, 1, {})])
        Difference(outputs={'a': 0.2}, num_rows=3, changed={})
    """
    return Difference(
        {name: max(part.outputs[name] for part in parts) for name in parts[0].outputs},
        sum(part.num_rows for part in parts),
        {name: sum(part.changed[name] for part in parts) for name in parts[0].changed},
    )


def _is_tie(outputs: np.ndarray, expected: np.ndarray, got: np.ndarray, tolerance: float) -> bool:
    """Say whether what was chosen is as large as what should have been, within rounding."""
    if got.min(initial=0) < 0 or got.max(initial=0) >= outputs.shape[-1]:
        return False
    outputs = outputs.astype(np.float64)
    taken, best = (np.take_along_axis(outputs, one[..., None].astype(np.int64), -1) for one in (got, expected))
    return bool((best - taken <= 2 * tolerance * np.abs(outputs).max(initial=0.0)).all())
