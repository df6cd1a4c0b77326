"""Checks of an experiment's settings, before anything is built: kinds, ranges, and names that must exist."""

from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, get_args

import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from accelnet.arguments import check_patterns, instance, integer, names, number, word
from accelnet.data.dataset import Data
from accelnet.errors import UserError
from accelnet.models.precision import Precision
from accelnet.objectives.objective import Objective
from accelnet.training.events import EarlyStopping, Every, check_events
from accelnet.wording import shown

Remat = Literal["none", "products", "blocks"]

MOST_STEPS = 2**31 - 1  # the state counts in int32


def check_settings(experiment: Any) -> None:
    """Refuse an `Experiment` whose arguments are of another kind, out of range, or name what does not exist.

    Args:
        experiment: The `Experiment`, with an `Objective` and tuples.

    Raises:
        UserError: for the first wrong argument.
    """
    _check_kinds(experiment)
    _check_elements(experiment)
    _check_lengths(experiment)
    _check_names(experiment)


def settings_of(experiment: Any) -> dict[str, Any]:
    """Return settings that every experiment has, for other tools' tables."""
    own = {"batch_size": experiment.order.batch_size, "steps": experiment.total_steps}
    return {**own, "seed": experiment.seed, "precision": experiment.precision}


def _check_kinds(experiment: Any) -> None:
    rhythm = (Every | None, "a rhythm, as Every(steps=10), or None")
    for name, (kind, expected) in {
        "data": (Data, "a Data, as an.data.from_arrays(...)"),
        "objective": (Objective, "an Objective, as an.objectives.squared_error(), or a loss function"),
        "early_stopping": (EarlyStopping | None, "an EarlyStopping or None"),
        "on_device": (bool | None, "True, False or None"),
        "deterministic": (bool, "True or False"),
        "config": (Mapping, "a dict"),
        "log_every": rhythm,
        "eval_every": rhythm,
        "save_every": rhythm,
    }.items():
        instance(name, getattr(experiment, name), kind, expected)


def _check_elements(experiment: Any) -> None:
    check_events(experiment.events)
    for rule in experiment.sharding_rules:
        if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)):
            raise UserError(f"sharding_rules has {shown(rule)} in it, expected pairs (pattern, PartitionSpec)")
        check_patterns("sharding_rules", [rule[0]])
        instance(f"the spec of the sharding rule {rule[0]!r}", rule[1], PartitionSpec, "a PartitionSpec")
    check_patterns("frozen", experiment.frozen)
    for name, value in experiment.config.items():
        word("a name in config", name)
        if not _is_plain(value):
            raise UserError(
                f"config has {name}={shown(value)}, expected numbers, text, lists and dicts: what is recorded has "
                "to be the same in another process"
            )


def _check_lengths(experiment: Any) -> None:
    epochs, steps, batch_size = experiment.epochs, experiment.steps, experiment.batch_size
    if (epochs is None) == (steps is None):
        raise UserError(f"epochs is {epochs} and steps is {steps}: give exactly one of them")
    if epochs is not None:
        number("epochs", epochs, high=MOST_STEPS, above=0)
    for name in ("steps", "eval_batch_size", "microbatch_size"):
        if getattr(experiment, name) is not None:
            integer(name, getattr(experiment, name), 1, MOST_STEPS)
    integer("keep_last", experiment.keep_last, 1, MOST_STEPS)
    integer("keep_best", experiment.keep_best, 0, MOST_STEPS)
    integer("seed", experiment.seed, 0, 2**32 - 1)
    if not isinstance(batch_size, str):
        integer("batch_size", batch_size, 1)
    elif batch_size != "full":
        raise UserError(f'batch_size is {batch_size!r}, expected a whole number or "full"')
    stream = experiment.data.stream
    if stream is not None and batch_size != stream.batch_size:
        raise UserError(
            f"batch_size is {batch_size!r}, expected {stream.batch_size}, the size of the batches that stream "
            f"{experiment.data.name!r} gives"
        )


def _check_names(experiment: Any) -> None:
    word("name", experiment.name)
    word("precision", experiment.precision, get_args(Precision))
    word("remat", experiment.remat, get_args(Remat))
    data, early_stopping, objective = experiment.data, experiment.early_stopping, experiment.objective
    used, validates = {"best_metric": experiment.best_metric}, data.num_examples("validation")
    if early_stopping is not None:
        used["early_stopping.metric"] = early_stopping.metric
        if not validates:
            raise UserError(f"early_stopping needs a validation split, and data {data.name!r} has none")
    for name, metric in used.items():
        word(name, metric, tuple(objective.metrics))
        if validates:
            objective.lower_is_better(metric)
    if experiment.final_evaluation is not None:
        for split in names("final_evaluation", experiment.final_evaluation):
            word("a split of final_evaluation", split, tuple(data.splits))
            if split == "train" and data.stream is not None:
                raise UserError(f"final_evaluation has 'train', which of a stream, {data.name!r}, cannot be evaluated")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    # Of a population's experiments, numbers that differ between members are traced.
    traced = isinstance(value, Tracer) or hasattr(value, "__jax_array__")
    return traced or value is None or isinstance(value, bool | int | float | str | PurePath | np.generic | Enum)
