"""Programs of bfloat16 on a CPU: float32 arrays, whose numbers are rounded to bfloat16 where they are multiplied.

XLA's CPU programs convert every array of bfloat16 to float32 before each operation and back behind it, which took more
time than products in bfloat16 save. Here only products round, by kernels while they pack their operands; what lies
between products is not rounded, so that every result is as near to the exact one or nearer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxpr_as_fun

from accelnet.ops import kernels

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
# Operations that give in float32 what they give in bfloat16, but for rounding, and whose settings name no type.
_SAME = frozenset({
    "abs", "add", "add_any", "and", "broadcast_in_dim", "clamp", "concatenate", "copy", "cos", "div",
    "dynamic_slice", "dynamic_update_slice", "eq", "erf", "exp", "exp2", "expand_dims", "expm1", "gather", "ge",
    "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg",
    "optimization_barrier", "pad", "pow", "reduce_max", "reduce_min", "reduce_prod", "reduce_sum",
    "reduce_window_max", "reduce_window_sum", "reshape", "rev", "rsqrt", "select_and_gather_add",
    "select_and_scatter_add", "select_n", "sign", "sin", "slice", "sqrt", "square", "squeeze", "sub", "tanh",
    "transpose",
})  # fmt: skip


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with arrays of float32 on a CPU wherever it has bfloat16, and as it is elsewhere.

    Args:
        function: Function of pytrees of arrays, and of anything by name; its results keep their types.

    Returns:
        The function. It is traced once. Derivatives of what it returns are those of XLA's operations.

    Example:
        >>> square = in_float32(lambda x: (x.astype(jnp.bfloat16) ** 2).astype(jnp.float32))
        >>> float(jax.jit(square)(jnp.float32(2)))
        4.0
    """

    def called(*args: Any, **settings: Any) -> Any:
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return function(*args, **settings)
        closed, shape = jax.make_jaxpr(partial(function, **settings), return_shape=True)(*args)

        def on_cpu(*operands: Array) -> list[Array]:
            return _run(closed, operands)

        def elsewhere(*operands: Array) -> list[Array]:
            return list(jaxpr_as_fun(closed)(*operands))

        out = lax.platform_dependent(*jax.tree.leaves(args), cpu=on_cpu, default=elsewhere)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return called


def _wide(array: Any) -> Any:
    return array.astype(jnp.float32) if _is_narrow(array) else array


def _dtype(value: Any) -> Any:
    return getattr(value, "dtype", None)


def _is_narrow(value: Any) -> bool:
    return _dtype(value) == jnp.bfloat16


def _run(closed: ClosedJaxpr, operands: Sequence[Array]) -> list[Array]:
    """Compute a program, and give its results their types."""
    results = _evaluate(closed, list(map(_wide, operands)))
    return [result.astype(aval.dtype) for result, aval in zip(results, closed.out_avals, strict=True)]


def _evaluate(closed: ClosedJaxpr, operands: Sequence[Array]) -> list[Array]:
    env = dict(zip(closed.jaxpr.invars, operands, strict=True))
    env |= dict(zip(closed.jaxpr.constvars, map(_wide, closed.consts), strict=True))

    def read(atom: Any) -> Any:
        if not isinstance(atom, Literal):
            return env[atom]
        return jnp.asarray(atom.val, jnp.float32) if _is_narrow(atom.aval) else atom.val

    for equation in closed.jaxpr.eqns:
        with _named(equation):
            results = _equation(equation, [read(atom) for atom in equation.invars])
        env |= dict(zip(equation.outvars, results, strict=True))
    return [jnp.asarray(read(atom)) for atom in closed.jaxpr.outvars]


def _equation(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    avals = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    if not any(map(_is_narrow, avals)) and name not in _CALLS and name != "cond":
        return _bound(equation, operands)
    if name in _CALLS:
        body = params[_CALLS[name]]
        return _evaluate(body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ()), operands)
    if name == "cond":
        index, *rest = operands
        if (platforms := params.get("branches_platforms")) is not None:
            own = [names is None or "cpu" in names for names in platforms].index(True)
            return _evaluate(params["branches"][own], rest)
        branches = [lambda *given, branch=branch: _evaluate(branch, given) for branch in params["branches"]]
        return list(lax.switch(index, branches, *rest))
    if name == "convert_element_type":
        to = jnp.float32 if params["new_dtype"] == jnp.bfloat16 else params["new_dtype"]
        return [lax.convert_element_type(operands[0], to)]
    if name == kernels.NAME:
        kernel = params["kernel"]
        meaning = kernels.Rounding(kernel.meaning, tuple(_dtype(atom.aval) for atom in equation.invars))
        return equation.primitive.bind(*operands, kernel=kernel._replace(meaning=meaning))
    if name == "scatter-add":  # whose own function of two numbers names their type
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [lax.scatter_add(*operands, **{key: params[key] for key in names})]
    if name in _SAME:
        return _bound(equation, operands)
    narrow = [
        operand.astype(jnp.bfloat16) if _is_narrow(atom.aval) else operand
        for operand, atom in zip(operands, equation.invars, strict=True)
    ]
    return [_wide(result) for result in _bound(equation, narrow)]


def _bound(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    params = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
        results = equation.primitive.bind(*operands, **params)
    return list(results) if equation.primitive.multiple_results else [results]


@contextmanager
def _named(equation: JaxprEqn) -> Iterator[None]:
    """Keep the scopes that the equation was traced in."""
    name = str(equation.source_info.name_stack)
    with jax.named_scope(name) if name else nullcontext():
        yield
