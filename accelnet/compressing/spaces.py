"""Units of a network: which parts of which weights belong to one unit, found and proven by running the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from accelnet.compressing.probe import Probe, Weights, difference

# Largest difference, relative to the largest output, of what is equal in exact arithmetic: about 1e-6 is usual.
EQUAL = 1e-5


@dataclass(frozen=True, order=True)
class Part:
    """Say where the units of a space lie along an axis of a weight: unit u from `start + u * each`, `each` elements.

    Attributes:
        name: Name of the weight, "params.layers.0.linear.kernel".
        axis: Its axis.
        start: First element.
        each: Elements of one unit.
        features: Inputs of the product that sums over the axis; 0 where none does, and the weight makes units.
    """

    name: str
    axis: int
    start: int
    each: int
    features: int = 0

    @property
    def path(self) -> str:
        """The weight's path among the parameters, or in the model's state."""
        return self.name.partition(".")[2]

    def elements(self, units: np.ndarray) -> np.ndarray:
        """Return the elements of some units along the axis.

        Example:
            >>> Part("params.kernel", 0, 10, 2).elements(np.array([0, 3])).tolist()
            [10, 11, 16, 17]
        """
        return (self.start + units[:, None] * self.each + np.arange(self.each)).ravel()


@dataclass(frozen=True)
class Space:
    """Hold units that can be exchanged for each other.

    Attributes:
        units: Number of them.
        per_step: How many go when the width becomes smaller by its step.
        parts: Where they lie.
    """

    units: int
    per_step: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class WidthAxis:
    """Describe an axis that becomes shorter with a width.

    Attributes:
        name: Name of the weight.
        axis: Its axis.
        size: Number of its elements.
        lost: How many go with one step of the width.
        grown: How many of them the width makes; the others stay.
    """

    name: str
    axis: int
    size: int
    lost: int
    grown: int


def find_spaces(probe: Probe, axes: Sequence[WidthAxis]) -> tuple[list[Space], list[WidthAxis]]:
    """Find the units that a width counts.

    A unit's place in an axis is guessed: the axis holds them one after the other, or is cut into equal blocks (gates of
    a cell, places of an image, heads), or holds a unit's elements side by side. Of each guess weights that belong to
    the same units are found by derivatives: where the rows of all products that take in half of the units are zero, no
    weight that makes these units has an effect; where one product's rows are not, those weights have which make its
    units. The guess is true if the units can be exchanged: with the weights of the units in another order the outputs
    stay what they were, and with one of these weights in that order they do not.

    Args:
        probe: Model and rows.
        axes: Axes that become shorter.

    Returns:
        The spaces, and the axes of which nothing is proven.
    """
    found: list[Space] = []
    left, tried = list(axes), set()
    for guess in _guesses(axes):
        features = {axis: probe.contracted.get((axis.name, axis.axis), 0) for axis in left}
        parts = {axis: cut for axis in left if (cut := _cut(axis, features[axis], *guess))}
        units, known = guess[0], tuple(map(tuple, parts.values()))
        if not parts or known in tried:
            continue
        tried.add(known)
        every = [part for cut in parts.values() for part in cut]
        proven = [one for one in _together(probe, units, every) if _exchangeable(probe, units, one)]
        rest = [part for part in every if not any(part in one for one in proven)]
        if rest and _exchangeable(probe, units, rest):  # what has no product of its own, as behind a LayerNorm
            proven.append(rest)
        # An axis belongs to the units whole or not at all.
        while True:
            covered = {part for one in proven for part in one}
            cut_up = {axis for axis, cut in parts.items() if covered & set(cut) and not set(cut) <= covered}
            kept = [one for one in proven if not any(set(parts[axis]) & set(one) for axis in cut_up)]
            if len(kept) == len(proven):
                break
            proven = kept
        for one in proven:
            axis = next(axis for axis, cut in parts.items() if one[0] in cut)
            per_step = axis.lost * units // axis.grown
            found.append(Space(units, per_step, tuple(sorted(one))))
        left = [axis for axis in left if axis not in parts or not set(parts[axis]) <= covered]
    return found, left


def _guesses(axes: Sequence[WidthAxis]) -> list[tuple[int, int | None, bool]]:
    """Return guesses: the number of units, how many elements each has side by side, what stands first in the axis.

    None for the second means as many as there are; the last, whether the width's elements come before the others.
    """
    numbers = sorted({axis.grown // k for axis in axes for k in _divisors(axis.lost)}, reverse=True)
    sides = sorted({k for axis in axes for k in _divisors(axis.lost) if k > 1})
    whole = all(axis.grown == axis.size for axis in axes)
    return list(product(numbers, (1, None, *sides), (True,) if whole else (True, False)))


def _divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]


def _cut(axis: WidthAxis, features: int, units: int, each: int | None, first: bool) -> list[Part]:
    """Cut an axis into blocks of units; empty if it does not divide."""
    if axis.grown % units or (axis.lost * units) % axis.grown:
        return []
    times = axis.grown // units
    side = times if each is None else each if times % each == 0 else 1
    start = 0 if first else axis.size - axis.grown
    return [Part(axis.name, axis.axis, start + i * units * side, side, features) for i in range(times // side)]


def _together(probe: Probe, units: int, parts: Sequence[Part]) -> list[list[Part]]:
    """Group parts that make and take in the same units."""
    takers = [part for part in parts if part.features]
    makers = [part for part in parts if not part.features]
    half = np.sort(np.random.default_rng(0).permutation(units)[: (units + 1) // 2])
    cut = probe.gradients(zeroed(probe.weights, [(part, half) for part in takers]))
    makers = [part for part in makers if part.name in cut and not _has_effect(cut, part, half)]
    group = {part: {part} for part in (*takers, *makers)}
    for taker in takers if makers else ():
        others = [(part, half) for part in takers if part != taker]
        gradients = probe.gradients(zeroed(probe.weights, others))
        for maker in makers:
            if _has_effect(gradients, maker, half) and group[maker] is not group[taker]:
                both = group[maker] | group[taker]
                group.update(dict.fromkeys(both, both))
    return [list(one) for one in {id(one): one for one in group.values()}.values() if len(one) > 1]


def _has_effect(gradients: Weights, part: Part, units: np.ndarray) -> bool:
    return bool(np.take(gradients[part.name], part.elements(units), part.axis).any())


def _exchangeable(probe: Probe, units: int, parts: Sequence[Part]) -> bool:
    if units < 2:
        return False
    order = np.random.default_rng(1).permutation(units)
    if (order == np.arange(units)).all():
        order = np.roll(order, 1)
    whole = probe.outputs(probe.weights)
    if difference(whole, probe.outputs(_ordered(probe.weights, parts, order))) > EQUAL:
        return False
    return any(difference(whole, probe.outputs(_ordered(probe.weights, [one], order))) > 100 * EQUAL for one in parts)


def _ordered(weights: Weights, parts: Iterable[Part], order: np.ndarray) -> Weights:
    changed = dict(weights)
    for part in parts:
        array, axis = changed[part.name], part.axis
        elements = np.arange(array.shape[axis])
        elements[part.elements(np.arange(len(order)))] = part.elements(order)
        changed[part.name] = np.take(array, elements, axis)
    return changed


def zeroed(weights: Weights, gone: Iterable[tuple[Part, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return weights with zeros for some units of some parts.

    Example:
        >>> zeroed({"params.bias": np.ones(4)}, [(Part("params.bias", 0, 0, 1), np.array([1]))])["params.bias"].tolist()
        [1.0, 0.0, 1.0, 1.0]
    """
    changed = dict(weights)
    for part, units in gone:
        array = np.array(changed[part.name])
        np.moveaxis(array, part.axis, 0)[part.elements(units)] = 0
        changed[part.name] = array
    return changed


def sliced(weights: Weights, spaces: Sequence[Space], keep: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return weights with some units of each space alone.

    Args:
        weights: Weights by name.
        spaces: Spaces.
        keep: For each of them the units that stay, int [n].

    Example:
        >>> space = Space(4, 1, (Part("params.bias", 0, 0, 1),))
        >>> sliced({"params.bias": np.arange(4)}, [space], [np.array([0, 3])])["params.bias"].tolist()
        [0, 3]
    """
    gone: dict[tuple[str, int], list[np.ndarray]] = {}
    for space, kept in zip(spaces, keep, strict=True):
        others = np.setdiff1d(np.arange(space.units), kept)
        for part in space.parts:
            gone.setdefault((part.name, part.axis), []).append(part.elements(others))
    changed = dict(weights)
    for (name, axis), elements in gone.items():
        changed[name] = np.delete(changed[name], np.concatenate(elements), axis)
    return changed
