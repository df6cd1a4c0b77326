"""The flags of a verb on one screen: a line each, those of daily use first."""

import contextlib
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docstring_parser
import tyro

from accelnet.cli.devices import ClusterOptions

# Launchers set these, people hardly ever.
_NAMED_ONLY = (ClusterOptions,)
_WORDS = {Path: "PATH", int: "INT", float: "FLOAT", str: "TEXT"}
_WIDEST = 28  # of a flag with its value


@dataclass(frozen=True)
class _Flag:
    """A flag, or what is given by its place."""

    name: str
    value: str
    said: str
    positional: bool

    @property
    def shown(self) -> str:
        return f"{self.name} {self.value}".strip()


def short_help(verb: Callable[..., Any], command: str, width: int) -> str:
    """Return the help of a verb.

    Args:
        verb: Function whose parameters are dataclasses.
        command: How it is called.
        width: Characters of a line.

    Example:
        >>> @dataclass
        ... class Options:
        ...     "What is trained"
        ...
        ...     rate: float = 0.1
        >>> def train(options: Options):
        ...     "Train."
        >>> print(short_help(train, "run.py train", 80))
        usage: run.py train [FLAGS]
        <BLANKLINE>
        Train.
        <BLANKLINE>
        What is trained
          --rate 0.1
        <BLANKLINE>
        Values are the defaults, the first of several. --help-all says all of every flag.
    """
    parameters = inspect.signature(verb).parameters.values()
    # A verb's own options before the settings of the script.
    groups = sorted(parameters, key=lambda one: (one.name == "settings", one.name not in ("model", "options")))
    named = [flag.name for one in groups if one.annotation in _NAMED_ONLY for flag in _flags(one)]
    shown = [(one, list(_flags(one))) for one in groups if one.annotation not in _NAMED_ONLY]
    everything = [flag for _, flags in shown for flag in flags]
    column = max((len(flag.shown) for flag in everything if len(flag.shown) <= _WIDEST), default=0)
    places = [flag.name for flag in everything if flag.positional]
    about = (inspect.getdoc(verb) or "").partition("\n")[0]
    usage = " ".join(["usage:", command, *places, "[FLAGS]"])
    lines = [*_wrapped(usage, width), "", *_wrapped(about, width), ""]
    for one, flags in shown:
        lines += _wrapped(_title(one.annotation), width)
        for flag in flags:
            start = f"  {flag.shown:{column}}"
            lines.append(f"{start}  {_fitting(flag.said, width - len(start) - 2)}".rstrip()[:width])
    also = f" There are also {', '.join(named)}." if named else ""
    note = f"Values are the defaults, the first of several. --help-all says all of every flag.{also}"
    return "\n".join([*lines, "", *_wrapped(note, width)])


def _flags(parameter: inspect.Parameter) -> Iterator[_Flag]:
    options = parameter.annotation
    if not dataclasses.is_dataclass(options):
        return
    hints = typing.get_type_hints(options, include_extras=True)
    said = _said(typing.cast(type, options))
    for field in dataclasses.fields(options):
        if not field.init:
            continue
        hint, default = hints[field.name], field.default
        if parameter.default is not inspect.Parameter.empty:
            default = getattr(parameter.default, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        positional = tyro.conf.Positional in typing.get_args(hint)[1:]
        kind = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        value = _default(default) or _word(hint)
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        if choices:
            value = "|".join(map(str, sorted(choices, key=lambda one: one != default)))
        required = default in (dataclasses.MISSING, tyro.MISSING) and not positional
        text = ("Required. " if required else "") + said.get(field.name, "")
        if positional:
            yield _Flag(field.name.upper(), value if choices else "", text, True)
        else:
            yield _Flag(f"--{field.name.replace('_', '-')}", value, text, False)


def _said(kind: type) -> dict[str, str]:
    """Return the docstrings of the fields, as far as there is source to read."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        with contextlib.suppress(OSError, TypeError, docstring_parser.ParseError):
            parts = docstring_parser.parse_from_object(one).params
            found |= {part.arg_name: part.description or "" for part in parts}
    return {name: " ".join(text.split()) for name, text in found.items()}


def _title(kind: Any) -> str:
    text = (kind.__doc__ or "").strip()
    generated = text.startswith(f"{kind.__name__}(")  # by dataclass
    return "Settings" if generated or not text else text.splitlines()[0].rstrip(".:")


def _default(value: Any) -> str:
    """Return a default as it is typed, and nothing where a word for its kind says more."""
    if value is None or value in (dataclasses.MISSING, tyro.MISSING) or isinstance(value, bool):
        return ""
    if isinstance(value, tuple | list | set | frozenset):
        return " ".join(map(str, value))
    return str(value)


def _word(hint: Any) -> str:
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is typing.Annotated:
        return _word(args[0])
    if origin in (typing.Union, types.UnionType):
        return "|".join(dict.fromkeys(_word(one) for one in args if one is not types.NoneType))
    if origin is typing.Literal:
        return "|".join(map(str, args))
    if origin in (tuple, list, set, frozenset):
        return f"{_word(args[0]) if args else 'TEXT'} ..."
    return "" if origin is bool else _WORDS.get(origin, "VALUE")


def _fitting(text: str, room: int) -> str:
    """Return as much of a text as fits: all, or what comes before a stop, or its beginning."""
    text = text.rstrip(".")
    if len(text) <= room:
        return text
    ends = [found.start() for found in re.finditer(r"[.;:] ", text[: room + 1])]
    if ends:
        return text[: ends[-1]]
    return text[: max(0, room - 3) + 1].rsplit(" ", 1)[0].rstrip(",") + "..."


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
