"""The experiment script whose command line it is: its function, its Config, and experiments made from them."""

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelnet.errors import UserError
from accelnet.experiment import Experiment

ExperimentFunction = Callable[[Any], Experiment]


class Config:
    """Stand, in the signature of a verb, for the Config of whatever script it is called in."""


@dataclass(frozen=True)
class Script:
    """What a verb knows of the script.

    Args:
        function: from the script's Config to an `Experiment`.
        after_train: called with the finished `Run` of `train`. None: nothing is.

    Source: original.
    """

    function: ExperimentFunction
    after_train: Callable[[Any], None] | None = None

    @cached_property
    def config_type(self) -> type:
        """The script's Config, which the annotation of its function's parameter names.

        Raises:
            TypeError: if the function has not one parameter that is annotated with a dataclass.
        """
        hints = typing.get_type_hints(self.function)
        kinds = [kind for name, kind in hints.items() if name != "return" and dataclasses.is_dataclass(kind)]
        if len(kinds) != 1:
            raise TypeError(
                f"{self.function.__name__} has parameters {hints}, expected one that is annotated with a dataclass"
            )
        return typing.cast(type, kinds[0])

    @property
    def name(self) -> str:
        """The script's file, without its folder and ending."""
        return Path(self.function.__globals__.get("__file__", "experiment")).stem  # type: ignore[attr-defined]

    def experiment(self, config: Any) -> Experiment:
        """Make the experiment of a config, with the script's name and the config's values recorded in it."""
        made = self.function(config)
        return made.replace(
            name=self.name if made.name == "experiment" else made.name,
            config=dict(made.config) or dataclasses.asdict(config),
        )

    def config_from_json(self, values: dict[str, Any]) -> Any:
        """Make a Config from the JSON values of an earlier run.

        Raises:
            UserError: if the script has no such field any more.
        """
        kind = self.config_type
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise UserError(
                f"the run was started with settings that {kind.__module__}.{kind.__name__} does not have: "
                f"{', '.join(unknown)}"
            )
        return kind(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(kind: Any, value: Any) -> Any:
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in options:
        return Path(value)
    return value
