"""Packages of the extras, which may be missing."""

import importlib
from typing import Any

from accelnet.errors import UserError


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
