"""Elementwise primitives."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from accelnet.exporting.onnx.graph import Graph, Value
from accelnet.exporting.onnx.rules import RULES, UnsupportedError, cast, elementwise, rule, scalar

# fmt: off
_DIRECT = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "add": "Add", "add_any": "Add", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "div": "Div", "eq": "Equal",
    "eq_to": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater",
    "le": "LessOrEqual", "le_to": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "lt_to": "Less",
    "min": "Min", "mul": "Mul", "neg": "Neg", "pow": "Pow", "sign": "Sign", "sin": "Sin", "sinh": "Sinh",
    "sqrt": "Sqrt", "sub": "Sub", "tan": "Tan", "tanh": "Tanh",
}
_LOGICAL = {
    "and": ("And", "BitwiseAnd"), "or": ("Or", "BitwiseOr"), "xor": ("Xor", "BitwiseXor"), "not": ("Not", "BitwiseNot"),
}
_SAME = (
    "copy", "copy_p", "device_put", "layout_constraint", "name", "optimization_barrier", "pvary", "reshard",
    "sharding_constraint", "stop_gradient",
)
# fmt: on
# Operations of onnxruntime know few types of short integers: they are computed in int32.
_SHORT = ("int8", "int16", "uint8", "uint16")


def _write(op: str) -> Callable[..., Value]:
    def write(graph: Graph, step: Any, *values: Value) -> Value:
        short = str(values[0].dtype) in _SHORT

        def apply(*tensors: str) -> str:
            if not short:
                return graph.add(op, *tensors)
            result = graph.add(op, *(cast(graph, tensor, np.int32) for tensor in tensors))
            return result if step.out_avals[0].dtype == np.bool_ else cast(graph, result, step.out_avals[0].dtype)

        return elementwise(graph, step, values, apply)

    return write


RULES.update({name: _write(op) for name, op in _DIRECT.items()})


@rule("max")
def _max(graph: Graph, step: Any, *values: Value) -> Value:
    for value, other in (values, values[::-1]):
        if value.constant is not None and value.dtype == np.float32 and not np.any(value.constant):
            return elementwise(graph, step, [other], lambda x: graph.add("Relu", x))
    return _write("Max")(graph, step, *values)


@rule(*_LOGICAL)
def _logical(graph: Graph, step: Any, *values: Value) -> Value:
    op = _LOGICAL[step.name][0 if values[0].dtype == np.bool_ else 1]
    return elementwise(graph, step, values, lambda *tensors: graph.add(op, *tensors))


@rule(*_SAME)
def _same(_graph: Graph, _step: Any, *values: Value) -> list[Value]:
    return list(values)


@rule("convert_element_type")
def _convert(graph: Graph, step: Any, value: Value) -> Value:
    dtype = step.out_avals[0].dtype
    if value.dtype == dtype:
        return value
    return elementwise(graph, step, [value], lambda tensor: cast(graph, tensor, dtype))


@rule("integer_pow")
def _integer_pow(graph: Graph, step: Any, value: Value) -> Value:
    exponent = step.params["y"]

    def write(x: str) -> str:
        power = reduce(lambda a, b: graph.add("Mul", a, b), [x] * abs(exponent)) if 0 < abs(exponent) <= 3 else None
        if power is None:
            return graph.add("Pow", x, scalar(graph, exponent, value.dtype))
        return power if exponent > 0 else graph.add("Reciprocal", power)

    return elementwise(graph, step, [value], write)


class _Formula:
    """What the formulas below write with: operations, and numbers of the operands' type."""

    def __init__(self, graph: Graph, step: Any, dtype: Any) -> None:
        self.add, self.params = graph.add, step.params
        self.number = lambda number: scalar(graph, number, dtype)


def _cbrt(f: _Formula, x: str) -> str:
    return f.add("Mul", f.add("Sign", x), f.add("Pow", f.add("Abs", x), f.number(1 / 3)))


def _atan2(f: _Formula, y: str, x: str) -> str:
    """Write atan(y / x), moved by pi to the side that the signs tell."""
    zero, pi = f.number(0), f.number(math.pi)
    half = f.add("Where", f.add("Less", y, zero), f.number(-math.pi), pi)
    side = f.add("Where", f.add("Less", x, zero), half, zero)
    upright = f.add("Mul", f.add("Sign", y), f.number(math.pi / 2))
    return f.add("Where", f.add("Equal", x, zero), upright, f.add("Add", f.add("Atan", f.add("Div", y, x)), side))


def _log1p(f: _Formula, x: str) -> str:
    """Write log(u) x / (u - 1) with u = 1 + x as rounded, exact also where x is small."""
    one = f.number(1)
    u = f.add("Add", one, x)
    ratio = f.add("Div", f.add("Mul", f.add("Log", u), x), f.add("Sub", u, one))
    exact = f.add("Where", f.add("Greater", x, f.number(2.0**30)), f.add("Log", x), ratio)
    return f.add("Where", f.add("Equal", u, one), x, exact)


def _expm1(f: _Formula, x: str) -> str:
    """Write (u - 1) x / log(u) with u = exp(x) as rounded, and u - 1 where that is exact enough."""
    one = f.number(1)
    u = f.add("Exp", x)
    less = f.add("Sub", u, one)
    ratio = f.add("Div", f.add("Mul", less, x), f.add("Log", u))
    exact = f.add("Where", f.add("Less", f.add("Abs", x), one), ratio, less)
    return f.add("Where", f.add("Equal", u, one), x, exact)


def _round(f: _Formula, x: str) -> str:
    if f.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return f.add("Round", x)
    return f.add("Mul", f.add("Sign", x), f.add("Floor", f.add("Add", f.add("Abs", x), f.number(0.5))))


_FORMULAS: dict[str, Callable[..., str]] = {
    "atan2": _atan2,
    "cbrt": _cbrt,
    "erfc": lambda f, x: f.add("Sub", f.number(1), f.add("Erf", x)),
    "exp2": lambda f, x: f.add("Exp", f.add("Mul", x, f.number(math.log(2)))),
    "expm1": _expm1,
    "is_finite": lambda f, x: f.add("Not", f.add("Or", f.add("IsNaN", x), f.add("IsInf", x))),
    "log1p": _log1p,
    "log2": lambda f, x: f.add("Mul", f.add("Log", x), f.number(1 / math.log(2))),
    "ne": lambda f, x, y: f.add("Not", f.add("Equal", x, y)),
    "rem": lambda f, x, y: f.add("Mod", x, y, fmod=1),
    "round": _round,
    "rsqrt": lambda f, x: f.add("Reciprocal", f.add("Sqrt", x)),
    "square": lambda f, x: f.add("Mul", x, x),
}


@rule(*_FORMULAS)
def _composed(graph: Graph, step: Any, *values: Value) -> Value:
    formula = _Formula(graph, step, values[0].dtype)
    return elementwise(graph, step, values, lambda *tensors: _FORMULAS[step.name](formula, *tensors))


@rule("clamp")
def _clamp(graph: Graph, step: Any, low: Value, x: Value, high: Value) -> Value:
    def write(low: str, x: str, high: str) -> str:
        return graph.add("Min", graph.add("Max", x, low), high)

    return elementwise(graph, step, [low, x, high], write)


@rule("select_n")
def _select(graph: Graph, step: Any, which: Value, *cases: Value) -> Value:
    def write(which: str, *cases: str) -> str:
        if step.in_avals[0].dtype == np.bool_:
            return choose(graph, which, cases[1], cases[0], step.out_avals[0].dtype)
        result = cases[0]
        for index, case in enumerate(cases[1:], start=1):
            is_it = graph.add("Equal", which, scalar(graph, index, np.int32))
            result = choose(graph, is_it, case, result, step.out_avals[0].dtype)
        return result

    return elementwise(graph, step, [which, *cases], write)


def choose(graph: Graph, condition: str, one: str, other: str, dtype: Any) -> str:
    """Take `one` where the condition holds, and `other` elsewhere; onnxruntime has no Where of bool."""
    if dtype != np.bool_:
        return graph.add("Where", condition, one, other)
    yes = graph.add("And", condition, one)
    return graph.add("Or", yes, graph.add("And", graph.add("Not", condition), other))


@rule("dim_as_value")
def _dim_as_value(graph: Graph, step: Any) -> Value:
    aval = step.out_avals[0]
    name = graph.add("Squeeze", graph.size(step.params["dim"]), graph.ints([0]))
    return Value(cast(graph, name, aval.dtype), (), aval.dtype, ())


def check_type(dtype: Any) -> None:
    """Refuse types that runtimes cannot compute in."""
    if jnp.issubdtype(dtype, jnp.complexfloating) or str(dtype) == "bfloat16" or "float8" in str(dtype):
        raise UnsupportedError(f"computes in {dtype}, which runtimes of ONNX do not: compute in float32")
