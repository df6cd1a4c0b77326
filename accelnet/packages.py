"""Packages that may be missing: those of the extras, and in an environment that has jax alone many others."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from accelnet.errors import UserError

_DISTRIBUTIONS = {"PIL": "pillow"}


def imported(package: str, extra: str) -> Any:
    """Import a package of an extra.

    Args:
        package: Name of the package, or of a module in it.
        extra: Extra of accelnet that brings it.

    Raises:
        UserError: if it is not installed, or what it needs itself is not.

    Example:
        >>> imported("json", "json").dumps(1)
        '1'
        >>> imported("no_such_package", "onnx")
        Traceback (most recent call last):
        accelnet.errors.UserError: no_such_package cannot be imported (No module named 'no_such_package'): pip install
        "accelnet[onnx]"
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f'{package} cannot be imported ({error}): pip install "accelnet[{extra}]"') from error


@contextlib.contextmanager
def needing(what: str) -> Iterator[None]:
    """Name the package that is missing where what is imported only when it is needed is not installed.

    Args:
        what: What needs it, at the start of a message.

    Example:
        >>> with needing("a picture"):
        ...     import no_such_package
        Traceback (most recent call last):
        accelnet.errors.UserError: a picture needs no_such_package, which cannot be imported (No module named
        'no_such_package'): pip install no_such_package
    """
    try:
        yield
    except ImportError as error:
        cause = error if error.name or not isinstance(error.__cause__, ImportError) else error.__cause__
        name = (cause.name or "a package").partition(".")[0]
        advice = f": pip install {_DISTRIBUTIONS.get(name, name)}" if cause.name else ""
        raise UserError(f"{what} needs {name}, which cannot be imported ({cause}){advice}") from error
