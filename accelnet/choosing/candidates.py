"""What is compared: a function from a Config to an experiment, with a Config, under a name."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.optim import AlgorithmName, algorithms, hyperparams, learning_rate

ExperimentFunction = Callable[[Any], Experiment]


@dataclass(frozen=True)
class Candidate:
    """One of those that are compared.

    Attributes:
        name: in results.
        function: from a Config to an `Experiment`.
        config: with a field `learning_rate`, which is tuned.
    """

    name: str
    function: ExperimentFunction
    config: Any


def optimizer_candidates(function: ExperimentFunction, config: Any, names: Sequence[str]) -> list[Candidate]:
    """Return the experiment with other optimizers.

    Each takes the place of the script's whole optimizer: with the schedule that the script's one follows, with the
    Config's `weight_decay` where there is such a field, and otherwise with the algorithm's own defaults.

    Args:
        function: from a Config to an `Experiment`.
        config: of the script.
        names: of algorithms, as in `accelnet.optim.algorithms`.

    Raises:
        UserError: if a name is unknown.
    """
    unknown = [name for name in names if name not in algorithms]
    if unknown:
        raise UserError(f"{', '.join(unknown)} is no optimizer, expected some of {', '.join(get_args(AlgorithmName))}")
    return [Candidate(name, _with_optimizer(function, cast(AlgorithmName, name)), config) for name in names]


def _with_optimizer(function: ExperimentFunction, name: AlgorithmName) -> ExperimentFunction:
    make, schedules = algorithms[name], dict[int, optax.Schedule]()

    def changed(config: Any) -> Experiment:
        made = function(config)
        if made.total_steps not in schedules:
            # With a rate that is a number: this one may be traced.
            plain = function(dataclasses.replace(config, learning_rate=1.0))
            schedules[made.total_steps] = schedule_of(plain.optimizer, made.total_steps)
        settings = {"schedule": schedules[made.total_steps]}
        if hasattr(config, "weight_decay") and "weight_decay" in inspect.signature(make).parameters:
            settings["weight_decay"] = config.weight_decay
        return made.replace(optimizer=make(config.learning_rate, **settings))

    return changed


def schedule_of(optimizer: optax.GradientTransformation, num_steps: int) -> optax.Schedule:
    """Return the schedule that an optimizer follows, as a table of what it did to its learning rate.

    Args:
        optimizer: any chain; one without a learning rate in its state follows none.
        num_steps: of the run.

    Example:
        >>> from accelnet.optim import adam, schedules
        >>> schedule = schedule_of(adam(0.1, schedule=schedules.cosine(100)), 100)
        >>> [round(float(schedule(step)), 4) for step in (0, 50, 99)]
        [1.0, 0.5, 0.0002]
    """

    def factors() -> Any:
        params = {"kernel": jnp.zeros((2, 2))}

        def body(state: Any, _: Any) -> Any:
            _, state = optimizer.update(params, state, params)
            rate = learning_rate(state)
            return state, jnp.float32(1) if rate is None else rate / hyperparams(state)["learning_rate"]

        return jax.lax.scan(body, optimizer.init(params), length=num_steps)[1]

    with jax.ensure_compile_time_eval():
        table = np.asarray(jax.jit(factors)(), np.float32)

    def schedule(step: Any) -> Any:
        return jnp.asarray(table)[jnp.clip(step, 0, num_steps - 1)]

    return schedule


def without_test(function: ExperimentFunction) -> ExperimentFunction:
    """Return the function to experiments whose data has no test split: it cannot be looked at by accident."""

    def changed(config: Any) -> Experiment:
        made = function(config)
        splits = {name: rows for name, rows in made.data.splits.items() if name != "test"}
        return made.replace(data=dataclasses.replace(made.data, splits=splits))

    return changed
