"""Count the floating-point operations of any traceable function, from its jaxpr."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from accelnet.ops import kernels


class Product(NamedTuple):
    """Name a matrix product [m, k] x [k, n], `batch` times. A convolution is the product of its patches.

    Example:
        >>> Product(2, 3, 4, 1, "float32").flops
        48
    """

    m: int
    n: int
    k: int
    batch: int
    dtype: str

    @property
    def flops(self) -> int:
        """Multiplications and additions, 2 m n k batch."""
        return 2 * self.m * self.n * self.k * self.batch


@dataclass
class Flops:
    """Hold a function's floating-point operations.

    Attributes:
        products: How often each matrix product or convolution is executed.
        elementwise: One operation per output element of arithmetic and transcendental functions, one per
            input element of reductions; floating point only.
        scopes: Operations per `jax.named_scope` path (a tuple of names, outermost first).
        unknown_loops: Loops whose trip count is not known, counted as one trip, and opaque kernels, counted
            as nothing: where it is not zero, the counts are lower bounds.

    Example:
        >>> flops = Flops(Counter({Product(2, 3, 4, 1, "float32"): 5}), elementwise=7)
        >>> flops.product_flops, flops.total
        (240, 247)
    """

    products: Counter[Product] = field(default_factory=Counter)
    elementwise: int = 0
    scopes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    unknown_loops: int = 0

    @property
    def product_flops(self) -> int:
        """Operations of the matrix products and convolutions."""
        return sum(product.flops * count for product, count in self.products.items())

    @property
    def total(self) -> int:
        """All operations."""
        return self.product_flops + self.elementwise

    def add(self, other: "Flops", times: int) -> None:
        """Add another count `times` times; its unknown loops stay what they are, places in the program."""
        self.products.update({product: count * times for product, count in other.products.items()})
        self.scopes.update({scope: count * times for scope, count in other.scopes.items()})
        self.elementwise += other.elementwise * times
        self.unknown_loops += other.unknown_loops


def count_flops(function: Callable[..., Any], *args: Any, platform: str | None = None) -> Flops:
    """Count the floating-point operations of one call, without running or compiling it.

    A multiplication and an addition are 2. Convolutions count every tap, those that meet padding included;
    where the input is dilated (transposed convolutions, the input gradient of a strided one), each input
    element counts once per tap, so that a strided convolution's input gradient equals its forward pass. A
    scan's body counts once per step. Of a `cond` the branch with the most operations counts.

    Args:
        function: Traceable by JAX; from arrays to arrays.
        *args: Pytrees of arrays or `jax.ShapeDtypeStruct`.
        platform: Whose branch of `lax.platform_dependent` counts: "cpu", "cuda", "rocm" or "tpu". None
            takes the default branch, which is the function's plain meaning.

    Returns:
        The counts.

    Example:
        >>> x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
        >>> w = jax.ShapeDtypeStruct((64, 10), jnp.float32)
        >>> flops = count_flops(lambda x, w: jnp.tanh(x @ w), x, w)
        >>> flops.products
        Counter({Product(m=32, n=10, k=64, batch=1, dtype='float32'): 1})
        >>> flops.product_flops, flops.elementwise
        (40960, 320)
    """
    return count_jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr, platform=platform)


def count_jaxpr_flops(jaxpr: Jaxpr, *, platform: str | None = None) -> Flops:
    """Count the floating-point operations of a jaxpr, as `count_flops` does.

    Args:
        jaxpr: What `jax.make_jaxpr(function)(*args).jaxpr` gives.
        platform: As in `count_flops`.

    Returns:
        The counts.

    Example:
        >>> count_jaxpr_flops(jax.make_jaxpr(jnp.dot)(jnp.ones(3), jnp.ones(3)).jaxpr).total
        6
    """
    # What no result needs, every compiler drops: an input's gradient that a custom rule gives all the same.
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return _count(used, (), platform)


def _count(jaxpr: Jaxpr, scope: tuple[str, ...], platform: str | None) -> Flops:
    flops = Flops()
    for equation in jaxpr.eqns:
        inner = scope + _scope_names(equation)
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            product = _dot(equation) if name == "dot_general" else _convolution(equation)
            flops.products[product] += 1
            flops.scopes[inner] += product.flops
        elif name == "cond":
            flops.add(_cond(equation, inner, platform), 1)
        elif name == kernels.NAME:
            meaning = functools.partial(kernels.meaning_of, equation.params["kernel"])
            avals: list[Any] = [variable.aval for variable in equation.invars]
            operands = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
            flops.add(_count(jax.make_jaxpr(meaning)(*operands).jaxpr, inner, platform), 1)
        elif name in _OPAQUE:
            flops.unknown_loops += 1
        elif name in _REDUCTIONS or not (bodies := list(_bodies(equation.params))):
            count = _elementwise(equation)
            flops.elementwise += count
            flops.scopes[inner] += count
        else:
            times = _trips(equation)
            flops.unknown_loops += name == "while"
            for body in bodies:
                flops.add(_count(body, inner, platform), times)
    flops.scopes = +flops.scopes
    return flops


def _scope_names(equation: Any) -> tuple[str, ...]:
    """Read the named scopes of an equation, leaving out the transformations (jvp, vmap) between them."""
    stack = equation.source_info.name_stack.stack
    return tuple(element.name for element in stack if type(element).__name__ == "Scope")


def _bodies(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for element in value if isinstance(value, tuple | list) else (value,):
            if isinstance(element, ClosedJaxpr):
                yield element.jaxpr
            elif isinstance(element, Jaxpr):
                yield element


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Return how many operands of a scan are constants and how many are carried, of its parameters.

    Example:
        >>> equation = jax.make_jaxpr(lambda x: jax.lax.scan(lambda a, b: (a + b, a), 0.0, x))(jnp.ones(3)).eqns[-1]
        >>> scan_counts(equation.params)
        (0, 1)
    """
    if "ft_in" in params:  # jax 0.12 says it by the groups of a tree
        consts, carried, _ = params["ft_in"].unpack()
        return len(consts), len(carried)
    return params["num_consts"], params["num_carry"]


def _trips(equation: Any) -> int:
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        return equation.params["mesh"].size
    return 1


def _cond(equation: Any, scope: tuple[str, ...], platform: str | None) -> Flops:
    branches = [branch.jaxpr for branch in equation.params["branches"]]
    platforms = equation.params.get("branches_platforms")
    if platforms is not None:
        matching = [b for b, names in zip(branches, platforms, strict=True) if names and platform in names]
        default = [b for b, names in zip(branches, platforms, strict=True) if names is None]
        branches = matching or default or branches
    counts = [_count(branch, scope, platform) for branch in branches]
    return max(counts, key=lambda count: count.total)


def _dot(equation: Any) -> Product:
    lhs, rhs = (variable.aval for variable in equation.invars)
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = equation.params["dimension_numbers"]
    return Product(
        m=_size(lhs.shape, lhs_contracting + lhs_batch),
        n=_size(rhs.shape, rhs_contracting + rhs_batch),
        k=math.prod(lhs.shape[axis] for axis in lhs_contracting),
        batch=math.prod(lhs.shape[axis] for axis in lhs_batch),
        dtype=str(jnp.promote_types(lhs.dtype, rhs.dtype)),
    )


def _size(shape: tuple[int, ...], excluded: tuple[int, ...]) -> int:
    return math.prod(size for axis, size in enumerate(shape) if axis not in excluded)


def _convolution(equation: Any) -> Product:
    lhs, rhs = (variable.aval for variable in equation.invars)
    out = equation.outvars[0].aval
    params = equation.params
    numbers = params["dimension_numbers"]
    groups = params["feature_group_count"] * params["batch_group_count"]
    positions = lhs.shape[numbers.lhs_spec[0]] // params["batch_group_count"]
    for lhs_axis, out_axis, dilation in zip(
        numbers.lhs_spec[2:], numbers.out_spec[2:], params["lhs_dilation"], strict=True
    ):
        positions *= lhs.shape[lhs_axis] if dilation > 1 else out.shape[out_axis]
    out_features, in_features = (rhs.shape[axis] for axis in numbers.rhs_spec[:2])
    taps = math.prod(rhs.shape[axis] for axis in numbers.rhs_spec[2:])
    dtype = str(jnp.promote_types(lhs.dtype, rhs.dtype))
    return Product(positions, out_features // groups, taps * in_features, groups, dtype)


def _elementwise(equation: Any) -> int:
    name = equation.primitive.name
    if not equation.outvars or name not in _ARITHMETIC | _REDUCTIONS:
        return 0
    operand, out = equation.invars[0].aval, equation.outvars[0].aval
    # argmax returns integers, so what is reduced decides.
    if not jnp.issubdtype(operand.dtype if name in _REDUCTIONS else out.dtype, jnp.inexact):
        return 0
    if name.startswith("reduce_window"):
        return out.size * math.prod(equation.params["window_dimensions"])
    if name.startswith("scatter"):
        return equation.invars[2].aval.size
    return operand.size if name in _REDUCTIONS else out.size


# fmt: off
_ARITHMETIC = frozenset(
    [
        "abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
        "clamp", "cos", "cosh", "digamma", "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor",
        "igamma", "igammac", "integer_pow", "lgamma", "log", "log1p", "logistic", "max", "min", "mul",
        "neg", "nextafter", "polygamma", "pow", "rem", "round", "rsqrt", "sign", "sin", "sinh", "sqrt",
        "square", "sub", "tan", "tanh",
    ]
)
_REDUCTIONS = frozenset(
    [
        "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "reduce", "reduce_max",
        "reduce_min", "reduce_prod", "reduce_sum", "reduce_window", "reduce_window_max",
        "reduce_window_min", "reduce_window_sum", "scatter-add", "scatter-mul", "scatter_add",
        "scatter_mul", "select_and_gather_add", "select_and_scatter", "select_and_scatter_add",
    ]
)
# fmt: on
# Kernels whose bodies are not what one call of them executes.
_OPAQUE = frozenset({"pallas_call", "custom_call", "ffi_call"})
