"""Custom calls of a program, and what they compute.

A compiled program names the target and the arrays of a custom call. What the call computes, and with which settings,
stands only in the jaxpr that it came from: the two are matched by target and arrays.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from accelnet.ops.flops import Flops, count_flops

Array = tuple[str, tuple[int, ...]]


class Call(NamedTuple):
    """A custom call, by its target and the dtype and dimensions of each of its arrays."""

    target: str
    operands: tuple[Array, ...]
    results: tuple[Array, ...]

    @staticmethod
    def read(values: Any) -> "Call":
        """Read what JSON made of a call."""
        target, *sides = values
        return Call(target, *(tuple((dtype, tuple(dims)) for dtype, dims in arrays) for arrays in sides))


def find_calls(*jaxprs: Jaxpr) -> dict[Call, Any]:
    """Return the custom calls in jaxprs, each with an equation that makes it.

    Args:
        *jaxprs: Programs; bodies of loops and branches are looked into.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> double = jax.ffi.ffi_call("double", jax.ShapeDtypeStruct((3,), jnp.float32))
        >>> list(find_calls(jax.make_jaxpr(lambda x: double(x) + 1)(jnp.ones(3)).jaxpr))
        [Call(target='double', operands=(('float32', (3,)),), results=(('float32', (3,)),))]
    """
    found: dict[Call, Any] = {}
    equation: Any
    for equation in (equation for jaxpr in jaxprs for equation in jaxpr.eqns):
        # That of `jax.ffi.ffi_call`, or of a primitive that names its kernel.
        target = equation.params.get("target_name") or getattr(equation.params.get("kernel"), "target", None)
        if target is not None:
            sides = (
                tuple((str(v.aval.dtype), tuple(v.aval.shape)) for v in side)
                for side in (equation.invars, equation.outvars)
            )
            found[Call(target, *sides)] = equation
        found |= find_calls(*bodies(equation))
    return found


def bodies(equation: Any) -> Iterator[Jaxpr]:
    """Yield the jaxprs inside an equation."""
    for value in equation.params.values():
        for element in value if isinstance(value, tuple | list) else (value,):
            if isinstance(element, ClosedJaxpr):
                yield element.jaxpr
            elif isinstance(element, Jaxpr):
                yield element


def call_flops(equation: Any) -> Flops:
    """Count the operations of a custom call, as far as its primitive declares them."""
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    return count_flops(lambda *operands: equation.primitive.bind(*operands, **equation.params), *shapes)
