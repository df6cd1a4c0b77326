"""A traced function as one flat list of primitive steps: calls taken apart, platforms chosen, kernels as they mean."""

import functools
import itertools
import linecache
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from accelnet.ops import kernels
from accelnet.ops.one_call import calls_kept

# Primitives that stand for a program of their own, and the names that they have for it.
_CALLS = frozenset({
    "pjit", "jit", "call", "closed_call", "core_call", "checkpoint", "remat", "remat2", "composite", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call",
})  # fmt: skip
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
# Frames of these are not the user's.
_LIBRARIES = ("jax", "flax", "optax", "accelnet", "chex", "einops")

# Functions of accelnet's that stay one step: exporting has something better for them than their parts.
WHOLE = frozenset({"accelnet_recurrence"})
# Functions whose program for the CPU is the one to export: a loop over the steps, and not rounds over all of them.
_AS_ON_CPU = frozenset({"accelnet_linear_states"})


class Constant(NamedTuple):
    """An operand that is known."""

    value: Any


@dataclass(frozen=True)
class Step:
    """Describe one primitive operation of a program.

    Attributes:
        name: Name of the primitive, or of one of the functions in `WHOLE`.
        bind: Function that computes the step's outputs from arrays, as a list.
        params: The primitive's parameters.
        inputs: Numbers of earlier values, or constants.
        outputs: Numbers that the results get.
        in_avals: Shape and dtype of each operand.
        out_avals: Shape and dtype of each result.
        scope: Named scopes around it, as of `accelnet.scopes`, joined by "/".
        line: The user's line that made it, "file:line (function)", "" if there is none.
        used: Whether anything reads each result.
    """

    name: str
    bind: Callable[..., list[Any]]
    params: dict[str, Any]
    inputs: list[int | Constant]
    outputs: list[int]
    in_avals: list[Any]
    out_avals: list[Any]
    scope: str
    line: str
    used: list[bool] = field(default_factory=list)


@dataclass
class FlatProgram:
    """A flat program: `outputs` are values of the steps, of the inputs, or constants."""

    inputs: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    outputs: list[int | Constant] = field(default_factory=list)
    count: int = 0

    def new(self) -> int:
        """Number a new value."""
        self.count += 1
        return self.count - 1


def trace(function: Callable[..., Any], *operands: Any) -> FlatProgram:
    """Trace a function of flat operands, arrays or shapes of them, to a flat program.

    Example:
        >>> program = trace(jax.jit(lambda x: jax.nn.relu(x) + 1), jax.ShapeDtypeStruct((3,), "float32"))
        >>> [step.name for step in program.steps]
        ['max', 'add']
    """
    with calls_kept():
        return flatten(jax.make_jaxpr(function)(*operands))


def flatten(
    closed: Any, scope: str = "", line: str = "", wanted: Sequence[bool] | None = None, *, with_kernels: bool = False
) -> FlatProgram:
    """Flatten a closed jaxpr, such as the body of a loop.

    Args:
        closed: The closed jaxpr.
        scope: Layers around it.
        line: The user's line that made it, for operations that have none of their own.
        wanted: Which outputs the program has; all if None.
        with_kernels: Whether it is the CPU's program, whose kernels stay steps, and not one that is right everywhere.
    """
    program = FlatProgram()
    program.inputs = [program.new() for _ in closed.jaxpr.invars]
    program.outputs = _walk(program, closed, list(program.inputs), scope, line, with_kernels, with_kernels)
    if wanted is not None:
        program.outputs = list(itertools.compress(program.outputs, wanted))
    # What no result needs is not written.
    needed = {ref for ref in program.outputs if isinstance(ref, int)}
    kept: list[Step] = []
    for step in reversed(program.steps):
        if needed.intersection(step.outputs):
            kept.append(replace(step, used=[number in needed for number in step.outputs]))
            needed.update(ref for ref in step.inputs if isinstance(ref, int))
    program.steps = kept[::-1]
    return program


def evaluate(program: FlatProgram, arrays: Sequence[Any]) -> tuple[list[Any], Iterator[tuple[Step, list[Any]]]]:
    """Run a program whose sizes are all known, one step after the other.

    Returns:
        A list that the outputs fill when the iterator, of each step and its results, is at its end.
    """
    outputs: list[Any] = []

    def run() -> Iterator[tuple[Step, list[Any]]]:
        env: dict[int, Any] = dict(zip(program.inputs, arrays, strict=True))
        for step in program.steps:
            results = step.bind(*(value_of(env, ref) for ref in step.inputs))
            env.update(zip(step.outputs, results, strict=True))
            yield step, results
        outputs.extend(value_of(env, ref) for ref in program.outputs)

    return outputs, run()


def value_of(env: dict[int, Any], ref: int | Constant) -> Any:
    """Return what an operand is: a constant, or one of the values by number."""
    return ref.value if isinstance(ref, Constant) else env[ref]


def _walk(
    program: FlatProgram,
    closed: Any,
    inputs: list[int | Constant],
    scope: str,
    line: str,
    on_cpu: bool,
    with_kernels: bool,
) -> list[int | Constant]:
    jaxpr = closed.jaxpr
    env: dict[Any, int | Constant] = dict(zip(jaxpr.invars, inputs, strict=True))
    env.update({var: Constant(value) for var, value in zip(jaxpr.constvars, closed.consts, strict=True)})

    def read(var: Any) -> int | Constant:
        return Constant(np.asarray(var.val, _aval(var).dtype)) if isinstance(var, Literal) else env[var]

    for equation in jaxpr.eqns:
        inner = "/".join(part for part in (scope, _scope_of(equation)) if part)
        place = _line_of(equation) or line
        given = [read(var) for var in equation.invars]
        whole = equation.params.get("name") in WHOLE
        body = None if whole or (with_kernels and equation.primitive.name == kernels.NAME) else _body(equation, on_cpu)
        if equation.primitive.name == "platform_index":
            env[equation.outvars[0]] = Constant(0)
        elif body is not None:
            given = given[1:] if equation.primitive.name == "cond" else given
            on_loop = on_cpu or equation.params.get("name") in _AS_ON_CPU
            results = _walk(program, body, given, inner, place, on_loop, with_kernels)
            env.update(zip(equation.outvars, results, strict=True))
        else:
            numbers = [program.new() for _ in equation.outvars]
            env.update(zip(equation.outvars, numbers, strict=True))
            name = equation.params["name"] if whole else equation.primitive.name
            operands, results = (list(map(_aval, group)) for group in (equation.invars, equation.outvars))
            bind = _binding(equation, jaxpr.debug_info)
            params = dict(equation.params)
            program.steps.append(Step(name, bind, params, given, numbers, operands, results, inner, place))
    return [read(var) for var in jaxpr.outvars]


def _aval(variable: Any) -> Any:
    return variable.aval


def _body(equation: Any, on_cpu: bool) -> Any:
    """Return the closed jaxpr that an equation stands for, None for an operation of its own."""
    name, params = equation.primitive.name, equation.params
    if name == kernels.NAME:
        meaning = functools.partial(kernels.meaning_of, params["kernel"])
        return jax.make_jaxpr(meaning)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars))
    if (platforms := params.get("branches_platforms")) is not None:
        chosen = [
            branch
            for branch, names in zip(params["branches"], platforms, strict=True)
            if (on_cpu and names and "cpu" in names) or (names is None)
        ]
        return chosen[0]
    if name not in _CALLS:
        return None
    body = next((params[key] for key in _BODIES if key in params), None)
    return ClosedJaxpr(body, ()) if body is not None and not hasattr(body, "consts") else body


def _binding(equation: Any, debug_info: Any) -> Callable[..., list[Any]]:
    """Return the function that an equation computes, from all its operands."""
    operands = [var for var in equation.invars if not isinstance(var, Literal)]
    alone = Jaxpr((), list(dict.fromkeys(operands)), equation.outvars, [equation], equation.effects, debug_info)
    function = jaxpr_as_fun(ClosedJaxpr(alone, ()))

    def bind(*arrays: Any) -> list[Any]:
        pairs = zip(equation.invars, arrays, strict=True)
        given = {var: array for var, array in pairs if not isinstance(var, Literal)}
        return list(function(*given.values()))

    return bind


def _scope_of(equation: Any) -> str:
    """Read the named scopes of an equation, leaving out the transformations between them."""
    stack = equation.source_info.name_stack.stack
    return "/".join(element.name for element in stack if type(element).__name__ == "Scope")


def _line_of(equation: Any) -> str:
    """Name the innermost line of the user's code that made an equation.

    Frames outside of the function that was traced are left out: jax keeps what it traced, and others may call it now.
    """
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        path = Path(frame.file_name)
        if path.name == "partial_eval.py" and frame.function_name.startswith("trace_to_jaxpr"):
            break
        if _is_own(path) and linecache.getline(frame.file_name, frame.line_num):
            return f"{path}:{frame.line_num} ({frame.function_name})"
    return ""


@functools.lru_cache(4096)
def _is_own(path: Path) -> bool:
    roots = [Path(__file__).parents[1]]
    roots += [parent / name for parent in path.parents if parent.name == "site-packages" for name in _LIBRARIES]
    standard = Path(linecache.__file__).parent
    in_standard = path.is_relative_to(standard) and "site-packages" not in path.parts
    return not in_standard and not any(path.is_relative_to(root) for root in roots)
