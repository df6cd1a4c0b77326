"""Metrics of answers that somebody else computed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from accelnet.artifact.outputs import named_outputs
from accelnet.evaluating.predictions import make_forward
from accelnet.training.run import Run


def make_score(run: Run, batch: Mapping[str, Any], size: int) -> Callable[[Mapping[str, np.ndarray]], dict[str, float]]:
    """Return the function from answers to the metrics of the run's objective.

    Args:
        run: The run.
        batch: Rows of its data, arrays [N, ...].
        size: Rows of each batch, of which N is a multiple.

    Returns:
        Function of answers by name, arrays [N, ...] in the order of the rows, that returns the metrics by name. A loss
        that computes outputs again, or wants what the model sows, gets those of the run's own model.
    """
    objective, forward, weights = run.experiment.objective, make_forward(run.experiment), (run.params, run.model_state)
    parts = [
        {**jax.tree.map(lambda one, at=at: one[at : at + size], dict(batch)), "mask": np.ones(size, bool)}
        for at in range(0, len(jax.tree.leaves(dict(batch))[0]), size)
    ]
    like = jax.eval_shape(lambda *args: forward(*args)[0], *weights, parts[0])
    names = list(named_outputs(like))

    @jax.jit
    def measured(params: Any, model_state: Any, part: Any, given: Any) -> Any:
        _, prepared, offered = forward(params, model_state, part)
        return objective.totals(jax.tree.unflatten(jax.tree.structure(like), given), prepared, **offered)[2]

    def score(answers: Mapping[str, np.ndarray]) -> dict[str, float]:
        states = objective.empty()
        for number, part in enumerate(parts):
            given = [answers[name][number * size : (number + 1) * size] for name in names]
            states = objective.merge(states, measured(*weights, part, given))
        return {name: float(value) for name, value in objective.compute(states).items()}

    return score
