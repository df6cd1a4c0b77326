"""How well layers could have low ranks, and which ranks lose least for what they save."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from accelnet.arguments import word
from accelnet.compressing.sensitivity import Sensitivity

Saving = Literal["flops", "bytes"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Hold how well a layer's kernel W can have a low rank, x' W = (x' D) U.

    The best D U of a rank, for inputs of these moments, is W followed by a projection of the outputs on their first
    principal components. Where the layer has a bias, what is lost of the outputs' mean is added to it.

    Attributes:
        path: Path of the layer, "" where it is the model.
        kernel: Name of its kernel.
        matrix: W, float64 [features, outputs].
        mean: Means of the inputs, float64 [features]; zeros of a layer without a bias, which cannot make up for them.
        components: Principal components of the outputs, float64 [outputs, outputs], the largest first.
        variances: Outputs' variance along each, float64 [outputs].
        per_example: Products of one example.
        item_bytes: Bytes of one of the kernel's numbers.
        weight: How far the model's outputs move for each unit of the layer's error, as it was measured.
    """

    path: str
    kernel: str
    matrix: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    per_example: float
    item_bytes: int
    weight: float = 1.0

    @property
    def largest(self) -> int:
        """Largest rank with which two products are fewer multiplications than one; 0 where there is none."""
        features, outputs = self.matrix.shape
        return (features * outputs - 1) // (features + outputs)

    @property
    def ranks(self) -> list[int]:
        """Ranks worth trying: where many are smaller, multiples of 4 or of 8, which processors like."""
        step = 8 if self.largest >= 64 else 4 if self.largest >= 16 else 1
        return [*range(step, self.largest + 1, step)]

    def error(self, rank: int) -> float:
        """Return the share of the outputs' variance that is lost at a rank."""
        return float(self.variances[rank:].sum() / max(self.variances.sum(), 1e-30))

    def saving(self, rank: int, of: Saving) -> float:
        """Return how many operations of one example, or bytes, a rank saves."""
        features, outputs = self.matrix.shape
        numbers = features * outputs - rank * (features + outputs)
        return numbers * (2 * self.per_example if of == "flops" else self.item_bytes)

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return D [features, rank], U [rank, outputs], and what the bias gains [outputs]."""
        up = self.components[:, :rank].T
        down = self.matrix @ up.T
        # Equally long columns of the one and rows of the other, since both are trained at one rate.
        length = np.sqrt(np.linalg.norm(down, axis=0)) + 1e-12
        return down / length, up * length[:, None], self.mean @ (self.matrix - down @ up)


def choose_ranks(found: Mapping[str, Spectrum], saving: float, *, of: Saving = "flops") -> dict[str, int] | None:
    """Choose ranks of layers that save so much with the least error, summed over the layers.

    A layer's error is the share of its outputs' variance that is lost, times the layer's weight. Ranks are lowered in
    the order of the error that a step adds for each operation that it saves, along the lower convex hull of each
    layer's errors, so a layer for which no rank pays stays whole.

    Args:
        found: `Spectrum` by layer, as `spectra` finds them.
        saving: Operations of one example, or bytes, to be saved.
        of: What is saved: "flops" or "bytes".

    Returns:
        Ranks by layer; None where even rank 1 everywhere does not save so much.

    Example:
        >>> variances, eye = np.array([8.0, 4.0, 1.0, 0.1]), np.eye(4)
        >>> one = Spectrum("a", "kernel", eye, eye[0], eye, variances, 1.0, 4)
        >>> choose_ranks({"a": one}, 0), choose_ranks({"a": one}, 16), choose_ranks({"a": one}, 99)
        ({}, {'a': 1}, None)
    """
    word("of", of, ("flops", "bytes"))
    steps = sorted(
        (slope, path, rank, gain)
        for path, one in found.items()
        for slope, rank, gain in _steps(one, of)
    )  # fmt: skip
    ranks: dict[str, int] = {}
    left = saving
    for _, path, rank, gain in steps:
        if left <= 0:
            break
        one, before = found[path], ranks.get(path)
        whole = left + (one.saving(before, of) if before else 0.0)
        # Of the last step only as much as it takes.
        enough = [r for r in one.ranks if r >= rank and one.saving(r, of) >= whole]
        ranks[path] = max(enough) if enough else rank
        left -= gain
    return ranks if left <= 0 else None


def _steps(one: Spectrum, of: Saving) -> list[tuple[float, int, float]]:
    """Return the steps along the lower convex hull of a layer's errors: error per saving, the rank after it, saving."""
    hull: list[tuple[float, float, int]] = [(0.0, 0.0, 0)]
    for rank in reversed(one.ranks):
        point = one.saving(rank, of), one.weight * one.error(rank), rank
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return [(_slope(before, after), after[2], after[0] - before[0]) for before, after in pairwise(hull)]


def _slope(before: tuple[float, float, int], after: tuple[float, float, int]) -> float:
    return (after[1] - before[1]) / (after[0] - before[0])


def rank_sensitivity(found: Mapping[str, Spectrum]) -> Sensitivity:
    """Return how much each layer's outputs change with its rank.

    Example:
        >>> eye = np.eye(4)
        >>> one = Spectrum("a", "kernel", eye, eye[0], eye, np.array([8.0, 4.0, 2.0, 2.0]), 1.0, 4)
        >>> rank_sensitivity({"a": one}).layers
        {'a': [(1, 0.5)]}
    """
    layers = {path: [(rank, one.error(rank)) for rank in one.ranks] for path, one in found.items()}
    return Sensitivity("Lower ranks", "rank", "share of the variance of a layer's outputs that is lost", layers)
