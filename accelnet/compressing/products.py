"""A program, run while the inputs of its products with parameters are looked at.

The program is read as a jaxpr, so that it does not matter which layer, of which library, made a product: what counts is
that one of its operands is a parameter, or a rearrangement of one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from accelnet.compressing.inputs import Inputs, of_convolution, of_product, of_recurrence
from accelnet.compressing.origins import ParameterElements, moved
from accelnet.ops import kernels
from accelnet.ops.flops import scan_counts
from accelnet.ops.geometry import Geometry

# Primitives that stand for a program of their own, and the names that they have for it.
_CALLS = frozenset({
    "pjit", "jit", "call", "closed_call", "core_call", "checkpoint", "remat", "remat2", "composite", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call",
})  # fmt: skip
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")


class Sink(Protocol):
    """What sees the products of a program."""

    def see(self, inputs: Inputs) -> None:
        """Take the inputs of a product."""

    def inner(self) -> "Sink":
        """Return a sink for the body of a loop."""
        ...

    def arrays(self) -> tuple[Any, Any]:
        """Return what was seen: a pytree that adds up over a loop's steps, and one of which each step has its own."""
        ...

    def take(self, body: "Sink", total: Any, stacked: Any) -> None:
        """Take what the sink of a loop's body has seen in all steps."""


class TracedValue(NamedTuple):
    """Hold a value of the program.

    Attributes:
        array: The value.
        origin: Which parameter's elements it has, if it has but these.
        fixed: Whether it is the same for all inputs of the program.
        tables: Numbers of waiting products whose inputs belong to the value's rows, and the axis of the rows.
    """

    array: Any
    origin: ParameterElements | None = None
    fixed: bool = False
    tables: tuple[tuple[int, ...], int] | None = None


class Watcher:
    """Run a program and show a sink the inputs of its products with parameters.

    A product of two values that no input of the program changes, such as a table of symbols and a kernel, waits until
    tokens choose among its rows, and is seen with the rows that they chose.

    Args:
        sink: What sees them.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._count, self._waiting = 0, dict[int, Inputs]()

    def run(self, closed: Any, values: Sequence[TracedValue]) -> list[TracedValue]:
        """Return the outputs of a closed jaxpr."""
        outputs = self._walk(closed, values)
        for inputs in self._waiting.values():
            self._see(inputs)
        self._waiting = {}
        return outputs

    def _walk(self, closed: Any, values: Sequence[TracedValue]) -> list[TracedValue]:
        env: dict[Any, TracedValue] = dict(zip(closed.jaxpr.invars, values, strict=True))
        env |= {var: TracedValue(c, fixed=True) for var, c in zip(closed.jaxpr.constvars, closed.consts, strict=True)}

        def read(var: Any) -> TracedValue:
            return TracedValue(var.val, fixed=True) if isinstance(var, Literal) else env[var]

        for equation in closed.jaxpr.eqns:
            results = self._equation(equation, [read(var) for var in equation.invars], closed.jaxpr.debug_info)
            env.update(zip(equation.outvars, results, strict=True))
        return [read(var) for var in closed.jaxpr.outvars]

    def _equation(self, equation: Any, given: list[TracedValue], debug_info: Any) -> list[TracedValue]:
        name, params = equation.primitive.name, equation.params
        if any(value.origin or value.tables for value in given):
            if name == "scan":
                return self._scan(params, given)
            if (body := _body(equation)) is not None:
                return self._walk(body, given[1:] if name == "cond" else given)
        arrays = _computed(equation, given, debug_info)
        fixed = all(value.fixed for value in given)
        outputs = [TracedValue(array, fixed=fixed) for array in arrays]
        if name == "dot_general":
            return [outputs[0]._replace(tables=self._dot(given[0], given[1], params["dimension_numbers"]))]
        if name == "conv_general_dilated":
            self._native_convolution(given[0], given[1], params)
        elif name == kernels.NAME:
            tables = self._kernel(params["kernel"], given, arrays)
            return [value._replace(tables=tables) for value in outputs]
        elif name == "gather":
            self._gather(given[0], given[1].array, params)
        elif len(given) == 1 and given[0].origin is not None:
            origins = moved(given[0].origin, name, params) or [None] * len(outputs)
            outputs = [value._replace(origin=one) for value, one in zip(outputs, origins, strict=True)]
        if fixed and len(outputs) == 1:
            outputs = [outputs[0]._replace(tables=_kept_rows(name, params, given, outputs[0].array.shape))]
        return outputs

    def _dot(self, lhs: TracedValue, rhs: TracedValue, dimensions: Any) -> Any:
        (lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch) = dimensions
        if rhs.origin is not None:
            inputs, axis = of_product(rhs.origin, lhs.array, (rhs_contracted, lhs_contracted), (rhs_batch, lhs_batch))
            if inputs is not None and axis is not None and lhs.fixed:
                return self._wait(inputs, lhs, axis)
        elif lhs.origin is not None:
            inputs, _ = of_product(lhs.origin, rhs.array, (lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch))
        else:
            return None
        return self._see(inputs)

    def _see(self, inputs: Inputs | None) -> None:
        if inputs is not None:
            self.sink.see(inputs)

    def _wait(self, inputs: Inputs, table: TracedValue, axis: int) -> tuple[tuple[int, ...], int]:
        """Keep a product until it is known which rows of its result are chosen; return those that wait for these."""
        number = self._count = self._count + 1
        self._waiting[number] = inputs
        before = table.tables[0] if table.tables is not None and table.tables[1] == axis else ()
        return (*before, number), 0

    def _chosen(self, table: TracedValue, tokens: Array, weights: Array | None) -> None:
        """Let the products that made a table's rows be seen with the rows that are read."""
        numbers, axis = table.tables or ((), 0)
        counts = jnp.ones(tokens.shape, jnp.float32) if weights is None else weights.astype(jnp.float32)
        counts = jnp.zeros(table.array.shape[axis], jnp.float32).at[tokens].add(counts, mode="drop")
        for number in numbers:
            if (inputs := self._waiting.pop(number, None)) is not None:
                self._see(inputs._replace(weights=counts))

    def _gather(self, table: TracedValue, indices: Array, params: Any) -> None:
        if table.tables is None:
            return
        axis, numbers = table.tables[1], params["dimension_numbers"]
        if axis in numbers.start_index_map and axis in numbers.collapsed_slice_dims:
            self._chosen(table, indices[..., numbers.start_index_map.index(axis)], None)

    def _native_convolution(self, lhs: TracedValue, rhs: TracedValue, params: Any) -> None:
        if rhs.origin is None or params["batch_group_count"] != 1:
            return
        numbers = params["dimension_numbers"]
        images = jnp.transpose(lhs.array, [numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]])
        order = [*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]]
        geometry = Geometry(
            params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"],
            params["feature_group_count"],
        )  # fmt: skip
        self._see(of_convolution(rhs.origin, np.transpose(rhs.origin.indices, order), images, geometry))

    def _kernel(self, kernel: kernels.Kernel, given: list[TracedValue], results: list[Any]) -> Any:
        """Look into a compiled kernel, whose operands have an axis of one member in front."""
        values = [_alone(value) for value in given]
        meaning: Any = kernel.meaning
        if kernel.target == "accelnet_multiply":
            axes = ((0 if meaning.lhs_transposed else 1,), (1 if meaning.rhs_transposed else 0,))
            tables = self._dot(values[0], values[1], (axes, ((), ())))
            return None if tables is None else (tables[0], tables[1] + 1)
        if kernel.target == "accelnet_convolve" and values[1].origin is not None:
            (geometry,) = meaning.settings
            self._see(of_convolution(values[1].origin, values[1].origin.indices, values[0].array, geometry))
        if kernel.target == "accelnet_recur":
            self._recurrence(meaning, values, results[0][0])
        return None

    def _recurrence(self, meaning: Any, values: list[TracedValue], hiddens: Array) -> None:
        valid = values[-1].array[..., 0] if meaning.has_valid else None
        if meaning.has_tokens:
            self._chosen(values[0], values[1].array, valid)
            values = [values[0], *values[2:]]
        first, kernel = values[1].array, values[1 + meaning.cell.num_states]
        if kernel.origin is not None:
            self._see(of_recurrence(kernel.origin, hiddens, first, reverse=meaning.reverse, valid=valid))

    def _scan(self, params: Any, given: list[TracedValue]) -> list[TracedValue]:
        num_consts, num_carry = scan_counts(params)
        consts, first, xs = given[:num_consts], given[num_consts:][:num_carry], given[num_consts + num_carry :]
        sinks: list[Sink] = []

        def run(carry: Any, x: Any) -> Any:
            sinks.append(self.sink.inner())
            inside = [value._replace(tables=None) for value in consts] + [TracedValue(array) for array in carry]
            inside += [
                TracedValue(array, _first(value.origin), value.fixed) for value, array in zip(xs, x, strict=True)
            ]
            outputs = [value.array for value in Watcher(sinks[-1]).run(params["jaxpr"], inside)]
            total, stacked = sinks[-1].arrays()
            return outputs[:num_carry], (outputs[num_carry:], total, stacked)

        carry, x = [value.array for value in first], [value.array for value in xs]
        shapes = jax.eval_shape(run, carry, jax.tree.map(lambda array: array[0], x))[1][1]
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

        def step(state: Any, x: Any) -> Any:
            carry, (outputs, total, stacked) = run(state[0], x)
            return (carry, jax.tree.map(jnp.add, state[1], total)), (outputs, stacked)

        options = {"length": params["length"], "reverse": params["reverse"], "unroll": params["unroll"]}
        (carry, total), (outputs, stacked) = jax.lax.scan(step, (carry, zeros), x, **options)
        self.sink.take(sinks[-1], total, stacked)
        return [TracedValue(array) for array in (*carry, *outputs)]


def _body(equation: Any) -> Any:
    """Return the closed jaxpr that an equation stands for on this platform; None for an operation of its own."""
    params = equation.params
    if (platforms := params.get("branches_platforms")) is not None:
        pairs = list(zip(params["branches"], platforms, strict=True))
        own = [branch for branch, names in pairs if names and jax.default_backend() in names]
        return [*own, *(branch for branch, names in pairs if names is None)][0]
    if equation.primitive.name not in _CALLS:
        return None
    body = next((params[key] for key in _BODIES if key in params), None)
    return ClosedJaxpr(body, ()) if body is not None and not hasattr(body, "consts") else body


def _computed(equation: Any, given: Sequence[TracedValue], debug_info: Any) -> list[Any]:
    """Compute an equation as it stands."""
    pairs = zip(equation.invars, given, strict=True)
    operands = {var: value.array for var, value in pairs if not isinstance(var, Literal)}
    alone = Jaxpr((), list(operands), equation.outvars, [equation], equation.effects, debug_info)
    return list(jaxpr_as_fun(ClosedJaxpr(alone, ()))(*operands.values()))


def _first(origin: ParameterElements | None) -> ParameterElements | None:
    """Return the origin of the first of the arrays that a loop reads one by one."""
    if origin is None or origin.stride or len(origin.indices) < 2:
        return None
    first, second = (int(part.flat[0]) for part in origin.indices[:2])
    return origin._replace(indices=origin.indices[0], stride=second - first)


def _alone(value: TracedValue) -> TracedValue:
    """Take away an axis of one member."""
    origin = None if value.origin is None else value.origin._replace(indices=value.origin.indices[0])
    tables = None if value.tables is None else (value.tables[0], value.tables[1] - 1)
    return TracedValue(value.array[0], origin, value.fixed, tables)


def _kept_rows(name: str, params: Any, given: Sequence[TracedValue], shape: tuple[int, ...]) -> Any:
    """Say which axis of a result has the rows of its operands, of a result that no input changes."""
    tables = [value.tables for value in given if value.tables is not None]
    if not tables:
        return None
    numbers, axis = tables[0]
    operand = next(value.array for value in given if value.tables is not None)
    if name == "broadcast_in_dim":
        return numbers, params["broadcast_dimensions"][axis]
    if name == "squeeze":
        return numbers, axis - sum(gone < axis for gone in params["dimensions"])
    if operand.shape != shape:
        return None
    return tuple(dict.fromkeys(number for one in tables for number in one[0])), axis
