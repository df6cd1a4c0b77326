"""Where a NaN or an infinite number comes from: the first operation of a program that made it of finite ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from accelnet.ops.flops import scan_counts
from accelnet.ops.program import Constant, FlatProgram, Step, flatten

_FINITE, _INFINITE, _NAN = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Origin:
    """An operation that made a number that is not finite, or an operand of the program that held it.

    Attributes:
        operation: Name of the primitive operation, "" for an operand.
        operand: Number of the operand, None for an operation.
        value: Its result, or the operand.
        scope: Named scopes around it, as of `accelnet.scopes`, joined by "/".
        line: The user's line, "file:line (function)", "" if there is none.
        trips: Trips through the loops that it is in, from 0, the outermost first.
        then: Operation that made NaN of the infinite numbers, where it is another.
    """

    operation: str
    operand: int | None
    value: np.ndarray
    scope: str = ""
    line: str = ""
    trips: tuple[int, ...] = ()
    then: "Origin | None" = None

    @property
    def made(self) -> str:
        """What it made: "nan", "inf" or "-inf"."""
        bad = self.value[~np.isfinite(self.value)]
        return "nan" if np.isnan(bad).any() else str(bad.flat[0])

    @property
    def positions(self) -> np.ndarray:
        """Positions of numbers that are not finite, int [N, axes]."""
        return np.argwhere(~np.isfinite(self.value))


def find_origin(closed: Any, arrays: Sequence[Any], groups: Sequence[Sequence[int]]) -> tuple[int, Origin] | None:
    """Look for what first made a number that is not finite, among all that led to some outputs of a program.

    What is infinite and leads to no such number, as a mask before a softmax, does not count.

    Args:
        closed: Closed jaxpr.
        arrays: Its operands.
        groups: Numbers of outputs that are looked at together; the first group that is not finite counts.

    Returns:
        The number of that group, and what was found; None where all of these outputs are finite.

    Example:
        >>> closed = jax.make_jaxpr(lambda x: x * jnp.log(x))(jnp.ones(3))
        >>> group, found = find_origin(closed, [jnp.array([1.0, 0.0, 2.0])], [[0]])
        >>> found.operation, found.made, found.positions.tolist(), found.then.operation, found.then.made
        ('log', '-inf', [[1]], 'mul', 'nan')
    """
    program = flatten(closed)
    return _search(program, arrays, [[program.outputs[number] for number in group] for group in groups])


def _search(
    program: FlatProgram, arrays: Sequence[Any], groups: Sequence[Sequence[int | Constant]]
) -> tuple[int, Origin] | None:
    states = np.asarray(jax.jit(lambda *given: _states(program, given))(*arrays))

    def state(ref: int | Constant) -> int:
        return int(_state(ref.value)) if isinstance(ref, Constant) else int(states[ref])

    makers = {number: index for index, step in enumerate(program.steps) for number in step.outputs}

    def first(refs: Iterable[int | Constant], least: int) -> int | Constant | None:
        """Follow values of at least this state back to the first of them: a step's, an operand, or a constant."""
        left = [ref for ref in refs if state(ref) >= least]
        seen: set[int] = set()
        ends: list[tuple[int, int | Constant]] = []
        while left:
            ref = left.pop()
            if isinstance(ref, Constant) or ref in seen:
                ends += [(len(program.steps), ref)] if isinstance(ref, Constant) else []
                continue
            seen.add(ref)
            index = makers.get(ref, -1)
            before = [] if index < 0 else [one for one in program.steps[index].inputs if state(one) >= least]
            left += before
            ends += [] if before else [(index, ref)]
        return min(ends, key=lambda end: end[0], default=(0, None))[1]

    for number, group in enumerate(groups):
        if (nan := first(group, _NAN)) is not None and not isinstance(nan, Constant):
            found = _origin(program, arrays, nan, makers)
            infinite = (
                first(program.steps[makers[nan]].inputs, _INFINITE) if nan in makers and not found.trips else None
            )
            if infinite is not None and not isinstance(infinite, Constant):
                found = replace(_origin(program, arrays, infinite, makers), then=found)
            return number, found
        if (infinite := first(group, _INFINITE)) is not None and not isinstance(infinite, Constant):
            return number, _origin(program, arrays, infinite, makers)
    return None


def _origin(program: FlatProgram, arrays: Sequence[Any], ref: int, makers: dict[int, int]) -> Origin:
    """Describe the value `ref`; in a loop or a branch, what made it there."""
    if ref not in makers:
        number = program.inputs.index(ref)
        return Origin("", number, _host(arrays[number]))
    step = program.steps[makers[ref]]
    inner = _inside(step, _values(program, arrays, step.inputs)) if step.name in _LOOPS else None
    if inner is not None:
        return inner
    (value,) = _values(program, arrays, [ref])
    return Origin(step.name, None, _host(value), step.scope, step.line)


def _inside(step: Step, given: list[Any]) -> Origin | None:
    """Look in the body of a loop, trip by trip, or in the branch that was taken."""
    for trip, body, operands in _LOOPS[step.name](step, given):
        program = flatten(body, step.scope, step.line)
        _, found = _search(program, operands, [program.outputs]) or (0, None)
        if found is not None and found.operand is None:
            trips = () if trip is None else (trip,)
            then = found.then and replace(found.then, trips=(*trips, *found.then.trips))
            return replace(found, trips=(*trips, *found.trips), then=then)
    return None


def _trips_of_scan(step: Step, given: list[Any]) -> Iterator[tuple[int | None, Any, list[Any]]]:
    consts, carried = scan_counts(step.params)
    body, length = step.params["jaxpr"], step.params["length"]
    run = jax.jit(jaxpr_as_fun(body))
    carry, rest = given[consts : consts + carried], given[consts + carried :]
    for trip in range(length)[:: -1 if step.params["reverse"] else 1]:
        operands = [*given[:consts], *carry, *(array[trip] for array in rest)]
        results = run(*operands)
        if _is_bad(results):
            yield trip, body, operands
        carry = results[:carried]


def _trips_of_while(step: Step, given: list[Any]) -> Iterator[tuple[int | None, Any, list[Any]]]:
    params = step.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    goes_on, run = jax.jit(jaxpr_as_fun(condition)), jax.jit(jaxpr_as_fun(body))
    carry, trip = given[second:], 0
    while bool(goes_on(*given[:first], *carry)[0]):
        operands = [*given[first:second], *carry]
        carry = run(*operands)
        if _is_bad(carry):
            yield trip, body, operands
        trip += 1


def _branch(step: Step, given: list[Any]) -> Iterator[tuple[int | None, Any, list[Any]]]:
    branches = step.params["branches"]
    yield None, branches[int(np.clip(int(given[0]), 0, len(branches) - 1))], given[1:]


_LOOPS: dict[str, Callable[..., Iterator[tuple[int | None, Any, list[Any]]]]] = {
    "scan": _trips_of_scan, "while": _trips_of_while, "cond": _branch,
}  # fmt: skip


def _is_bad(values: Sequence[Any]) -> bool:
    return any(int(_state(value)) for value in values)


def _states(program: FlatProgram, arrays: Sequence[Any]) -> jax.Array:
    """Return the state of every value of a program, by its number."""
    env = _run(program, arrays, program.steps)
    return jnp.stack([jnp.asarray(_state(env[number]) if number in env else 0) for number in range(program.count)])


def _state(value: Any) -> Any:
    if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return jnp.int32(_FINITE)
    nan, infinite = jnp.isnan(value).any(), jnp.isinf(value).any()
    return jnp.where(nan, _NAN, jnp.where(infinite, _INFINITE, _FINITE)).astype(jnp.int32)


def _run(program: FlatProgram, arrays: Sequence[Any], steps: Iterable[Step]) -> dict[int, Any]:
    env: dict[int, Any] = dict(zip(program.inputs, arrays, strict=True))
    for step in steps:
        given = [ref.value if isinstance(ref, Constant) else env[ref] for ref in step.inputs]
        env.update(zip(step.outputs, step.bind(*given), strict=True))
    return env


def _values(program: FlatProgram, arrays: Sequence[Any], refs: Sequence[int | Constant]) -> list[Any]:
    """Compute some values of a program, and no more than they need."""
    needed = {ref for ref in refs if isinstance(ref, int)}
    steps: list[Step] = []
    for step in reversed(program.steps):
        if needed.intersection(step.outputs):
            steps.append(step)
            needed.update(ref for ref in step.inputs if isinstance(ref, int))

    def compute(*given: Any) -> list[Any]:
        env = _run(program, given, steps[::-1])
        return [ref.value if isinstance(ref, Constant) else env[ref] for ref in refs]

    return jax.jit(compute)(*arrays)


def _host(value: Any) -> np.ndarray:
    # NumPy has no functions for bfloat16 and its kin.
    return np.asarray(jnp.asarray(value).astype(jnp.float32) if jnp.result_type(value).itemsize < 4 else value)
