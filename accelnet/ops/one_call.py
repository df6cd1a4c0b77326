"""Ops that are one call each in programs that are traced for another runtime, which has an operator for them."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# Of a kind that the caches of `jax.jit` look at: what was traced for training is traced anew.
_kept = jax.make_user_context(False)


def one_call(name: str, num_static: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare that a function is one call, a `jit` of this name, in programs that are traced under `calls_kept`.

    Everywhere else it is its parts: as a call in every program, two LSTM layers and their gradient had nine copies
    more, of the steps between the layers.

    Args:
        name: Name of the call.
        num_static: How many of the function's first arguments are no arrays.

    Example:
        >>> double = one_call("double", 0)(lambda x: x + x)
        >>> with calls_kept():
        ...     [equation.params["name"] for equation in jax.make_jaxpr(double)(1.0).eqns]
        ['double']
    """

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        def named(*arguments: Any) -> Any:
            return function(*arguments)

        named.__name__ = named.__qualname__ = name
        call = jax.jit(named, static_argnums=tuple(range(num_static)))

        @functools.wraps(function)
        def choose(*arguments: Any) -> Any:
            return (call if _kept.value else function)(*arguments)

        return choose

    return declare


def calls_kept() -> Any:
    """Return a context in which functions under `one_call` are calls in every program that is traced."""
    return _kept(True)


def are_calls_kept() -> bool:
    """Say whether the program that is traced is one for another runtime, as under `calls_kept`.

    Example:
        >>> are_calls_kept()
        False
    """
    return bool(_kept.value)
