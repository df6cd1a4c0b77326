"""How well layers could have low ranks, and which ranks lose least for what they save."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
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
        second: Means of x x' less those of the mean, float64 [features, features].
        per_example: Products of one example.
        item_bytes: Bytes of one of the kernel's numbers.
        weight: How far the model's outputs move for each unit of the layer's error, as it was measured.
    """

    path: str
    kernel: str
    matrix: np.ndarray
    mean: np.ndarray
    second: np.ndarray
    per_example: float
    item_bytes: int
    weight: float = 1.0

    @property
    def numbers_of_one(self) -> int:
        """Numbers of the two kernels for each unit of rank."""
        return sum(self.matrix.shape)

    @property
    def products_of_one(self) -> float:
        """Multiplications of one example for each unit of rank."""
        return self.per_example * sum(self.matrix.shape)

    @property
    def largest(self) -> int:
        """Largest rank at which the two kernels are smaller and fewer multiplications than one; 0: there is none."""
        size = self.matrix.size
        return int(min((size - 1) // self.numbers_of_one, (self.per_example * size - 1) // self.products_of_one))

    @property
    def ranks(self) -> list[int]:
        """Ranks worth trying: where many are smaller, multiples of 4 or of 8, which processors like."""
        step = 8 if self.largest >= 64 else 4 if self.largest >= 16 else 1
        return [*range(step, self.largest + 1, step)]

    def saving(self, rank: int, of: Saving) -> float:
        """Return how many operations of one example, or bytes, a rank saves."""
        if of == "bytes":
            return self.item_bytes * (self.matrix.size - rank * self.numbers_of_one)
        return 2 * (self.per_example * self.matrix.size - rank * self.products_of_one)

    @cached_property
    def variance(self) -> float:
        """Variance of the outputs, summed over them."""
        return max(float(np.sum(self.matrix * (self.second @ self.matrix))), 1e-30)

    @cached_property
    def _components(self) -> tuple[np.ndarray, np.ndarray]:
        """Principal components [outputs, outputs] of the outputs, and their variances, the largest first."""
        return _principal(self.matrix.T @ self.second @ self.matrix)

    def error(self, rank: int) -> float:
        """Return the share of the outputs' variance that is lost at a rank."""
        return float(self._components[1][rank:].sum() / self.variance)

    def _kernels(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return D [..., rank] and U [..., rank, outputs]."""
        up = self._components[0][:, :rank].T
        return self.matrix @ up.T, up

    def product(self, rank: int) -> np.ndarray:
        """Return the matrix of a rank that takes the place of W, [features, outputs]."""
        down, up = self._kernels(rank)
        return down @ up

    def shift(self, rank: int) -> np.ndarray:
        """Return what the bias gains at a rank, [outputs]."""
        return self.mean @ (self.matrix - self.product(rank))

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return D and U, with columns of the one as long as rows of the other: both are trained at one rate."""
        down, up = self._kernels(rank)
        lengths = np.sqrt((down**2).sum(0)), np.sqrt((up**2).sum((*range(up.ndim - 2), -1)))
        scale = np.sqrt((lengths[1] + 1e-12) / (lengths[0] + 1e-12))
        return down * scale, up / scale[:, None]


@dataclass(frozen=True, eq=False, kw_only=True)
class SeparatedSpectrum(Spectrum):
    """Hold how well a convolution's kernels can be columns to few channels, and then rows of these.

    D are the principal components of the columns of W, of inputs of these moments, where rows are independent; U is the
    least-squares fit of the outputs, exactly.

    Attributes:
        window: Height and width of the kernels, in pixels.
        step: Step of the kernels along the rows, in pixels: columns are needed in between, too.
    """

    window: tuple[int, int]
    step: int

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        height, width = self.window
        return height, width, len(self.matrix) // (height * width), self.matrix.shape[1]

    @property
    def numbers_of_one(self) -> int:
        height, width, channels, outputs = self._shape
        return height * channels + width * outputs

    @property
    def products_of_one(self) -> float:
        height, width, channels, outputs = self._shape
        return self.per_example * (self.step * height * channels + width * outputs)

    @cached_property
    def _down(self) -> np.ndarray:
        """Kernels of columns, [height * channels, largest]."""
        height, width, channels, outputs = self._shape
        columns = self.matrix.reshape(self._shape).transpose(0, 2, 1, 3).reshape(height * channels, width * outputs)
        moments = self.second.reshape(*self._shape[:3], *self._shape[:3])
        moments = np.einsum("hwcgwd->hcgd", moments).reshape(height * channels, height * channels)
        components, _ = _principal(columns.T @ moments @ columns)
        return columns @ components[:, : self.largest]

    @cached_property
    def _fit(self) -> tuple[np.ndarray, np.ndarray]:
        """Moments of what the columns put out, [width, rank, width, rank], and with the outputs, [width, rank, O]."""
        height, width, channels, _ = self._shape
        down = self._down.reshape(height, channels, -1)
        flat = (self.second @ self.matrix).reshape(self._shape)
        half = np.tensordot(down, self.second.reshape(height, width, channels, -1), ((0, 1), (0, 2)))
        half = half.reshape(-1, width, height, width, channels)
        moments = np.tensordot(half, down, ((2, 4), (0, 1)))
        return moments.transpose(1, 0, 2, 3), np.tensordot(down, flat, ((0, 1), (0, 2))).transpose(1, 0, 2)

    def _solved(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return U [width * rank, outputs] and the moments with the outputs, of the same shape."""
        width = self.window[1]
        moments, outputs = self._fit
        moments = moments[:, :rank, :, :rank].reshape(width * rank, -1)
        outputs = outputs[:, :rank].reshape(width * rank, -1)
        ridge = 1e-9 * max(np.trace(moments) / len(moments), 1e-30)
        return np.linalg.solve(moments + ridge * np.eye(len(moments)), outputs), outputs

    def error(self, rank: int) -> float:
        return self._errors.setdefault(rank, max(0.0, 1 - float(np.vdot(*self._solved(rank))) / self.variance))

    @cached_property
    def _errors(self) -> dict[int, float]:
        return {}

    def _kernels(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        up, _ = self._solved(rank)
        return self._down[:, :rank], up.reshape(self.window[1], rank, -1)

    def product(self, rank: int) -> np.ndarray:
        down, up = self._kernels(rank)
        height, _, channels, _ = self._shape
        return np.einsum("hcr,wro->hwco", down.reshape(height, channels, rank), up).reshape(self.matrix.shape)


def _principal(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    variances, components = np.linalg.eigh(covariance)
    return components[:, ::-1], np.maximum(variances[::-1], 0.0)


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
        >>> one = Spectrum("a", "kernel", np.eye(4), np.zeros(4), np.diag([8.0, 4.0, 1.0, 0.1]), 1.0, 4)
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
        >>> one = Spectrum("a", "kernel", np.eye(4), np.zeros(4), np.diag([8.0, 4.0, 2.0, 2.0]), 1.0, 4)
        >>> rank_sensitivity({"a": one}).layers
        {'a': [(1, 0.5)]}
    """
    layers = {path: [(rank, one.error(rank)) for rank in one.ranks] for path, one in found.items()}
    return Sensitivity("Lower ranks", "rank", "share of the variance of a layer's outputs that is lost", layers)
