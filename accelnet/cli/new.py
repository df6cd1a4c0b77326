"""`accelnet new`: a script that trains at once, and its test."""

import csv
import io
import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.terminal import show

Kind = Literal["mlp", "cnn", "rnn", "table", "images", "module"]
_STARTERS = Path(__file__).parent / "starters"


@dataclass(frozen=True)
class NewOptions:
    """Script that is written."""

    kind: tyro.conf.Positional[Kind]
    """Network, or kind of data, that it begins with; module: a module and a loss of your own."""
    name: tyro.conf.Positional[str]
    """Name of the script, without .py."""
    data: Path | None = None
    """Table or folder of pictures that it trains on. None: a small one is written beside it."""
    target: str | None = None
    """Column of the table that is predicted. None: the last."""


def new(options: NewOptions) -> None:
    """Write a script that trains at once, and its test, into the current directory."""
    files = starter(options.kind, options.name, options.data, options.target)
    there = [str(path) for path in files if path.exists()]
    if there:
        raise UserError(f"{', '.join(there)} exists already: give another name, or move it away")
    for path, content in files.items():
        write_atomically(path, content)
    script = f"{options.name}.py"
    show(f"wrote {', '.join(map(str, list(files)[:3]))}" + (f" and {len(files) - 3} more" if len(files) > 3 else ""))
    show(f"\npython {script} train --fast-dev-run              # two updates, to see that all fits together")
    show(f"python {script} train --workdir runs/{options.name}")


def starter(kind: Kind, name: str, data: Path | None = None, target: str | None = None) -> dict[Path, str | bytes]:
    """Return the files of a new script by path, in the current directory.

    Args:
        kind: As in the command line.
        name: Name of the script's module.
        data: Table or folder; None for a small one of its own.
        target: Column that is predicted.

    Raises:
        UserError: if the name is no name of a module, or the data does not suit the kind.

    Example:
        >>> [str(path) for path in starter("mlp", "first")]
        ['first.py', 'test_first.py']
    """
    if kind not in get_args(Kind):
        raise UserError(f"there is no {kind} to begin with, only: {', '.join(get_args(Kind))}")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name of a script: take letters, digits and _, such as my_{kind}")
    if data is not None and kind not in ("table", "images"):
        raise UserError(f"a script of kind {kind} takes no --data: `accelnet new table` and `new images` do")
    if target is not None and kind != "table":
        raise UserError("--target is a column of a table: give it with `accelnet new table`")
    words = {"title": name.replace("_", " ").strip().capitalize(), "name": name, "file": f"{name}.py"}
    files: dict[Path, str | bytes] = {}
    if kind == "table":
        words |= _table(data, target, files, name)
    elif kind == "images":
        words |= _images(data, files, name)
    words["test"] = f"test_{name}.py"
    made: dict[Path, str | bytes] = {
        Path(words["file"]): _filled(kind, words),
        Path(words["test"]): _filled("test", words),
    }
    return made | files


def _filled(kind: str, words: dict[str, str]) -> str:
    text = (_STARTERS / f"{kind}.txt").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], text)


def _table(data: Path | None, target: str | None, files: dict[Path, str | bytes], name: str) -> dict[str, str]:
    if data is not None:
        from accelnet.data.table_source import open_source

        source = open_source(data, "--data")
        source.check([target] if target is not None else [])
        return {"data": _quoted(data.absolute()), "target": _quoted(target or source.names[-1])}
    from sklearn.datasets import load_wine

    wine: Any = load_wine()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*(column.replace("/", "_") for column in wine.feature_names), "cultivar"])
    rows.writerows([*row, f"cultivar {kind + 1}"] for row, kind in zip(wine.data.tolist(), wine.target, strict=True))
    files[Path(f"{name}.csv")] = text.getvalue()
    return {"data": f"{name}.csv", "target": "cultivar"}


def _images(data: Path | None, files: dict[Path, str | bytes], name: str) -> dict[str, str]:
    if data is not None:
        if not data.is_dir():
            raise UserError(f"--data is {data}, expected a directory with a folder of pictures for each class")
        return {"data": _quoted(data.absolute()), "size": "64"}
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    for number in range(600):
        buffer, pixels = io.BytesIO(), (digits.images[number] * 15.9).astype(np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(buffer, "png")
        files[Path(f"{name}_pictures") / str(digits.target[number]) / f"{number:03}.png"] = buffer.getvalue()
    return {"data": f"{name}_pictures", "size": "16"}


def _quoted(value: object) -> str:
    """Return text as it stands between the quotes of Python's text."""
    return str(value).encode("unicode_escape").decode("ascii").replace('"', '\\"')
