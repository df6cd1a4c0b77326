"""Packages of trackers, which are extras."""

import importlib
from typing import Any

from accelnet.errors import UserError


def imported(package: str, extra: str) -> Any:
    """Import a package of an extra.

    Args:
        package: Name of the package.
        extra: Extra of accelnet that brings it.

    Raises:
        UserError: if it is not installed.

    Example:
        >>> imported("json", "json").dumps(1)
        '1'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f'{package} is not installed: pip install "accelnet[{extra}]"') from error
