"""Measure products, layers and networks of 8 and 4 bits beside those of float32, in turns.

python scripts/bench_bits.py [--rounds 15] [--only products recurrence convolutions networks]
python scripts/bench_bits.py --instructions 1     # as on a processor without AVX-512 VNNI; 2: without AVX2
python scripts/bench_bits.py --ranges             # rows rounded by their own largest number, or by ranges of other rows

Prints the median microseconds of each call, and how many times as fast as float32 it is. For a baseline without
AVX-512: CXX="g++ -mno-avx512f" and another $XDG_CACHE_HOME.
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
from flax import nnx

from accelnet.models import CNN, MLP, RNN
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.quantized import kernels_of
from accelnet.ops import conv_general_dilated, dot_general, kernels, lstm, quantized
from accelnet.ops.geometry import resolve
from accelnet.ops.quantized import nearest, pack, quantized_dot
from accelnet.ops.quantized_convolution import pack_kernels, quantized_convolution
from accelnet.ops.quantized_recurrence import QuantizedKernel, quantized_recurrence

# Depth and columns; hidden features, features and steps; side, channels and features.
PRODUCTS = [(128, 512), (256, 1024), (784, 512), (1024, 4096)]
RECURRENCES = [(128, 28, 28), (256, 128, 64)]
CONVOLUTIONS = [(28, 8, 32), (28, 32, 64), (14, 32, 64), (8, 64, 64), (7, 128, 128)]
BATCHES = (1, 2, 4, 16, 64, 256)
NETWORKS: dict[str, tuple[Callable[..., nnx.Module], tuple[int, ...]]] = {
    "fashion_mlp": (lambda rngs: MLP(784, (512, 512), 10, rngs=rngs), (784,)),
    "fashion_rnn": (lambda rngs: RNN(28, 128, 10, rngs=rngs), (28, 28)),
    "fashion_cnn": (lambda rngs: CNN((28, 28, 1), [32, 64], 10, rngs=rngs), (28, 28, 1)),
}
RNG = np.random.default_rng(0)


def floats(*shape: int) -> jax.Array:
    """Draw an array."""
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median microseconds of each call; a turn repeats a short one."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        start = time.perf_counter()
        jax.block_until_ready(call())
        repeats[name] = max(1, min(50, int(2e-3 / (time.perf_counter() - start))))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                jax.block_until_ready(call())
            found[name].append((time.perf_counter() - start) / repeats[name])
    return {name: 1e6 * statistics.median(times) for name, times in found.items()}


def show(what: str, found: dict[str, float]) -> None:
    """Print a line."""
    base = found["float32"]
    cells = (f"{name} {took:10.1f} ({base / took:5.2f}x)" for name, took in found.items())
    print(f"{what:32}", "  ".join(cells), flush=True)


def products(rounds: int) -> None:
    """Measure products."""
    for depth, columns in PRODUCTS:
        weights = floats(depth, columns)
        for batch in BATCHES:
            x = floats(batch, depth)
            axes = (((1,), (0,)), ((), ()))
            plain = jax.jit(lambda x, w: dot_general(x, w, axes))  # noqa: B023, called before it changes
            calls = {"float32": functools.partial(plain, x, weights)}
            for bits in (8, 4):
                whole, scale = nearest(weights, bits)
                calls[f"int{bits}"] = functools.partial(jax.jit(quantized_dot), x, pack(whole, bits), scale)
            show(f"{depth} x {columns}, {batch} rows", in_turns(calls, rounds))


def recurrence(rounds: int) -> None:
    """Measure LSTM layers."""
    for hidden, features, steps in RECURRENCES:
        weights = [floats(depth, 4 * hidden) / depth**0.5 for depth in (features, hidden)]
        bias = jnp.zeros(4 * hidden)
        for batch in BATCHES:
            x = floats(batch, steps, features)
            calls = {"float32": functools.partial(jax.jit(lambda *a: lstm(*a)[1][0]), x, *weights, bias)}
            for bits in (8, 4):
                rounded = [nearest(one, bits) for one in weights]
                given = [QuantizedKernel(pack(whole, bits), scale) for whole, scale in rounded]
                run = jax.jit(lambda *a: quantized_recurrence("lstm", *a)[1])
                calls[f"int{bits}"] = functools.partial(run, x, *given, bias)
            show(f"LSTM {hidden}, {steps} steps, {batch} rows", in_turns(calls, rounds))


def convolutions(rounds: int) -> None:
    """Measure convolutions."""
    layout = ("NHWC", "HWIO", "NHWC")
    for side, channels, features in CONVOLUTIONS:
        weights = floats(3, 3, channels, features)
        for batch in BATCHES:
            x = jax.nn.relu(floats(batch, side, side, channels))
            geometry = resolve(x.shape, weights.shape, (1, 1), "SAME", None, None, 1)
            plain = jax.jit(lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout))
            calls = {"float32": functools.partial(plain, x, weights)}
            for bits in (8, 4):
                whole, scale = nearest(weights.reshape(-1, features), bits)
                packed = pack_kernels(whole.reshape(weights.shape), bits)
                run = jax.jit(lambda *a: quantized_convolution(*a, None, (3, 3), geometry))  # noqa: B023
                calls[f"int{bits}"] = functools.partial(run, x, packed, scale)
            show(f"{side}x{side}x{channels} -> {features}, {batch} images", in_turns(calls, rounds))


def networks(rounds: int) -> None:
    """Measure whole networks."""
    for name, (model, shape) in NETWORKS.items():
        whole = model(rngs=nnx.Rngs(0))
        paths = [".".join(map(str, path)) for path, layer in nnx.iter_modules(whole) if kernels_of(layer)]
        made = {"float32": whole}
        for bits in (16, 8, 4):
            made[f"int{bits}".replace("int16", "bfloat16")] = Compressed(
                model, Compression(bits=dict.fromkeys(paths, bits))
            )(rngs=nnx.Rngs(0))
        for batch in (1, 16, 256):
            x = floats(batch, *shape)
            calls = {}
            for kind, module in made.items():
                graph, state = nnx.split(module)
                run = jax.jit(lambda state, x, graph=graph: nnx.merge(graph, state)(x))
                calls[kind] = functools.partial(run, state, x)
            show(f"{name}, {batch} rows", in_turns(calls, rounds))


def ranges() -> None:
    """Compare the error of a row's own largest number with that of ranges of 1,000 other rows, on Fashion-MNIST."""
    import accelnet as an
    from accelnet.training.batch import prepared

    experiment = an.Experiment(
        data=an.data.fashion_mnist(), model=NETWORKS["fashion_mlp"][0], batch_size=128, steps=500,
        optimizer=an.optim.adam(1e-3), objective=an.objectives.softmax_cross_entropy(),
    )  # fmt: skip
    run = an.fit(experiment)
    layers = run.params["layers"]
    steps = [(layers["0"]["linear"], True), (layers["1"]["linear"], True), (run.params["head"], False)]
    batch = run.experiment.data.take(np.arange(2000))
    x = prepared(run.experiment, {**batch, "mask": np.ones(2000, bool)})["inputs"].reshape(2000, -1)
    for index, (layer, is_hidden) in enumerate(steps):
        seen, rows = x[:1000], x[1000:]
        expected = rows @ layer["kernel"]

        def error(rounded: Any, rows: Any = rows, kernel: Any = layer["kernel"], expected: Any = expected) -> float:
            return float(jnp.linalg.norm(rounded(rows) @ kernel - expected) / jnp.linalg.norm(expected))

        low, high = float(seen.min()), float(seen.max())
        step, largest = (high - low) / 255, max(-low, high) / 127
        found = {
            "own largest number": error(lambda rows: jnp.multiply(*quantized.round_rows(rows))),
            "one range": error(lambda rows, s=largest: jnp.clip(jnp.round(rows / s), -127, 127) * s),
            "one range and zero point": error(
                lambda rows, s=step, a=low: jnp.clip(jnp.round((rows - a) / s), 0, 255) * s + a
            ),
        }
        print(f"inputs of layer {index}", "  ".join(f"{name} {one:.5f}" for name, one in found.items()))
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if is_hidden else x


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"products": products, "recurrence": recurrence, "convolutions": convolutions, "networks": networks}
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=list(parts), default=list(parts))
    parser.add_argument("--instructions", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--ranges", action="store_true")
    given = parser.parse_args()
    if given.ranges:
        ranges()
        return
    kernels.load()
    with quantized.instructions(given.instructions):
        for name in given.only:
            parts[name](given.rounds)


if __name__ == "__main__":
    main()
