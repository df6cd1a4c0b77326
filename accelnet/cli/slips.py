"""Slips of the keyboard: what was probably meant, and lists with commas."""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accelnet.errors import UserError

Flags = Mapping[str, Any]
_FLAG = re.compile("--[A-Za-z]")  # those of one letter have other names: the parser knows them
_ALWAYS = ("--help", "--help-all")
_MOST = 3  # suggestions


def corrected(args: Sequence[str], verbs: Mapping[str, Flags], command: str) -> list[str]:
    """Return a command line with lists written as the parser takes them; name what it mistakes.

    Args:
        args: Arguments, the verb first.
        verbs: By verb, its flags, and the annotation of each.
        command: How the command is called.

    Raises:
        UserError: for a verb or a flag that there is not, with those that are like it.

    Example:
        >>> verbs = {"train": {"--widths": tuple[int, ...], "--learning-rate": float}}
        >>> corrected(["train", "--widths=8,16", "--learning_rate", "0.1"], verbs, "run.py")
        ['train', '--widths', '8', '16', '--learning_rate', '0.1']
        >>> corrected(["train", "--lr", "0.1"], verbs, "run.py")
        Traceback (most recent call last):
        accelnet.errors.UserError: train has no flag --lr: did you mean --learning-rate? see `run.py train --help`
    """
    if not args or args[0].startswith("-"):
        return list(args)
    verb, *rest = args
    if verb not in verbs:
        like = _like(verb, verbs)
        raise UserError(f"there is no verb {verb}: {_meant(like)}the verbs are {', '.join(verbs)}")
    flags, found, takes_list = verbs[verb], [verb], False
    for place, part in enumerate(rest):
        if part == "--":  # what follows is no flag
            return [*found, *rest[place:]]
        if part.startswith("--tyro-"):
            found.append(part)
            continue
        if _FLAG.match(part):
            name, equals, value = part.partition("=")
            plain = name.replace("_", "-")
            if plain not in (*flags, *_ALWAYS):
                raise UserError(
                    f"{verb} has no flag {name}: {_meant(_like(plain, flags))}see `{command} {verb} --help`"
                )
            takes_list = _is_list(flags.get(plain))
            found += [name, *_items(value)] if equals and takes_list else [part]
        else:
            takes_list &= not part.startswith("-")
            found += _items(part) if takes_list else [part]
    return found


def flags_of(verb: Callable[..., Any], replaced: Mapping[Any, type]) -> dict[str, Any]:
    """Return the flags of a verb with their annotations: the fields of the dataclasses that it takes.

    Args:
        verb: Function of the verb.
        replaced: Classes that stand for others in its signature.

    Example:
        >>> @dataclasses.dataclass
        ... class Options:
        ...     batch_size: int = 1
        >>> flags_of(lambda options: None, {inspect.Parameter.empty: Options})
        {'--batch-size': <class 'int'>}
    """
    found = {}
    for parameter in inspect.signature(verb).parameters.values():
        kind = replaced.get(parameter.annotation, parameter.annotation)
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind, include_extras=True)
            fields = [field.name for field in dataclasses.fields(kind) if field.init]
            found |= {f"--{name.replace('_', '-')}": hints[name] for name in fields}
    return found


def _is_list(kind: Any) -> bool:
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Annotated or origin in (typing.Union, types.UnionType):
        return any(map(_is_list, args[:1] if origin is typing.Annotated else args))
    # In other text a comma may mean something: `--set widths=8,16`.
    named = all(typing.get_origin(one) is typing.Literal or one in (int, float, Ellipsis) for one in args)
    return origin in (tuple, list, set, frozenset) and named


def _items(token: str) -> list[str]:
    return [item.strip() for item in token.split(",") if item.strip()] or [token]


def _like(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that somebody may have meant: like it to the eye, its beginning, or its initials."""
    word, plain = name.lstrip("-"), {one.lstrip("-").replace("-", ""): one for one in names}
    initials = {"".join(part[0] for part in one.lstrip("-").split("-")): one for one in names}
    short = word.replace("-", "")
    found = [initials[short]] if len(short) > 1 and short in initials else []
    found += [one for key, one in plain.items() if len(short) > 2 and (key.startswith(short) or key.endswith(short))]
    found += [plain[key] for key in difflib.get_close_matches(short, plain, _MOST)]
    return list(dict.fromkeys(found))[:_MOST]


def _meant(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(names)}? " if names else ""
