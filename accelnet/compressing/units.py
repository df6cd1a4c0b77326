"""Which units of a space stay: backward elimination on activations, and the refit of the products that take them in."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from accelnet.compressing.activations import Moments
from accelnet.compressing.probe import Weights
from accelnet.compressing.spaces import Space

Method = Literal["elimination", "magnitude", "activation"]
METHODS: tuple[str, ...] = get_args(Method)
# Of the mean second moment of the inputs: the refit stays near the weights where the rows do not tell.
_RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Consumer:
    """Hold a product that takes in units of a space.

    Attributes:
        moments: Moments of its inputs.
        group: Number of the group.
        unit: For each feature the unit that makes it, -1 for another: int [features].
        second: Means of x x', float64 [features + 1, features + 1] with a constant feature, the last, where something
            behind the product can take up a constant.
        weights: The parameter as a matrix, float64 [features (+ 1), outputs]; of the constant feature zeros.
    """

    moments: Moments
    group: int
    unit: np.ndarray
    second: np.ndarray
    weights: np.ndarray

    @property
    def scale(self) -> float:
        """Mean square of the outputs."""
        square = np.einsum("fo,fg,go->", self.weights, self.second, self.weights)
        return max(float(square), 1e-30)

    @property
    def system(self) -> np.ndarray:
        """Second moments with a ridge on their diagonal."""
        size = float(np.mean(np.diag(self.second))) or 1.0
        return self.second + _RIDGE * size * np.eye(len(self.second))

    def refitted(self, keep: np.ndarray) -> np.ndarray:
        """Return weights that give the outputs from some units alone as well as they can, zeros for the others.

            W' = W_k + (G_kk + r I)^-1 G_kg W_g

        Args:
            keep: Units that stay, int [n].
        """
        gone = (self.unit >= 0) & ~np.isin(self.unit, keep)
        stays = ~gone
        system = self.system
        new = self.weights.copy()
        change = np.linalg.solve(system[np.ix_(stays, stays)], system[np.ix_(stays, gone)] @ self.weights[gone])
        new[stays] += change
        new[gone] = 0
        return new


def consumers_of(
    space: Space, moments: Sequence[Moments], weights: Weights, shifted: Collection[str]
) -> list[Consumer]:
    """Return the products that take in the units of a space.

    Args:
        space: The units.
        moments: Moments of the inputs of products.
        weights: Weights by name, "params....".
        shifted: Paths of parameters behind whose products something can take up a constant.
    """
    found = []
    for one in moments:
        parts = [part for part in space.parts if part.path == one.path and part.axis in one.axes]
        if not parts:
            continue
        parameter = weights[f"params.{one.path}"]
        num_features = one.gram.shape[1]
        places = np.unravel_index(np.arange(num_features), [parameter.shape[axis] for axis in one.axes])
        unit = np.full(num_features, -1)
        for part in parts:
            along = places[one.axes.index(part.axis)] - part.start
            inside = (along >= 0) & (along < space.units * part.each)
            unit[inside] = along[inside] // part.each
        for group, matrix in enumerate(one.matrices(parameter)):
            second, own, of = one.second[group], matrix, unit
            if one.path in shifted:
                mean = one.mean[group]
                second = np.block([[second, mean[:, None]], [mean[None], np.ones((1, 1))]])
                own, of = np.vstack([matrix, np.zeros((1, matrix.shape[1]))]), np.append(unit, -1)
            found.append(Consumer(one, group, of, second, own))
    return found


def kept_units(method: Method, count: int, consumers: Sequence[Consumer], magnitudes: np.ndarray) -> np.ndarray:
    """Choose the units that stay.

    - "elimination": one unit after the other goes, each time that which costs the outputs of its consumers least when
      the others' weights are refitted: sum over consumers of tr(W_u' [(G^-1)_uu]^-1 W_u), relative to their outputs.
    - "activation": those with the largest root mean square of activation times norm of their consumers' weights.
    - "magnitude": those whose own weights have the largest norm; so too where no product takes units in.

    Args:
        method: One of these.
        count: How many stay.
        consumers: Products that take the units in.
        magnitudes: Norm of each unit's own weights, float [units].

    Returns:
        Units in order, int [count].

    Source: the cost is that of Hassibi and Stork, "Second order derivatives for network pruning", 1993, equation 5, for
    a group of weights.
    """
    if method == "elimination" and consumers:
        return _eliminated(count, consumers, len(magnitudes))
    scores = magnitudes
    if method == "activation" and consumers:
        scores = np.zeros(len(magnitudes))
        for one in consumers:
            size = np.diag(one.second) * np.square(one.weights).sum(1) / one.scale
            inside = one.unit >= 0
            scores += np.bincount(one.unit[inside], size[inside], len(magnitudes))
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _eliminated(count: int, consumers: Sequence[Consumer], num_units: int) -> np.ndarray:
    alive = np.ones(num_units, bool)
    states = [_State(one, num_units) for one in consumers]
    while alive.sum() > count:
        costs = np.where(alive, sum(state.costs() for state in states), np.inf)
        worst = int(costs.argmin())
        alive[worst] = False
        for state in states:
            state.remove(worst)
    return np.flatnonzero(alive)


class _State:
    """The inverse of a consumer's second moments and its weights, while units go."""

    def __init__(self, consumer: Consumer, num_units: int) -> None:
        self.inverse = np.linalg.inv(consumer.system)
        self.weights, self.scale = consumer.weights.copy(), consumer.scale
        members = [np.flatnonzero(consumer.unit == unit) for unit in range(num_units)]
        self.members = np.stack(members)  # [units, features of one]

    def costs(self) -> np.ndarray:
        """Return what removing each unit costs, float [units]; of a removed one, nonsense."""
        blocks = self.inverse[self.members[:, :, None], self.members[:, None, :]]
        weights = self.weights[self.members]
        # Of a removed unit all is zero; the identity there keeps the solver quiet.
        blocks = blocks + (np.abs(blocks).max((1, 2)) < 1e-30)[:, None, None] * np.eye(blocks.shape[-1])
        return np.einsum("ufo,ufo->u", weights, np.linalg.solve(blocks, weights)) / self.scale

    def remove(self, unit: int) -> None:
        """Take a unit out, and refit the others."""
        gone = self.members[unit]
        columns = self.inverse[:, gone]
        factor = np.linalg.solve(columns[gone], np.concatenate([columns.T, self.weights[gone]], axis=1))
        size = len(self.inverse)
        self.inverse -= columns @ factor[:, :size]
        self.weights -= columns @ factor[:, size:]
        self.inverse[gone] = self.inverse[:, gone] = 0
        self.weights[gone] = 0
