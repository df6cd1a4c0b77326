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
            yield from _of_items({k: v for k, v in vars(value).items() if callable(v)}, seen, known)
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
    elif hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        yield from _parts((value.func, value.args, value.keywords), seen, known)
    elif hasattr(value, "__wrapped__"):
        yield from _parts(value.__wrapped__, seen, known)
    else:
        yield from _parts(type(value), seen, known)
        yield from _of_items(getattr(value, "__dict__", {}), seen, known)


def _is_known(value: Any, known: Mapping[str, Any]) -> bool:
    fields = [field.name for field in dataclasses.fields(value)]
    same = bool(known) and set(fields) == set(known)
    return same and all(repr(getattr(value, name)) == repr(known[name]) for name in fields)


def _of_items(values: Mapping[Any, Any], seen: dict[int, Any], known: Mapping[str, Any]) -> Iterator[bytes]:
    for name in sorted(values, key=str):
        if not str(name).startswith(("__", "_pytree")):  # flax keeps there which trace made an object
            yield str(name).encode()
            yield from _parts(values[name], seen, known)


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
        # Globals that the code names: a constant beside the loss counts as one within it.
        named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
        named = {n: v for n, v in named.items() if n in function.__globals__ and not isinstance(v, types.ModuleType)}
        yield from _of_items(named, seen, known)
    for part in (function.__defaults__, function.__kwdefaults__):
        yield from _parts(part, seen, known)
    for cell in function.__closure__ or ():
        try:
            yield from _parts(cell.cell_contents, seen, known)
        except ValueError:  # not bound yet
            yield b"empty"


def _of_code(code: types.CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield " ".join(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
        elif not isinstance(constant, frozenset):
            yield repr(constant).encode()


def _is_of_user(value: Any) -> bool:
    module = sys.modules.get(value.__module__)
    file = getattr(module, "__file__", None) or (inspect.getsourcefile(value) if module is None else None)
    if (value.__module__ or "").split(".")[0] in ("accelnet", "builtins"):
        return False
    return file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts)
