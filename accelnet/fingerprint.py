"""Fingerprints of a user's values and functions: they change with these, and not between processes."""

import dataclasses
import hashlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_DIGITS = 16
_MOST_BYTES = 1 << 24  # of an array


def fingerprint(value: Any, known: Mapping[str, Any] | None = None) -> str:
    """Return 16 hexadecimal digits for a value.

    A function counts by its code and by what it closes over, an array by its numbers, an array above 16 MiB by some of
    them. A function of an installed package counts by its name alone, so that another release of the package is not
    another loss. What has no form of its own, such as a traced number, counts by its type.

    Args:
        value: Anything: numbers, text, arrays, functions, dataclasses, modules, nested in any way.
        known: Fields of a dataclass that are compared elsewhere, such as a script's settings. A dataclass with these
            values counts as itself, whatever they are.

    Example:
        >>> def scale(factor):
        ...     return lambda x: factor * x
        >>> fingerprint(scale(2.0)) == fingerprint(scale(2.0)), fingerprint(scale(2.0)) == fingerprint(scale(3.0))
        (True, False)
    """
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    for part in _parts(value, {}, known or {}):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, Any], known: Mapping[str, Any]) -> Iterator[bytes]:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    if id(value) in seen:
        yield b"again"
        return
    seen[id(value)] = value  # kept, so that its id stays its own
    yield type(value).__qualname__.encode()
    if isinstance(value, Tracer):
        yield str(value.aval).encode()
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        yield from _of_array(value)
    elif callable(getattr(value, "fingerprint", None)) and not isinstance(value, type):  # data
        yield str(value.fingerprint()).encode()
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, seen, known)
    elif isinstance(value, types.MethodType):
        yield from _parts(value.__func__, seen, known)
        yield from _parts(value.__self__, seen, known)
    elif isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}".encode()
        if isinstance(value, type) and _is_of_user(value):
            yield from _of_items({k: v for k, v in vars(value).items() if _is_of_class(v)}, seen, known)
    elif isinstance(value, Mapping):
        yield from _of_items(value, seen, known)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
            yield from _parts(one, seen, known)
    elif dataclasses.is_dataclass(value) and _is_known(value, known):
        yield b"known"
    elif dataclasses.is_dataclass(value):
        yield from _parts(type(value), seen, known)
        for field in dataclasses.fields(value):
            yield field.name.encode()
            yield from _parts(getattr(value, field.name, None), seen, known)
    elif isinstance(value, property):
        yield from _parts((value.fget, value.fset), seen, known)
    elif hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        yield from _parts((value.func, value.args, value.keywords), seen, known)
    elif hasattr(value, "__wrapped__"):
        yield from _parts(value.__wrapped__, seen, known)
    else:
        yield from _parts(type(value), seen, known)
        yield from _of_items(_attributes(value), seen, known)


def _is_known(value: Any, known: Mapping[str, Any]) -> bool:
    fields = [field.name for field in dataclasses.fields(value)]
    same = bool(known) and set(fields) == set(known)
    return same and all(repr(getattr(value, name)) == repr(known[name]) for name in fields)


def _of_items(values: Mapping[Any, Any], seen: dict[int, Any], known: Mapping[str, Any]) -> Iterator[bytes]:
    for name in sorted(values, key=str):
        if not str(name).startswith(("__", "_pytree", "_trace")):  # flax keeps there which trace made an object
            yield str(name).encode()
            yield from _parts(values[name], seen, known)


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)]
    return {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})


def _of_array(value: Any) -> Iterator[bytes]:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    yield f"{array.dtype} {array.shape}".encode()
    some = array.reshape(-1)[:: max(1, array.nbytes // _MOST_BYTES)]
    yield hashlib.blake2b(np.ascontiguousarray(some).tobytes(), digest_size=16).digest()


def _of_function(function: types.FunctionType, seen: dict[int, Any], known: Mapping[str, Any]) -> Iterator[bytes]:
    yield f"{function.__module__}.{function.__qualname__}".encode()
    if _is_of_user(function):
        yield from _of_code(function.__code__)
        yield from _of_items(_named(function), seen, known)
    for part in (function.__defaults__, function.__kwdefaults__):
        yield from _parts(part, seen, known)
    for cell in function.__closure__ or ():
        if _is_bound(cell):
            yield from _parts(cell.cell_contents, seen, known)
        else:
            yield b"empty"


def _named(function: types.FunctionType) -> dict[str, Any]:
    """Return what a function's code takes by name: globals, as a constant beside the loss counts as one within it.

    Of the user's modules, be they globals or closed over, it is the attributes that the code names.
    """
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    held = [cell.cell_contents for cell in function.__closure__ or () if _is_bound(cell)]
    modules = [value for value in (*found.values(), *held) if isinstance(value, types.ModuleType)]
    found = {name: value for name, value in found.items() if not isinstance(value, types.ModuleType)}
    for module in modules:
        if _is_of_user(module) and module.__name__.split(".")[0] not in sys.stdlib_module_names:
            for attribute in names & vars(module).keys():
                found[f"{module.__name__}.{attribute}"] = getattr(module, attribute)
    return found


def _is_bound(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _of_code(code: types.CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield " ".join(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
        elif not isinstance(constant, frozenset):
            yield repr(constant).encode()


def _is_of_class(value: Any) -> bool:
    """Say whether an attribute of a class is code or a constant; others are its maker's notes on it."""
    return callable(value) or isinstance(
        value, property | classmethod | bool | int | float | complex | str | tuple | np.ndarray
    )


def _is_of_user(value: Any) -> bool:
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) or (inspect.getsourcefile(value) if module is None else None)
    if (name or "").split(".")[0] in ("accelnet", "builtins"):
        return False
    return file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts)
