"""From the arguments of a process to a verb: parsing, messages and exit codes.

Exit codes: 0 done; 2 a mistake of the user's, one message; 3 the loss became NaN or infinite; 4 told to end (SIGTERM),
the state is saved; 5 another process of the run is lost; 130 interrupted.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from accelnet.cli.devices import ClusterOptions, DeviceOptions, choose_platform, join_cluster
from accelnet.cli.script import Config, ExperimentFunction, Script
from accelnet.errors import DivergenceError, LostProcessError, PreemptedError, UserError

Verb = Callable[..., None]


def main(
    experiment: ExperimentFunction,
    args: Sequence[str] | None = None,
    *,
    after_train: Callable[[Any], None] | None = None,
) -> None:
    """Run the command line of an experiment script: `train`, `evaluate`, `summary` and the other verbs.

    Args:
        experiment: the script's function from its Config, a flat frozen dataclass with defaults, to an
            `Experiment`. Its parameter's annotation says which dataclass.
        args: command line arguments; None for those of the process.
        after_train: called with the finished `Run` of `train`, to show what else there is to see.

    Raises:
        SystemExit: with the exit codes above.

    Example:
        >>> if __name__ == "__main__":  # doctest: +SKIP
        ...     main(experiment)

    Source: original.
    """
    try:
        _run(Script(experiment, after_train), list(sys.argv[1:] if args is None else args))
    except (UserError, DivergenceError, LostProcessError) as error:
        _leave(error)
        _exit(f"error: {error}", error.exit_code)
    except PreemptedError as error:
        _exit(f"preempted: {error}", error.exit_code)
    except KeyboardInterrupt as error:
        _leave(error)
        print("interrupted: what was saved stays, go on with --resume", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # A chunk of steps may still be running in XLA's threads, and an orderly exit under it can crash.
        os._exit(130)


def _leave(error: BaseException) -> None:
    """Tell the other processes of the run, if it has any, so that they do not wait for this one."""
    if "jax" in sys.modules:
        from accelnet.parallel.exchange import leave

        leave(error)


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)


def _run(script: Script, args: list[str]) -> None:
    verb, arguments = _parse(script, script.config_type(), args)
    options: Any = arguments.get("options")
    if getattr(options, "resume", False):
        if options.workdir is None:
            raise UserError("--resume needs --workdir, the directory of the run to go on with")
        from accelnet.training.workdir import read_config

        stored = read_config(options.workdir)
        if stored is not None:
            # The run's own settings are the defaults now; flags that are given still count.
            verb, arguments = _parse(script, script.config_from_json(stored), args)
    # Before anything touches a device.
    for value in arguments.values():
        if isinstance(value, DeviceOptions):
            choose_platform(value.cpu_devices)
        if isinstance(value, ClusterOptions):
            join_cluster(value)
    verb(script, **arguments)


def _parse(script: Script, default: Any, args: list[str]) -> tuple[Verb, dict[str, Any]]:
    """Return the verb that is asked for and its arguments; `default` is the Config without any flags."""
    import tyro

    from accelnet.cli.verbs import VERBS

    module = sys.modules.get(script.function.__module__)
    return tyro.extras.subcommand_cli_from_dict(
        {verb.__name__.replace("_", "-"): _parser(verb, script.config_type, default) for verb in VERBS},
        args=args,
        description=None if module is None else module.__doc__,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )


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
    parsed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    parsed.__doc__ = verb.__doc__
    return parsed
