"""What is compared: a function from a Config to an experiment, with a Config, under a name."""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelnet.arguments import function as function_of
from accelnet.arguments import names as names_of
from accelnet.arguments import word
from accelnet.choosing.schedule_of import schedule_of
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.optim import algorithms
from accelnet.optim.schedules import Schedule
from accelnet.populations.members import ExperimentFunction
from accelnet.training.state import abstract_state


@dataclass(frozen=True)
class Contender:
    """One of those that are compared.

    Attributes:
        name: Name in results.
        function: Function from a Config to an `Experiment`.
        config: Config with a field `learning_rate`, which is tuned.
    """

    name: str
    function: ExperimentFunction
    config: Any

    def __post_init__(self) -> None:
        word("the name of a candidate", self.name)
        function_of(f"the function of {self.name}", self.function, "a function from a Config to an Experiment")


def optimizer_candidates(function: ExperimentFunction, config: Any, names: Sequence[str]) -> list[Contender]:
    """Return the experiment with other optimizers.

    Each takes the place of the script's whole optimizer: with the schedule that the script's one follows, with the
    Config's `weight_decay` where there is such a field, and otherwise with the algorithm's own defaults.

    Raises:
        UserError: if a name is none of `accelnet.optim.algorithms`, or, when used, the schedule of the script's
            optimizer cannot be told.
    """
    names = names_of("optimizers", names)
    unknown = [name for name in names if name not in algorithms]
    if unknown:
        raise UserError(f"{', '.join(unknown)} is no optimizer, expected some of {', '.join(sorted(algorithms))}")
    return [Contender(name, _with_optimizer(function, name), config) for name in names]


def _with_optimizer(function: ExperimentFunction, name: str) -> ExperimentFunction:
    make, schedules = algorithms[name], dict[int, Schedule]()

    def changed(config: Any) -> Experiment:
        made = function(config)
        if made.total_steps not in schedules:
            # With a rate that is a number: this one may be traced.
            plain = function(dataclasses.replace(config, learning_rate=1.0))
            schedules[made.total_steps] = schedule_of(plain.optimizer, made.total_steps, abstract_state(plain).params)
        settings: dict[str, Any] = {"schedule": schedules[made.total_steps]}
        if hasattr(config, "weight_decay") and "weight_decay" in inspect.signature(make).parameters:
            settings["weight_decay"] = config.weight_decay
        return made.replace(optimizer=make(config.learning_rate, **settings))

    return changed


def without_test(function: ExperimentFunction) -> ExperimentFunction:
    """Return the function to experiments whose data has no test split: it cannot be looked at by accident."""

    def changed(config: Any) -> Experiment:
        made = function(config)
        splits = {name: rows for name, rows in made.data.splits.items() if name != "test"}
        return made.replace(data=dataclasses.replace(made.data, splits=splits))

    return changed
