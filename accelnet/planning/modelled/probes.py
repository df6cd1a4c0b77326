"""Small programs whose time tells what a part of a step costs on the device at hand.

Each runs in a loop on the device, as it does inside a chunk of steps: a call costs more than most of them.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.ops import take_rows
from accelnet.ops.flops import Product

# A measurement takes at least so long, several times over.
SECONDS = 0.02
REPEATS = 5
# Sets of operands that take turns.
MOST_SETS = 16
# Number of small products in a row.
_CHAIN = 16
# Kinds of operations whose memory traffic is measured.
MEMORY = ("elementwise", "reduction", "move", "gather")


def loop_seconds(body: Callable[[Any], Any], start: Any, threads: int | None = None) -> float:
    """Return the seconds of one trip through a loop on the device; one thread keeps a CPU's operations whole."""

    def run(number: jax.Array, carry: Any) -> Any:
        # Without the barrier XLA would see that every trip does the same.
        return jax.lax.fori_loop(0, number, lambda _, carry: jax.lax.optimization_barrier(body(carry)), carry)

    options: dict[str, str | bool] | None = (
        {"xla_cpu_multi_thread_eigen": False} if threads == 1 and _on_cpu() else None
    )
    compiled = jax.jit(run).lower(np.int32(0), start).compile(compiler_options=options)

    def seconds(number: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(np.int32(number), start))
        return time.perf_counter() - begin

    number, base = 1, min(seconds(0) for _ in range(3))
    while (taken := seconds(number) - base) < SECONDS:
        number = int(number * max(2.0, min(20.0, 1.2 * SECONDS / max(taken, 1e-6))))
    # From the difference of two lengths, so that what a call costs, such as copying its arguments, does not count. The
    # least of each: what else the machine does only adds.
    short, long = (min(seconds(times * number) for _ in range(REPEATS)) for times in (1, 3))
    # Where a busy machine made the short one the longer, the long one bounds it from above.
    return (long - short) / (2 * number) if long > short else long / (3 * number)


def rotated(
    make: Callable[[], Any], body: Callable[[Any], Any], size: int, footprint: int, threads: int | None = None
) -> float:
    """Return the seconds of an operation that finds its operands where a program of this footprint leaves them.

    A loop over one set of operands would find them in the nearest cache: here as many sets take turns as the
    program's memory holds.
    """
    number = max(1, min(MOST_SETS, footprint // max(size, 1)))
    start = [make() for _ in range(number)]
    seconds = loop_seconds(lambda carry: [body(part) for part in carry], start, threads) - _trip_overhead()
    return max(seconds, 0.0) / number


@functools.cache
def _trip_overhead() -> float:
    """Return what a trip of `loop_seconds` costs itself: on a GPU more than most operations, on a CPU nothing."""
    if _on_cpu():
        return 0.0
    one, many = (_chain_seconds(_small_product, length) for length in (1, _CHAIN))
    return max(one - (many - one) / (_CHAIN - 1), 0.0)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _polynomial(x: jax.Array, degree: int) -> jax.Array:
    y = x
    for _ in range(degree):
        y = y * x + 0.5
    return y


def product_seconds(product: Product, footprint: int) -> float:
    """Return the seconds of a matrix product alone."""
    dtype = jnp.dtype(product.dtype)
    lead = () if product.batch == 1 else (product.batch,)

    def make() -> Any:
        a, b = jnp.ones((*lead, product.m, product.k), dtype), jnp.ones((*lead, product.k, product.n), dtype)
        return a, b, jnp.zeros((*lead, product.m, product.n), dtype)

    size = (product.m * product.k + product.k * product.n + product.m * product.n) * product.batch * dtype.itemsize
    return rotated(make, lambda part: (part[0], part[1], part[0] @ part[1]), size, footprint)


def memory_seconds(kind: str, size: int, footprint: int, threads: int) -> float:
    """Return the seconds of an operation of one of the kinds of `MEMORY` on so many bytes."""
    ones = functools.partial(jnp.ones, dtype=jnp.float32)
    rows = max(1, size // (8 * 64))
    table = ones((max(rows, 1 << 12), 64))
    indices = jnp.asarray(np.random.default_rng(0).permutation(len(table))[:rows], jnp.int32)
    probes: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        # Not in place: one array is read, another written.
        "elementwise": (
            lambda: (ones((size // 8,)), ones((size // 8,))),
            lambda part: (part[0], part[0] * 0.999 + 0.001),
        ),
        "reduction": (
            lambda: (ones((max(1, size // (4 * 64)), 64)), ones((64,))),
            lambda part: (part[0], part[0].sum(0)),
        ),
        "move": (lambda: (ones((rows, 64)), ones((64, rows))), lambda part: (part[0], part[0].T)),
        "gather": (
            lambda: (table, indices, ones((rows, 64))),
            lambda part: (part[0], part[1], take_rows(part[0], part[1])),
        ),
    }
    return rotated(*probes[kind], size, footprint, threads)


def call_seconds(equation: Any, footprint: int) -> float:
    """Return the seconds of a custom call alone, by an equation that makes it, on noise."""
    shapes = [(variable.aval.shape, variable.aval.dtype) for variable in equation.invars]
    results = [(variable.aval.shape, variable.aval.dtype) for variable in equation.outvars]
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in (*shapes, *results))
    noise = np.random.default_rng(0)

    def make() -> Any:
        operands = [
            jnp.asarray(0.1 * noise.standard_normal(shape), dtype) if jnp.issubdtype(dtype, jnp.inexact)
            else jnp.ones(shape, dtype)
            for shape, dtype in shapes
        ]  # fmt: skip
        return operands, [jnp.zeros(shape, dtype) for shape, dtype in results]

    def body(part: Any) -> Any:
        made = equation.primitive.bind(*part[0], **equation.params)
        return part[0], list(made) if equation.primitive.multiple_results else [made]

    return rotated(make, body, size, footprint)


def element_seconds() -> float:
    """Return the seconds of an addition or multiplication of float32, by one thread or the whole accelerator."""
    x, degree = _elements(), 32 if _on_cpu() else 512
    seconds = loop_seconds(lambda x: _polynomial(x, degree), x, 1) - _trip_overhead()
    return seconds / (2 * degree * x.size)


def transcendental_seconds() -> float:
    """Return the seconds of an exponential of float32, by one thread or the whole accelerator."""
    x, number = _elements(), 1 if _on_cpu() else 64

    def body(x: jax.Array) -> jax.Array:
        for _ in range(number):
            x = jnp.exp(-x)
        return x

    return (loop_seconds(body, x, 1) - _trip_overhead()) / (number * x.size)


def _elements() -> jax.Array:
    # Few enough for a core's cache; enough for all of an accelerator's, with so much to do that memory does not count.
    return jnp.full((1 << 16 if _on_cpu() else 1 << 22,), 0.5, jnp.float32)


def dispatch_seconds() -> float:
    """Return what dividing an operation among threads costs: its time on all of them less half of that on one.

    Waking a thread takes longer, the longer it has slept: in a virtual machine as long as an operation on 100 kB.
    """
    x = jnp.full((1 << 15,), 0.5, jnp.float32)
    alone = loop_seconds(lambda x: _polynomial(x, 64), x, 1)
    divided = statistics.median(loop_seconds(lambda x: _polynomial(x, 64), x) for _ in range(3))
    return max(divided - alone / 2, 0.0)


def launch_seconds() -> float:
    """Return what starting an operation costs, from a chain of tiny ones that cannot be fused."""
    return (_chain_seconds(_small_product, _CHAIN) - _trip_overhead()) / _CHAIN


def trip_seconds(launch: float) -> float:
    """Return what a trip through a loop costs, beside the operation in it."""
    trips = 64

    def loop(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, trips, lambda _, x: _small_product(x, w), x)

    return max(_chain_seconds(loop, _CHAIN) / _CHAIN / trips - launch, 0.0)


def _small_product(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(x @ w)


def _chain_seconds(link: Callable[[jax.Array, jax.Array], jax.Array], length: int) -> float:
    x, w = jnp.ones((8, 8), jnp.float32), jnp.eye(8, dtype=jnp.float32)
    # XLA makes one function of a loop over some kilobytes, with nothing to start in it: such a loop is not meant.
    large = jnp.zeros((1 << 20,), jnp.float32)

    def chain(carry: Any) -> Any:
        x, w, large = carry
        for _ in range(length):
            x = link(x, w)
        return x, w, large

    return loop_seconds(chain, (x, w, large))
