"""From the arguments of a process to a verb: parsing, messages and exit codes.

Exit codes: 0 done; 1 an exception in the user's own code, or an error in accelnet; 2 a mistake of the user's, with one
message; 3 the loss became NaN or infinite; 4 SIGTERM came and the state is saved; 5 another process of the run is lost;
130 interrupted. Closed streams, and a reader of the output who leaves early (`summary | head -1`), change none of them;
results that do not fit on the disk (`> file`) give 2.
"""

import contextlib
import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from accelnet import runtime
from accelnet.cli.devices import ClusterOptions, DeviceOptions, check_platform, choose_platform, join_cluster
from accelnet.cli.script import Config, ExperimentFunction, Script
from accelnet.cli.settings import SettingsOptions, read_settings, write_settings
from accelnet.cluster.preemption import leave_others, told_to_end
from accelnet.errors import DivergenceError, Interrupted, LostProcessError, PreemptedError, UserCodeError, UserError
from accelnet.interruption import ending_at_once
from accelnet.parallel.memory import exhaustion_explained
from accelnet.terminal import guarded_streams, say, say_uncaught

Verb = Callable[..., None]


def main(
    experiment: ExperimentFunction,
    args: Sequence[str] | None = None,
    *,
    after_train: Callable[[Any], None] | None = None,
) -> None:
    """Run the command line of an experiment script: `train`, `evaluate`, `summary` and the other verbs.

    Args:
        experiment: Function from the script's Config, a flat frozen dataclass with defaults, to an `Experiment`. Its
            parameter is annotated with the dataclass.
        args: Command line arguments; None for those of the process.
        after_train: Function that is called with the finished `Run` of `train`, to show more results.

    Raises:
        SystemExit: with the exit codes above.

    Example:
        >>> if __name__ == "__main__":  # doctest: +SKIP
        ...     main(experiment)
    """
    command = _Command()
    script = Script(experiment, after_train)
    guarded(lambda given: command.prepared(script, given), args, command.left_behind)


def guarded(
    prepared: Callable[[list[str]], Callable[[], None]], args: Sequence[str] | None, left_behind: Callable[[], str]
) -> None:
    """Run a command: its errors become messages and the exit codes above, and nothing that it prints steers a terminal.

    Args:
        prepared: Function that reads the arguments, imports what the command needs, and returns what is run.
        args: Command line arguments; None for those of the process, which then runs nothing else.
        left_behind: Function that says, when the command was interrupted, what it leaves.

    Raises:
        SystemExit: with the exit codes above.

    Example:
        >>> guarded(lambda args: lambda: print(args), ["a"], str)
        ['a']
    """
    imports = contextlib.nullcontext() if args is not None else runtime.imports_uncollected()
    given = list(sys.argv[1:] if args is None else args)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = say_uncaught
    with guarded_streams() as output:
        try:
            with ending_at_once(), imports:
                run = prepared(given)
            with told_to_end(), exhaustion_explained():
                run()
        except (UserError, DivergenceError, LostProcessError, UserCodeError) as error:
            leave_others(error)
            _exit(f"error: {error}", error.exit_code)
        except PreemptedError as error:
            _exit(f"preempted: {error}", error.exit_code)
        except Interrupted as error:
            _exit(f"interrupted: {error}", error.exit_code)
        except KeyboardInterrupt as error:
            leave_others(error)
            say(f"interrupted: {str(error) or left_behind()}")
            output.flush()
            # A chunk of steps may still be running in XLA's threads, and an orderly exit under it can crash.
            os._exit(130)
        output.flush()
        if output.lost is not None:
            _exit(f"error: the results could not be written to standard output: {output.lost.strerror}", 2)


def _exit(message: str, code: int) -> NoReturn:
    say(message)
    raise SystemExit(code)


class _Command:
    """A command with its verb and options, as far as they are known when it ends."""

    def __init__(self) -> None:
        self.options: Any = None
        self.is_training = False

    def prepared(self, script: Script, args: list[str]) -> Callable[[], None]:
        """Parse the arguments, and return what chooses the devices and calls the verb."""
        verb, arguments = _parse(script, script.default_config(), args)
        options: Any = arguments.get("options")
        settings: SettingsOptions = arguments.pop("settings", SettingsOptions())
        if settings.config is not None:
            if getattr(options, "resume", False):
                raise UserError("--resume takes the run's own settings, and --config those of a file: give one of them")
            source = f"{settings.config} was written"
            default = script.config_from_json(read_settings(settings.config), source)
            verb, arguments = _parse(script, default, args)
            del arguments["settings"]
        if getattr(options, "resume", False):
            if options.workdir is None:
                raise UserError("--resume needs --workdir, the directory of the run to go on with")
            known = script.of_run(options.workdir)
            if known is not None:
                # The run's own settings are the defaults now; flags that are given still count.
                script, default = known
                verb, arguments = _parse(script, default, args)
                arguments.pop("settings", None)
        if settings.save_config is not None:
            write_settings(settings.save_config, arguments["config"])
        arguments = {name: _with_absolute_workdir(value) for name, value in arguments.items()}
        self.options, self.is_training = arguments.get("options"), verb.__name__ == "train"
        if "config" in arguments:
            importlib.import_module("accelnet.training.fit")

        def run() -> None:
            runtime.prepare()
            _choose_devices(arguments.values(), getattr(self.options, "workdir", None))
            verb(script, **arguments)

        return run

    def left_behind(self) -> str:
        """Describe what an interrupted command leaves, and how to continue."""
        workdir: Path | None = getattr(self.options, "workdir", None)
        if workdir is None:
            return "nothing was saved" + (", because --workdir was not given" if self.is_training else "")
        if not self.is_training:
            return f"what was finished is in {workdir}, and the same command does not do it again"
        from accelnet.training.checkpoint import Checkpoints

        steps = Checkpoints(workdir).steps()
        if not steps:
            return f"nothing was saved in {workdir} yet"
        return f"the state of step {steps[-1]} is saved in {workdir}, go on with --resume"


def _with_absolute_workdir(options: Any) -> Any:
    """Keep to one directory, wherever the user's own code goes."""
    workdir = getattr(options, "workdir", None)
    if not isinstance(workdir, Path):
        return options
    workdir = workdir.absolute()
    try:
        str(workdir).encode()
    except UnicodeEncodeError:
        raise UserError(f"the work directory {workdir} has a name that is no UTF-8: give another --workdir") from None
    return dataclasses.replace(options, workdir=workdir)


def _choose_devices(arguments: Iterable[Any], workdir: Path | None) -> None:
    found = [value for value in arguments if isinstance(value, DeviceOptions | ClusterOptions)]
    for value in found:
        if isinstance(value, DeviceOptions):
            choose_platform(value.cpu_devices)
        else:
            join_cluster(value, workdir)
    if found:
        check_platform()


def _parse(script: Script, default: Any, args: list[str]) -> tuple[Verb, dict[str, Any]]:
    """Return the verb that is asked for and its arguments; `default` is the Config without any flags."""
    import tyro.constructors

    from accelnet.cli.parsing import parsed
    from accelnet.cli.verbs import VERBS

    verbs = {verb.__name__.replace("_", "-"): _parser(verb, script.config_type, default) for verb in VERBS}
    module = sys.modules.get(script.function.__module__)
    try:
        return parsed(verbs, args, sys.argv[0], None if module is None else module.__doc__)
    except tyro.constructors.UnsupportedTypeAnnotationError as error:
        raise UserError(f"{script.config_type.__name__} has a field that no flag can give: {error}") from error


def _parser(verb: Verb, config_type: type, default: Any) -> Callable[..., tuple[Verb, dict[str, Any]]]:
    """Return a function with the verb's parameters, all but the script, for tyro to fill in."""

    def parsed(**arguments: Any) -> tuple[Verb, dict[str, Any]]:
        return verb, arguments

    signature = inspect.signature(verb)
    parameters = [
        parameter.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            **({"annotation": config_type, "default": default} if parameter.annotation is Config else {}),
        )
        for parameter in list(signature.parameters.values())[1:]
    ]
    if any(parameter.annotation is config_type for parameter in parameters):
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter("settings", kind, annotation=SettingsOptions))
    parsed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    parsed.__doc__ = verb.__doc__
    return parsed
