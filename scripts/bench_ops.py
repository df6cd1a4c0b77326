"""Measure every CPU program that could compute a convolution or a product, shape by shape, and steps in bfloat16.

python scripts/bench_ops.py [--rounds 3] [--batch 64] [--only 0 5]
python scripts/bench_ops.py --products [--rounds 3]
python scripts/bench_ops.py --precision fashion_mlp char_lstm [--rounds 41]

Prints, for each shape, the milliseconds of the output, of the input's gradient and of the kernels' gradient by the
compiled kernels, by patches and by XLA's own convolution, each inside a compiled loop, where training runs. The median
of rounds in which the programs take turns; * marks the fastest. With --precision, training steps of the benchmark's
cases in float32 and in bfloat16 take turns: the median of the paired ratios, their quartiles, the ratio of the fastest
turns, and how far the losses of the first 20 steps are apart.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from accelnet import ops
from accelnet.ops import convolution, cpu_convolution, patches
from accelnet.ops.geometry import Geometry, transposed_kernels

# Pixels per side, input channels, output channels, kernel size, stride, groups.
SHAPES = [
    (28, 1, 32, 3, 1, 1),
    (32, 3, 16, 3, 1, 1),
    (32, 8, 8, 3, 1, 1),
    (32, 16, 16, 3, 1, 1),
    (16, 32, 32, 3, 1, 1),
    (14, 32, 64, 3, 1, 1),
    (8, 64, 64, 3, 1, 1),
    (16, 128, 128, 3, 1, 1),
    (8, 256, 256, 3, 1, 1),
    (14, 32, 64, 5, 1, 1),
    (32, 16, 32, 3, 2, 1),
    (16, 32, 64, 3, 2, 1),
    (28, 64, 64, 3, 2, 1),
    (32, 32, 64, 1, 1, 1),
    (32, 32, 32, 3, 1, 32),
    (32, 64, 64, 3, 2, 64),
    (16, 64, 64, 3, 1, 4),
]
# Rows, columns, depth, members of a population.
PRODUCTS = [
    (64, 128, 64, 1),
    (64, 10, 128, 1),
    (128, 512, 784, 1),
    (128, 512, 512, 1),
    (128, 10, 512, 1),
    (128, 128, 3136, 1),
    (2048, 96, 256, 1),
    (2048, 1024, 128, 1),
    (64, 128, 64, 32),
    (64, 10, 128, 32),
    (16, 16, 16, 256),
    (4, 3, 2, 1024),
]
LOWERINGS = {"kernels": cpu_convolution, "patches": patches}


def in_loop(function: Callable[..., Array], *args: Array) -> Callable[[int], float]:
    """Return a timer of n calls in one compiled loop, in seconds per call; no call can be hoisted out of it."""
    stacks = [jnp.stack([arg, arg * 1.5]) for arg in args]

    @jax.jit
    def run(n: Array, stacks: list[Array]) -> Array:
        def body(i: Array, previous: Array) -> Array:
            chosen = [lax.dynamic_index_in_dim(stack, i % 2, keepdims=False) for stack in stacks]
            return function(*lax.optimization_barrier(chosen)) + 1e-30 * previous.ravel()[0]

        shape = jax.eval_shape(function, *args)
        return lax.fori_loop(0, n, body, jnp.zeros(shape.shape, shape.dtype))

    def timed(n: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(run(jnp.int32(n), stacks))
        return (time.perf_counter() - start) / n

    timed(1)
    return timed


def candidates(lhs: Array, rhs: Array, geometry: Geometry) -> dict[str, dict[str, Any]]:
    """Return, per pass, every program that computes it and its arguments."""
    gradient = jnp.ones_like(convolution.native(lhs, rhs, geometry))
    transposed = geometry.transposed(lhs.shape, rhs.shape)
    native = lambda lhs, rhs: convolution.native(lhs, rhs, geometry)  # noqa: E731
    passes: dict[str, dict[str, Any]] = {
        "output": {"XLA": (native, lhs, rhs)},
        "input gradient": {"XLA": (lambda g, rhs: jax.vjp(lambda x: native(x, rhs), lhs)[1](g)[0], gradient, rhs)},
        "kernel gradient": {"XLA": (lambda x, g: jax.vjp(lambda rhs: native(x, rhs), rhs)[1](g)[0], lhs, gradient)},
    }
    for name, lowering in LOWERINGS.items():
        passes["output"][name] = (lambda x, k, low=lowering: low.convolve(x, k, geometry), lhs, rhs)
        passes["input gradient"][name] = (
            lambda g, k, low=lowering: low.convolve(g, transposed_kernels(k, geometry.groups), transposed),
            gradient,
            rhs,
        )
        passes["kernel gradient"][name] = (
            lambda x, g, low=lowering: low.kernel_gradient(x, g, rhs.shape, geometry),
            lhs,
            gradient,
        )
    return passes


def products(rows: int, columns: int, depth: int, members: int) -> dict[str, dict[str, Any]]:
    """Return, per pass, the compiled kernel's and XLA's program of a product, mapped over the members."""
    lead = () if members == 1 else (members,)
    lhs, rhs, gradient = (
        jax.random.normal(jax.random.key(number), (*lead, *shape))
        for number, shape in enumerate(((rows, depth), (depth, columns), (rows, columns)))
    )
    passes: dict[str, dict[str, Any]] = {"output": {}, "input gradient": {}, "kernel gradient": {}}
    for name, dot in (("kernels", ops.dot_general), ("XLA", lax.dot_general)):
        multiply = functools.partial(dot, dimension_numbers=(((1,), (0,)), ((), ())))
        of_lhs = lambda g, rhs, f=multiply: jax.vjp(lambda x: f(x, rhs), jnp.zeros((rows, depth)))[1](g)[0]  # noqa: E731
        of_rhs = lambda x, g, f=multiply: jax.vjp(lambda w: f(x, w), jnp.zeros((depth, columns)))[1](g)[0]  # noqa: E731
        mapped = (lambda f: f) if members == 1 else jax.vmap
        passes["output"][name] = (mapped(multiply), lhs, rhs)
        passes["input gradient"][name] = (mapped(of_lhs), gradient, rhs)
        passes["kernel gradient"][name] = (mapped(of_rhs), lhs, gradient)
    return passes


def show(passes: dict[str, dict[str, Any]], rounds: int) -> None:
    """Measure and print the passes of a shape."""
    for name, programs in passes.items():
        times = measure(programs, rounds)
        best = min(times.values())
        row = "  ".join(f"{who} {value:7.3f}{'*' if value == best else ' '}" for who, value in times.items())
        print(f"  {name:16}{row}", flush=True)


def measure(programs: dict[str, Any], rounds: int, seconds: float = 0.1) -> dict[str, float]:
    """Time programs in turns; return medians in milliseconds."""
    timers = {name: in_loop(function, *args) for name, (function, *args) in programs.items()}
    counts = {name: max(2, int(seconds / timer(2))) for name, timer in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer(counts[name]) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def precisions(name: str, rounds: int, seconds: float = 0.1) -> str:
    """Train a case of the benchmark in both precisions, in turns."""
    from accelnet.training.program import prepare
    from bench_systems.accelnet_chunks import make_experiment
    from bench_systems.cases import CASES

    runs, losses = {}, {}
    for precision in ("float32", "bfloat16"):
        feed, programs = prepare(make_experiment(CASES[name]).replace(precision=precision))
        operand, state = feed.train_operand(0, 1), programs.init(np.uint32(0))
        losses[precision] = []
        for _ in range(20):
            state, report = programs.train(state, operand, np.int32(1), np.bool_(True))
            losses[precision].append(float(report["loss"]))
        runs[precision] = [programs.train, state, operand]

    def timed(precision: str, count: int) -> float:
        train, state, operand = runs[precision]
        start = time.perf_counter()
        runs[precision][1], _ = jax.block_until_ready(train(state, operand, np.int32(count), np.bool_(True)))
        return (time.perf_counter() - start) / count * 1e3

    count = max(2, int(seconds * 1e3 / timed("float32", 5)))
    times = [
        {precision: timed(precision, count) for precision in (list(runs) if turn % 2 else [*runs][::-1])}
        for turn in range(rounds)
    ]
    ratios = [turn["float32"] / turn["bfloat16"] for turn in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians, fastest = ({p: of(turn[p] for turn in times) for p in runs} for of in (statistics.median, min))
    apart = max(abs(b / a - 1) for a, b in zip(*losses.values(), strict=True))
    return (
        f"{name}: float32 {medians['float32']:.3f} ms, bfloat16 {medians['bfloat16']:.3f} ms: {middle:.2f} times as "
        f"fast ({low:.2f} to {high:.2f}; fastest turns {fastest['float32'] / fastest['bfloat16']:.2f}); losses "
        f"{apart:.1%} apart"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each measurement")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--products", action="store_true", help="products of matrices, not convolutions")
    parser.add_argument("--only", type=int, nargs="*", help="indices of the shapes, all if left out")
    parser.add_argument("--precision", nargs="+", metavar="CASE", help="steps of these cases in float32 and bfloat16")
    arguments = parser.parse_args()
    for name in arguments.precision or ():
        print(precisions(name, arguments.rounds), flush=True)
    if arguments.precision:
        return
    if arguments.products:
        for rows, columns, depth, members in [PRODUCTS[i] for i in arguments.only or range(len(PRODUCTS))]:
            print(f"[{rows}, {depth}] times [{depth}, {columns}], {members} members")
            show(products(rows, columns, depth, members), arguments.rounds)
        return
    for size, channels, features, kernel, stride, groups in (
        [SHAPES[i] for i in arguments.only] if arguments.only else SHAPES
    ):
        low, high = (kernel - 1) // 2, kernel // 2
        geometry = Geometry((stride,) * 2, ((low, high),) * 2, (1, 1), (1, 1), groups)
        lhs = jax.random.normal(jax.random.key(0), (arguments.batch, size, size, channels))
        rhs = jax.random.normal(jax.random.key(1), (kernel, kernel, channels // groups, features))
        print(f"{size}x{size}x{channels} -> {features}, {kernel}x{kernel}, stride {stride}, groups {groups}")
        show(candidates(lhs, rhs, geometry), arguments.rounds)


if __name__ == "__main__":
    main()
