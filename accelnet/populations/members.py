"""The members of a population: which numbers each has in the Config's fields, and its seed."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from accelnet.arguments import function, instance, integer
from accelnet.errors import UserError
from accelnet.experiment import Experiment, check_experiment
from accelnet.populations.operand import MemberNumber
from accelnet.wording import shown

ExperimentFunction = Callable[[Any], Experiment]


@dataclass(frozen=True)
class Member:
    """One training of a population.

    Attributes:
        seed: Seed of weights, order and noise, uint32.
        fields: Numbers of the Config's fields that differ between members.
    """

    seed: int
    fields: Mapping[str, float] = field(default_factory=dict)


def grid(seeds: Sequence[int], **values: Sequence[float]) -> tuple[Member, ...]:
    """Return every combination of values, each with every seed; seeds vary fastest.

    Example:
        >>> [(member.fields["learning_rate"], member.seed) for member in grid((0, 1), learning_rate=(0.1, 0.2))]
        [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    """
    for name, given in {"seeds": seeds, **values}.items():
        if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
            raise UserError(f"{name} of the grid is {shown(given)}, expected a list")
    combinations = itertools.product(*values.values())
    return tuple(Member(seed, dict(zip(values, numbers, strict=True))) for numbers in combinations for seed in seeds)


@dataclass(frozen=True)
class Sweep:
    """The experiments of a population: one function, called with each member's numbers or with operands for all.

    Args:
        function: Function from a Config to an `Experiment`.
        config: Config whose other fields all members have in common.
        members: At least one member; all have numbers for the same fields.

    Raises:
        UserError: if there is no member, members name different fields, a field is none of the Config's numbers, or
            the sizes of the experiments differ.
    """

    function: ExperimentFunction
    config: Any
    members: Sequence[Member]

    def __post_init__(self) -> None:
        if not self.members:
            raise UserError("the population has no members: give at least one seed and one value")
        function("function", self.function, "a function from a Config to an Experiment")
        for member in self.members:
            instance("a member", member, Member, "a Member(seed, fields)")
            instance("fields of a member", member.fields, Mapping, "a dict of numbers by field")
            if set(member.fields) != set(self.names):
                raise UserError(f"members vary {self.names} and {list(member.fields)}: expected the same fields")
            integer("a member's seed", member.seed, 0, 2**32 - 1)
        for name in self.names:
            check_field(self.config, name)
        # The ends of every field: what changes with a number between them cannot be traced.
        ends = (end(self.members, key=lambda member: member.fields[name]) for name in self.names for end in (min, max))
        if any(_sizes(self._experiment(end.fields)) != _sizes(self.example) for end in ends):
            raise UserError(
                f"the values of {' and '.join(self.names)} change the number of steps or the size of batches: such a "
                "field cannot vary within one program"
            )

    @property
    def names(self) -> list[str]:
        """The fields that vary."""
        return list(self.members[0].fields)

    @cached_property
    def example(self) -> Experiment:
        """The experiment of the first member."""
        return self._experiment(self.members[0].fields).replace(seed=self.members[0].seed)

    def values(self) -> dict[str, np.ndarray]:
        """Return the members' numbers by field, int32 or float32 [P]."""
        columns = {name: [member.fields[name] for member in self.members] for name in self.names}
        whole = {name: all(isinstance(value, int) for value in column) for name, column in columns.items()}
        return {name: np.array(column, np.int32 if whole[name] else np.float32) for name, column in columns.items()}

    def seeds(self) -> np.ndarray:
        """Return the members' seeds, uint32 [P]."""
        return np.array([member.seed for member in self.members], np.uint32)

    def traced(self, numbers: Mapping[str, Any], *, plain: bool = False) -> Experiment:
        """Make the experiment of one member while a program is traced.

        Args:
            numbers: Traced scalars by field.
            plain: Hand them to the function as they are, not as `MemberNumber`s: jax's own functions take only these.

        Raises:
            UserError: if a field decides about the data.
        """
        columns = {name: np.array([member.fields[name] for member in self.members]) for name in self.names}
        fields = numbers if plain else {n: MemberNumber(n, traced, columns[n]) for n, traced in numbers.items()}
        experiment = self._experiment(fields)
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(dict(experiment.data.arrays))):
            raise UserError(f"{' and '.join(self.names)} changes the data, which all members have in common")
        # What is found by running a loss cannot be found while it is traced, and is the same for all.
        vars(experiment).update(order=self.example.order, couples_padding=self.example.couples_padding)
        return experiment

    def experiments(self) -> Iterator[Experiment]:
        """Make the experiment of every combination of numbers, with plain numbers."""
        return map(self._experiment, map(dict, dict.fromkeys(tuple(member.fields.items()) for member in self.members)))

    def _experiment(self, fields: Mapping[str, Any]) -> Experiment:
        return check_experiment(self.function(dataclasses.replace(self.config, **fields)))


def _sizes(experiment: Experiment) -> tuple[Any, ...]:
    splits = tuple((name, rows.start, rows.stop) for name, rows in experiment.data.splits.items())
    return experiment.total_steps, experiment.order, experiment.resolved_eval_batch_size, splits


def check_field(config: Any, name: str) -> float:
    """Return the value of a Config's field that can vary between members.

    Raises:
        UserError: if there is no such field, it is the seed, or holds no number.

    Example:
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     learning_rate: float = 0.1
        >>> check_field(Config(), "learning_rate")
        0.1
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise UserError(f"config is {shown(config)}, expected a Config, an instance of a dataclass")
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "seed"}
    numbers = [name for name, value in values.items() if _is_number(value)]
    if name not in numbers:
        raise UserError(f"{name} is no field that can vary, expected a number of the Config's: {', '.join(numbers)}")
    return values[name]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
