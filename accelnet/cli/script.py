"""The experiment script: its function, its Config, and experiments made from them."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelnet.cli.values import value_from_json
from accelnet.errors import UserError, user_code

if TYPE_CHECKING:
    from accelnet.experiment import Experiment
    from accelnet.models.compressed import Compression

ExperimentFunction = Callable[[Any], "Experiment"]


class Config:
    """Stand, in the signature of a verb, for the Config of the script."""


@dataclass(frozen=True)
class Script:
    """Hold what a verb knows of the script.

    Args:
        function: Function from the script's Config to an `Experiment`.
        after_train: Function that is called with the finished `Run` of `train`, if any.
        compression: What of the script's model is smaller in the run that a verb is about, if anything.
    """

    function: ExperimentFunction
    after_train: Callable[[Any], None] | None = None
    compression: "Compression | None" = None

    @cached_property
    def config_type(self) -> type:
        """Class of the script's Config, which annotates the parameter of its function.

        Raises:
            UserError: if not exactly one parameter is annotated with a dataclass, or the dataclass is not flat or has a
                field without a default.
        """
        if not inspect.isfunction(self.function):
            raise UserError(f"main was given {_name(self.function)}, {_EXPECTED}")
        name = self.function.__name__
        try:
            hints = typing.get_type_hints(self.function)
        except (NameError, TypeError) as error:
            raise UserError(f"the annotations of {name} cannot be read ({error}): {_EXPECTED}") from error
        kinds = [kind for parameter, kind in hints.items() if parameter != "return" and dataclasses.is_dataclass(kind)]
        if len(kinds) != 1:
            found = ", ".join(f"{parameter}: {_name(kind)}" for parameter, kind in hints.items())
            raise UserError(f"{name} has {f'the annotations {found}' if found else 'no annotation'}, {_EXPECTED}")
        kind = typing.cast(type, kinds[0])
        _check_fields(kind)
        return kind

    @property
    def name(self) -> str:
        """The script's file, without its folder and ending."""
        return Path(self.file or "experiment").stem

    @property
    def file(self) -> str:
        """The script's file, "" if it has none."""
        return self.function.__globals__.get("__file__", "")  # type: ignore[attr-defined]

    def default_config(self) -> Any:
        """Make the Config without any flags."""
        with user_code(f"{self.config_type.__name__}()"):
            return self.config_type()

    def experiment(self, config: Any) -> "Experiment":
        """Make the experiment of a config, with the script's name and the config's values recorded in it.

        Raises:
            UserCodeError: if the script's function fails.
            UserError: if it returns something else than an `Experiment`.
        """
        from accelnet.experiment import Experiment
        from accelnet.models.compressed import Compressed

        role = f"{self.function.__name__}(config)"
        with user_code(role):
            made = self.function(config)
        if not isinstance(made, Experiment):
            raise UserError(f"{role} returned {_name(type(made))}, expected an Experiment")
        if self.compression is not None:
            # What a compressed run starts from is in its checkpoint: the script's weights are those of the large model.
            made = made.replace(model=Compressed(made.model, self.compression), initial=None)
        return made.replace(
            name=self.name if made.name == "experiment" else made.name,
            config=dict(made.config) or dataclasses.asdict(config),
            script=self.file and str(Path(self.file).absolute()),
        )

    def of_run(self, workdir: Path) -> tuple["Script", Any] | None:
        """Return the script with the compression of the run in a work directory, and its Config; None without a run.

        Raises:
            UserError: if the settings do not suit the script, or the run is compressed and has no checkpoint.
        """
        from accelnet.models.compressed import Compression
        from accelnet.training.checkpoint import Checkpoints
        from accelnet.training.stored import read_stored

        stored = read_stored(workdir)
        if stored.config is None:
            return None
        small = (stored.description or {}).get("compression")
        if small is not None and not Checkpoints(workdir).steps():
            raise UserError(f"{workdir} holds a compressed run without a checkpoint, which it cannot go on from")
        compression = None if small is None else Compression.from_json(small)
        return dataclasses.replace(self, compression=compression), self.config_from_json(stored.config)

    def call_after_train(self, run: Any) -> None:
        """Call the script's own function with a finished run, if there is one.

        Raises:
            UserCodeError: if it fails.
        """
        if self.after_train is not None:
            with user_code("after_train(run)"):
                self.after_train(run)

    def config_from_json(self, values: dict[str, Any], source: str = "the run was started") -> Any:
        """Make a Config from the JSON values of an earlier run, or of another source.

        Raises:
            UserError: if the script has no such field any more, or a value does not suit its field.
        """
        kind = self.config_type
        fields = {field.name: field for field in dataclasses.fields(kind)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise UserError(
                f"{source} with settings that {kind.__module__}.{kind.__name__} does not have: {', '.join(unknown)}"
            )
        hints, default = typing.get_type_hints(kind), self.default_config()
        return dataclasses.replace(
            default,
            **{
                name: value_from_json(name, hints[name], value, getattr(default, name), source)
                for name, value in values.items()
                if fields[name].init
            },
        )


_EXPECTED = "expected a function with one parameter, annotated with a dataclass: def experiment(config: Config)"


def _check_fields(kind: type) -> None:
    """Refuse a Config that the command line cannot show as one flag per field."""
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        raise UserError(
            f"{kind.__name__} has fields without a default: {', '.join(required)}. Give each one, as in "
            f"`{required[0]}: int = 1`, so that a run needs no flags"
        )
    try:
        hints = typing.get_type_hints(kind)
    except (NameError, TypeError) as error:
        raise UserError(f"the annotations of {kind.__name__} cannot be read: {error}") from error
    nested = [name for name, hint in hints.items() if dataclasses.is_dataclass(hint)]
    if nested:
        raise UserError(
            f"{kind.__name__}.{nested[0]} is a dataclass itself: put its fields into {kind.__name__}, which is flat"
        )


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", f"an object of type {type(kind).__name__}")
