"""The command that comes next, as it is typed."""

import dataclasses
import enum
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def command(*words: object, script: object = None) -> str:
    """Return a command of a script.

    Args:
        *words: Its verb and arguments.
        script: Path of the script. None: the one that runs.

    Example:
        >>> command("train", "--workdir", "runs/a b", script="run.py").partition(" ")[2]
        "run.py train --workdir 'runs/a b'"
    """
    python = Path(sys.executable).name
    return shlex.join([python, str(sys.argv[0] if script is None else script), *map(str, words)])


def flags(config: Any, default: Any, fields: Iterable[str] = ()) -> list[str]:
    """Return the flags that make one Config of another.

    Args:
        config: A dataclass.
        default: Another of its kind.
        fields: Fields that are named in any case.

    Example:
        >>> from accelnet.cli.export import ExportOptions
        >>> flags(ExportOptions(to=("onnx", "stablehlo"), docker=True), ExportOptions(), ["out"])
        ['--to', 'onnx', 'stablehlo', '--out', 'dist', '--docker']
    """
    found: list[str] = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if not field.init or (value == getattr(default, field.name) and field.name not in fields):
            continue
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, tuple | list):
            found += [f"--{name}", *map(str, value)]
        else:
            found += [f"--{name}", f"{value:.6g}" if isinstance(value, float) else _word(value)]
    return found


def _word(value: Any) -> str:
    return value.name if isinstance(value, enum.Enum) else str(value)
