"""Public names of a package that are imported when they are asked for first."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelnet.interruption import ending_at_once


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return what a package needs to import its public names when they are asked for first.

    A signal that comes meanwhile ends a script at once, as `ending_at_once` says.

    Args:
        package: Name of the package.
        homes: Module of each name, with the names; under the package's own name its modules that are public.

    Returns:
        `__getattr__`, `__dir__` and `__all__` of the package.

    Example:
        >>> get, names, _ = lazy_names("json", {"json.decoder": ["JSONDecodeError"]})
        >>> get("JSONDecodeError"), names()[-1]
        (<class 'json.decoder.JSONDecodeError'>, 'scanner')

    Source: PEP 562.
    """
    module_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = module_of[name]
        with ending_at_once():
            if home == package:
                return importlib.import_module(f"{package}.{name}")
            value = getattr(importlib.import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return get, names, list(module_of)
