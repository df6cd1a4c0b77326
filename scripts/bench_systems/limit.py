"""The limit: the time of a case's dense products alone, each in a compiled loop as often as a step needs it."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import partial_eval

from accelnet.ops.flops import Product, count_jaxpr_flops
from accelnet.training.step import make_gradient
from bench_systems.accelnet_chunks import initial_state, make_experiment
from bench_systems.cases import Arrays, Case
from bench_systems.system import System

# Smaller products are no more than a call, and a loop around them measures the loop.
_SMALLEST_FLOPS = 10_000


def products(case: Case) -> Counter[Product]:
    """Count the dense products of one step.

    A convolution counts as the product of its patches. Depthwise ones are left out: a matrix times a vector is bound
    by memory and says nothing about the speed of products.
    """
    experiment = make_experiment(case)
    state = jax.eval_shape(lambda: initial_state(case, experiment))
    rows = {"mask": jax.ShapeDtypeStruct((case.batch_size,), jnp.bool_)}
    batch = rows | jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((case.batch_size, *a.shape[1:]), a.dtype), dict(experiment.data.arrays)
    )

    def forward(state: Any, batch: Any) -> Any:
        inputs = experiment.data.prepare(batch)["inputs"]
        key = jax.random.key(0)
        return experiment.pure_model.apply(state.params, state.model_state, inputs, key=key, train=False)[0]

    def gradient(state: Any, batch: Any) -> Any:
        return make_gradient(experiment)(state, lambda *_: batch)[0]

    step = forward if case.kind == "inference" else gradient
    if case.kind == "population":
        step = jax.vmap(step, in_axes=(0, None))
    jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
    # The input's gradient of the first layer is traced where a backward pass is written by hand, and nobody's.
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    counted = count_jaxpr_flops(jaxpr, platform="tpu").products
    return Counter(
        {
            product: count
            for product, count in counted.items()
            if product.flops >= _SMALLEST_FLOPS and (product.batch == 1 or min(product.m, product.n, product.k) > 1)
        }
    )


class Layout(NamedTuple):
    """Say which operands of a product lie transposed in memory, and whether the result does."""

    lhs: bool
    rhs: bool
    out: bool


def multiplications(product: Product, layout: Layout) -> tuple[tuple[Array, Array], Callable[..., Array]]:
    """Return operands, and `repeat(value, count, *operands)`, which multiplies them so often and needs each result.

    No product can leave the loop: whether it is computed depends on the one before. Operands that changed would have
    to be copied, at three times the cost of the product of a convolution's patches.
    """
    (m, n, k), batch = product[:3], (product.batch,) if product.batch > 1 else ()
    lhs = jnp.ones((*batch, *((k, m) if layout.lhs else (m, k))), product.dtype)
    rhs = jnp.ones((*batch, *((n, k) if layout.rhs else (k, n))), product.dtype)
    first = len(batch)
    axes = first if layout.lhs else first + 1, first + 1 if layout.rhs else first
    shared = tuple(range(first))

    def multiply(lhs: Array, rhs: Array) -> Array:
        pairs = [(lhs, axes[0]), (rhs, axes[1])][:: -1 if layout.out else 1]
        (a, a_axis), (b, b_axis) = pairs
        out = lax.dot_general(a, b, (((a_axis,), (b_axis,)), (shared, shared)))
        return lax.optimization_barrier(out).ravel()[0].astype(jnp.float32)

    def repeat(value: Array, count: int, lhs: Array, rhs: Array) -> Array:
        again = lambda _, value: lax.cond(value >= 0, multiply, lambda *_: value, lhs, rhs)  # noqa: E731
        return lax.fori_loop(0, count, again, value)

    return (lhs, rhs), repeat


def fastest_layout(product: Product) -> Layout:
    """Measure in which layout XLA multiplies fastest: the limit is what a program could reach that chose it."""

    def seconds(layout: Layout) -> float:
        operands, repeat = multiplications(product, layout)
        run = jax.jit(lambda count, *operands: repeat(jnp.float32(0), count, *operands))
        count = jnp.int32(max(2, 10**8 // product.flops))
        jax.block_until_ready(run(count, *operands))
        times = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(run(count, *operands))
            times.append(time.perf_counter() - start)
        return min(times)

    return min(itertools.starmap(Layout, itertools.product((False, True), repeat=3)), key=seconds)


def make(case: Case, _: str, __: Arrays) -> System:
    """Make the system.

    Raises:
        NotImplementedError: where no product is large enough.
    """
    counted = products(case)
    if not counted:
        raise NotImplementedError(f"no product of the step has {_SMALLEST_FLOPS:,} operations")
    made = [multiplications(product, fastest_layout(product)) for product in counted]

    @jax.jit
    def run(num_steps: Array, operands: list[tuple[Array, Array]]) -> Array:
        def step(_: Array, value: Array) -> Array:
            for pair, (_, repeat), count in zip(operands, made, counted.values(), strict=True):
                value = repeat(value, count, *pair)
            return value

        return lax.fori_loop(0, num_steps, step, jnp.float32(0))

    def timed(num_steps: int) -> tuple[float, int]:
        start = time.perf_counter()
        jax.block_until_ready(run(jnp.int32(num_steps), [operands for operands, _ in made]))
        return time.perf_counter() - start, num_steps

    return System(lambda _: [], timed)
