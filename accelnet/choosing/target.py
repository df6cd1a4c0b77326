"""How soon the members of a population reach a value of a metric."""

import numpy as np

from accelnet.populations.results import PopulationRun


def common_target(runs: dict[str, PopulationRun], metric: str, lower: bool) -> float:
    """Return the best value that every candidate reaches in half of its trainings."""
    best = np.nanmin if lower else np.nanmax
    reached = [np.median(best(finite_curve(run, metric, lower), axis=0)) for run in runs.values()]
    return float(max(reached) if lower else min(reached))


def finite_curve(run: PopulationRun, metric: str, lower: bool) -> np.ndarray:
    """Return the curve of a metric, float [E, P], with the worst value where it is not finite."""
    values = run.curves[metric]
    return np.where(np.isfinite(values), values, np.inf if lower else -np.inf)


def steps_to(steps: np.ndarray, values: np.ndarray, target: float, lower: bool) -> np.ndarray:
    """Return at which step each curve first reaches a target, in proportion between two evaluations.

    Args:
        steps: Steps of the evaluations, int [E], rising.
        values: Values of the curves, float [E, P].
        target: Value to reach.
        lower: Whether less is better.

    Returns:
        Steps, float [P]; infinite for a curve that never does.

    Example:
        >>> steps_to(np.array([0, 10, 20]), np.array([[4.0, 4.0], [2.0, 3.0], [1.0, 3.0]]), 1.5, True)
        array([15., inf])
    """
    above = (values - target) * (1 if lower else -1)
    reached = above <= 0
    at = np.where(reached.any(axis=0), reached.argmax(axis=0), 0)
    member = np.arange(values.shape[1])
    before = np.maximum(at - 1, 0)
    fall = above[before, member] - above[at, member]
    # From an infinite value there is no proportion; the later step counts.
    share = np.ones(len(at))
    known = np.isfinite(fall) & (fall > 0)
    share[known] = (above[before, member][known]) / fall[known]
    found = steps[before] + share * (steps[at] - steps[before])
    return np.where(reached.any(axis=0), found, np.inf)
