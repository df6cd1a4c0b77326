"""From the words of a command line to a verb and its arguments."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from accelnet.cli.slips import corrected, flags_of
from accelnet.terminal import columns, show

HELP, ALL_HELP = ("-h", "--help"), "--help-all"
_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)


def parsed(
    verbs: Mapping[str, Callable[..., Any]], args: Sequence[str], command: str, description: str | None = None
) -> Any:
    """Return what the function of the verb that is asked for returns.

    Only that one's flags are looked at, unless it is not said which. `--help` shows its flags on a screen, `--help-all`
    each with all that is said of it.

    Args:
        verbs: Functions by name. Their parameters are dataclasses, whose fields become flags.
        args: Arguments, the verb first.
        command: How the command is called.
        description: What --help says of the command.

    Raises:
        UserError: for a verb or a flag that there is not.
        SystemExit: after help, with code 0, and for a value that does not suit its flag, with code 2.

    Example:
        >>> from accelnet.cli.settings import SettingsOptions
        >>> def save(options: SettingsOptions):
        ...     return str(options.save_config)
        >>> parsed({"save": save}, ["save", "--save-config", "a.json"], "run.py")
        'a.json'
    """
    import tyro.extras

    given = corrected(args, {name: flags_of(verb, {}) for name, verb in verbs.items()}, command)
    with path_rules():
        if not given or given[0] not in verbs:
            return tyro.extras.subcommand_cli_from_dict(
                dict(verbs), args=given, prog=command, description=description, config=_CONFIG
            )
        name, *rest = given
        flags = rest[: rest.index("--")] if "--" in rest else rest
        if ALL_HELP in flags:
            rest = ["--help"]
        elif any(flag in HELP for flag in flags):
            from accelnet.cli.short_help import short_help

            show(short_help(verbs[name], f"{command} {name}", min(columns(), 100)))
            raise SystemExit(0)
        return tyro.cli(verbs[name], args=rest, prog=f"{command} {name}", config=_CONFIG)


def path_rules() -> Any:
    """Return rules for tyro that refuse an empty path, which would be the current directory."""
    import tyro.constructors

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def path(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None

        def read(texts: list[str]) -> Path:
            if not texts[0].strip():
                raise ValueError("the path is empty, expected a file or directory, such as . for this one")
            return Path(texts[0])

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    return registry
