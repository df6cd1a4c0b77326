"""Native kernels as an operation of JAX."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from accelnet.ops.kernels import library


class Kernel(NamedTuple):
    """Name a kernel and say what it computes (hashable).

    Attributes:
        target: One of `library.TARGETS`, or a layer of chains, which is compiled as it means elsewhere.
        numbers: Its integer settings, in the order of kernels.cc.
        meaning: Function from the operands of one member to a tuple of its results; hashable. One with a method
            `cotangent` has one result, which is linear in each of its two operands: `cotangent(position)` is the
            kernel that gives an operand's cotangent, and whether it takes the result's cotangent second and not first.
    """

    target: str
    numbers: tuple[int, ...]
    meaning: Callable[..., tuple[Array, ...]]


class Meaning(NamedTuple):
    """What a kernel of one result computes: `function(*operands, *settings)` (hashable, if the settings are)."""

    function: Callable[..., Array]
    settings: tuple[Any, ...] = ()

    def __call__(self, *operands: Array) -> tuple[Array]:
        return (self.function(*operands, *self.settings),)


class Rounding(NamedTuple):
    """What a kernel computes of float32 that it rounds to other types; its results are float32 (hashable).

    Attributes:
        meaning: What the kernel computes of operands of those types.
        dtypes: The types.
    """

    meaning: Callable[..., tuple[Array, ...]]
    dtypes: tuple[Any, ...]

    def __call__(self, *operands: Array) -> tuple[Array, ...]:
        rounded = (operand.astype(dtype) for operand, dtype in zip(operands, self.dtypes, strict=True))
        return tuple(result.astype(_wide(result.dtype)) for result in self.meaning(*rounded))


def _wide(dtype: Any) -> Any:
    return jnp.dtype(jnp.float32) if dtype == jnp.bfloat16 else dtype


# Kernels of which the last number says whether they round what they multiply to bfloat16; those that take every type.
_ROUND = ("accelnet_multiply", "accelnet_recur", "accelnet_recur_backward")
_COPY = ("accelnet_take_rows",)

NAME = "accelnet_kernel"
kernel_p = Primitive(NAME)
kernel_p.multiple_results = True


@functools.partial(jax.jit, static_argnums=0, inline=True)
def call(kernel: Kernel, *operands: Array) -> tuple[Array, ...]:
    """Compute what a kernel means, by the kernel where it can be.

    Args:
        kernel: The kernel.
        *operands: Arrays, without an axis of members. The kernel itself wants float32, bfloat16 or bool.

    Returns:
        The results of `kernel.meaning`.

    Example:
        >>> double = Kernel("accelnet_convolve", (), lambda x: (2 * x,))
        >>> jax.eval_shape(lambda x: call(double, x), jnp.ones(3))[0].shape
        (3,)
    """
    return tuple(result[0] for result in kernel_p.bind(*(operand[None] for operand in operands), kernel=kernel))


def meaning_of(kernel: Kernel, *operands: Array) -> list[Array]:
    """Compute a kernel's meaning for operands with a leading axis of members, 1 where they share one."""
    members = max(operand.shape[0] for operand in operands)
    if members == 1:
        return [result[None] for result in kernel.meaning(*(operand[0] for operand in operands))]
    axes = [None if operand.shape[0] == 1 else 0 for operand in operands]
    own = [operand[0] if axis is None else operand for operand, axis in zip(operands, axes, strict=True)]
    return list(jax.vmap(kernel.meaning, in_axes=axes)(*own))


@kernel_p.def_impl
def _evaluate(*operands: Array, kernel: Kernel) -> list[Array]:
    """Compute outside a program, as the gradients of a program's own inputs are."""
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return meaning_of(kernel, *operands)
    return _evaluate_compiled(*operands, kernel=kernel)


@functools.partial(jax.jit, static_argnames="kernel")
def _evaluate_compiled(*operands: Array, kernel: Kernel) -> list[Array]:
    return kernel_p.bind(*operands, kernel=kernel)


@kernel_p.def_abstract_eval
def _abstract(*operands: Any, kernel: Kernel) -> list[Any]:
    return [
        ShapedArray(result.shape, result.dtype)
        for result in _results_of(kernel, *(jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands))
    ]


@functools.lru_cache(4096)
def _results_of(kernel: Kernel, *operands: jax.ShapeDtypeStruct) -> list[Any]:
    return jax.eval_shape(functools.partial(meaning_of, kernel), *operands)


def _batch(operands: Sequence[Array], dims: Sequence[Any], *, kernel: Kernel) -> tuple[list[Array], list[int]]:
    """Make the mapped axis one of the members."""
    size = next(o.shape[d] for o, d in zip(operands, dims, strict=True) if d is not None)
    members = max(o.shape[0] if d is None else np.delete(o.shape, d)[0] for o, d in zip(operands, dims, strict=True))

    def merged(operand: Array, dim: Any) -> Array:
        if dim is None:
            if operand.shape[0] == 1:
                return operand
            operand = jnp.broadcast_to(operand[None], (size, *operand.shape))
        else:
            operand = jnp.moveaxis(operand, dim, 0)
        operand = jnp.broadcast_to(operand, (size, members, *operand.shape[2:]))
        return operand.reshape(size * members, *operand.shape[2:])

    own = [merged(operand, dim) for operand, dim in zip(operands, dims, strict=True)]
    results = kernel_p.bind(*own, kernel=kernel)
    return [result.reshape(size, members, *result.shape[1:]) for result in results], [0] * len(results)


def _differentiate(primals: Sequence[Array], tangents: Sequence[Any], *, kernel: Kernel) -> Any:
    if hasattr(kernel.meaning, "cotangent"):
        (lhs, rhs), (lhs_tangent, rhs_tangent) = primals, tangents
        (out,) = kernel_p.bind(lhs, rhs, kernel=kernel)
        terms = [kernel_p.bind(lhs_tangent, rhs, kernel=kernel)[0]] if type(lhs_tangent) is not ad.Zero else []
        terms += [kernel_p.bind(lhs, rhs_tangent, kernel=kernel)[0]] if type(rhs_tangent) is not ad.Zero else []
        return [out], [functools.reduce(jnp.add, terms)]
    dense = [ad.instantiate_zeros(tangent) if type(tangent) is ad.Zero else tangent for tangent in tangents]
    return jax.jvp(functools.partial(meaning_of, kernel), tuple(primals), tuple(dense))


def _transpose(cotangents: Sequence[Any], lhs: Any, rhs: Any, *, kernel: Kernel) -> Any:
    (cotangent,) = cotangents
    position = 0 if ad.is_undefined_primal(lhs) else 1
    linear, other = (lhs, rhs) if position == 0 else (rhs, lhs)
    if type(cotangent) is ad.Zero:
        result: Any = ad.Zero(linear.aval)
    else:
        partner, second = kernel.meaning.cotangent(position)  # pyright: ignore[reportFunctionMemberAccess]
        (result,) = kernel_p.bind(*((other, cotangent) if second else (cotangent, other)), kernel=partner)
        if linear.aval.shape[0] < result.shape[0]:  # members share it
            result = result.sum(0, keepdims=True)
    return [result, None] if position == 0 else [None, result]


def _lower(ctx: Any, *operands: Any, kernel: Kernel) -> Any:
    native = kernel.target in library.TARGETS and _alone(ctx.module_context) and _fits(ctx) and library.load()
    function = functools.partial(_by_library if native else meaning_of, kernel)
    return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)


def _by_library(kernel: Kernel, *operands: Array) -> list[Array]:
    """Call the kernel, which has float32 in the place of bfloat16."""
    results = _results_of(kernel, *(jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands))
    return call_library(kernel, results, *operands)


def call_library(kernel: Kernel, results: Sequence[Any], *operands: Array) -> list[Array]:
    """Call the kernel in the library, which is loaded, for one device; operands and results have an axis of members.

    Args:
        kernel: The kernel.
        results: Shapes and dtypes of what it gives.
        *operands: Its operands; weights may be prepared, [members, numbers].

    Example:
        >>> call_library(Kernel("accelnet_prepare", (0, 0, 3, 5), tuple), []) if not library.load() else []
        []
    """
    wide = (lambda dtype: dtype) if kernel.target in _COPY else _wide
    numbers = kernel.numbers
    if kernel.target in _ROUND:
        rounds = isinstance(kernel.meaning, Rounding) or any(operand.dtype == jnp.bfloat16 for operand in operands)
        numbers = (*numbers, int(rounds and library.multiplies_bfloat16()))
    shapes = [jax.ShapeDtypeStruct(result.shape, wide(result.dtype)) for result in results]
    own = [operand.astype(wide(operand.dtype)) for operand in operands]
    out = jax.ffi.ffi_call(kernel.target, shapes)(*own, numbers=np.array(numbers, np.int64))
    return [array.astype(result.dtype) for array, result in zip(out, results, strict=True)]


_with_kernels: ContextVar[bool | None] = ContextVar("with_kernels", default=None)


@contextlib.contextmanager
def with_kernels(choice: bool) -> Iterator[None]:
    """Lower programs with kernels although they are exported, to this very machine, or without although they are not.

    Args:
        choice: True: with kernels wherever a device is alone. False: without.
    """
    token = _with_kernels.set(choice)
    try:
        yield
    finally:
        _with_kernels.reset(token)


def _alone(module: Any) -> bool:
    """Say whether a program is for one device at a time, and for this process."""
    choice = _with_kernels.get()
    if choice is False or (choice is None and module.lowering_parameters.for_export):
        return False
    axes = module.axis_context
    if hasattr(axes, "mesh"):  # of shard_map or pmap
        return axes.mesh.size == 1 or axes.manual_axes == frozenset(axes.mesh.axis_names)
    return getattr(axes, "num_devices", 1) == 1


def _fits(ctx: Any) -> bool:
    """Say whether there is something to compute; kernels do not look for empty arrays."""
    return all(value.size > 0 for value in (*ctx.avals_in, *ctx.avals_out))


batching.primitive_batchers[kernel_p] = _batch
ad.primitive_jvps[kernel_p] = _differentiate
ad.primitive_transposes[kernel_p] = _transpose
mlir.register_lowering(kernel_p, _lower, platform="cpu")
mlir.register_lowering(kernel_p, mlir.lower_fun(lambda *o, kernel: meaning_of(kernel, *o), multiple_results=True))
