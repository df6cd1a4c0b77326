"""JSON files that accelnet wrote: a reader gets the content in the shape that it expects, or one message.

A shape is a type (`float` for numbers of both kinds, `object` for anything), None, a dict from keys to shapes (`"key?"`
may be absent, others may stand beside; `str` alone as the key: any keys), a list of one shape (of any length) or of
several (one for each item), or a tuple of shapes of which one has to fit.

Example:
    >>> problem({"rows": [1, "x"]}, {"rows": [float], "note?": str})
    "rows[1] is 'x', expected a number"
"""

import json
import math
import numbers
import os
import stat
from collections.abc import Mapping
from typing import Any

from accelnet.errors import UserError
from accelnet.wording import shown

Shape = Any
_MOST_BYTES = 1 << 30
_MOST_DEPTH = 100  # what goes deeper was written by nobody, and ends functions that call themselves
_LARGEST = 2**63
_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


def read_json(path: str | os.PathLike[str], kind: str, shape: Shape, advice: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kind: What it is, for the message, such as "a run's result".
        shape: Shape of its content.
        advice: What to do where it is of another content.

    Returns:
        The content; None if there is no such file.

    Raises:
        UserError: if it cannot be read, or its content is of another shape.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> _ = path.write_text('{"metrics": 5}')
        >>> read_json(path, "a run's result", {"metrics": dict}, "leave it out")
        Traceback (most recent call last):
        accelnet.errors.UserError: .../result.json cannot be read as a run's result (metrics is 5, expected an object):
        leave it out
    """
    text = read_text(path, kind, advice)
    try:
        return None if text is None else parse_json(text, shape)
    except ValueError as error:
        raise _refused(path, kind, error, advice) from error


def read_text(path: str | os.PathLike[str], kind: str, advice: str) -> str | None:
    """Read a file of text in UTF-8; None if there is none. Pipes and devices, which may never end, are refused.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        # Without it, opening a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123, a descriptor
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no file")
            if status.st_size > _MOST_BYTES:
                raise ValueError(f"it has {status.st_size:,} bytes, expected at most {_MOST_BYTES:,}")
            return file.read().decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise _refused(path, kind, f"it is no UTF-8 at byte {error.start}", advice) from error
    except OSError as error:
        raise _refused(path, kind, error.strerror or error, advice) from error
    except ValueError as error:
        raise _refused(path, kind, error, advice) from error


def parse_json(text: str, shape: Shape) -> Any:
    """Read JSON of a shape.

    Raises:
        ValueError: if it is none, or of another shape, in words.

    Example:
        >>> parse_json('{"step": 1}', {"step": float})
        {'step': 1}
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_MOST_DEPTH} levels") from None
    except ValueError:  # Python's limit for digits
        raise ValueError("it has a number of thousands of digits") from None
    if _is_deep(content, _MOST_DEPTH):
        raise ValueError(f"it is nested deeper than {_MOST_DEPTH} levels")
    if wrong := problem(content, shape):
        raise ValueError(wrong)
    return content


def problem(value: Any, shape: Shape, where: str = "it") -> str | None:
    """Return in words what keeps a JSON value from being of a shape; None if it is of it.

    Example:
        >>> problem([1, None], [(float, None)]) is None
        True
    """
    if isinstance(shape, tuple):
        found = [problem(value, one, where) for one in shape]
        if None in found:
            return None
        # Of a list or an object, what is wrong inside.
        inner = [text for text, one in zip(found, shape, strict=True) if type(one) is type(value)]
        return inner[0] if inner and isinstance(value, list | dict) else _wrong(value, where, _expected(shape))
    if isinstance(shape, dict):
        return _problem_of_object(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            return _wrong(value, where, f"a list of {len(shape)}" if len(shape) > 1 else "a list")
        shapes = shape * len(value) if len(shape) == 1 else shape
        pairs = enumerate(zip(value, shapes, strict=True))
        return next(filter(None, (problem(item, one, f"{where}[{n}]") for n, (item, one) in pairs)), None)
    return None if _fits(value, shape) else _wrong(value, where, _expected(shape))


def plain_value(value: Any) -> Any:
    """Turn a value into one that strict JSON can hold.

    Numbers of any library become int, float or bool. NaN and infinities, which JSON lacks, become None.

    Example:
        >>> import numpy as np
        >>> plain_value({"loss": np.float32(0.5), "r2": float("nan"), "shape": (1, 2)})
        {'loss': 0.5, 'r2': None, 'shape': [1, 2]}
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and jax
        return plain_value(value.tolist())
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _problem_of_object(value: Any, shape: dict[Any, Shape], where: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong(value, where, "an object")
    start = "" if where == "it" else f"{where}."
    if str in shape:
        return next(filter(None, (problem(item, shape[str], start + key[:60]) for key, item in value.items())), None)
    for key, one in shape.items():
        name = key.removesuffix("?")
        if name in value:
            if wrong := problem(value[name], one, start + name):
                return wrong
        elif name == key:
            return f"{start}{name} is missing"
    return None


def _fits(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind in (int, float):
        numbers = int if kind is int else int | float
        # What is larger overflows where arrays are made of it.
        return isinstance(value, numbers) and not isinstance(value, bool) and not _is_huge(value)
    return isinstance(value, kind)


def _is_huge(value: float) -> bool:
    return isinstance(value, int) and abs(value) >= _LARGEST


def _expected(shape: Shape) -> str:
    if isinstance(shape, tuple):
        return " or ".join(_expected(one) for one in shape)
    kind = type(shape) if shape is None or isinstance(shape, list | dict) else shape
    return _WORDS.get(kind, "anything")


def _wrong(value: Any, where: str, expected: str) -> str:
    return f"{where} is {shown(value)}, expected {expected}"


def _is_deep(value: Any, left: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    return not left or any(_is_deep(item, left - 1) for item in (value.values() if isinstance(value, dict) else value))


def _refused(path: str | os.PathLike[str], kind: str, why: object, advice: str) -> UserError:
    return UserError(f"{os.fspath(path)} cannot be read as {kind} ({why}): {advice}")
