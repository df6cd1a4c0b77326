"""Measure what the framework itself costs.

python scripts/bench_core.py [--rounds 7]

Prints a table: the overhead of a training step against a hand-written jitted loop of the same step (they take
turns; the median of paired ratios and its range), the XOR experiment's microseconds per step, what importing all of
accelnet that a training needs adds to importing jax and flax, the time to the first step of a first and of a second
run, that to the first prediction of a model that is loaded from its file, and the share of the time and the memory that
streaming takes on Fashion-MNIST.
"""

import argparse
import importlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import accelnet as an
from accelnet.ops.kernels import share
from accelnet.training.program import prepare

an.runtime.prepare()  # before the first array


def overhead(rounds: int, steps: int = 400) -> str:
    """Compare accelnet's train chunk with a hand-written `fori_loop` of the same step, about 1 ms each."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(8192, 256)).astype(np.float32), (np.arange(8192) % 10).astype(np.int32)
    data = an.data.from_arrays(inputs, labels, validation=0.0, test=0.0, normalize=False, num_classes=10)
    experiment = an.Experiment(
        data=data,
        model=lambda rngs: an.models.MLP(256, (256, 256), 10, rngs=rngs),
        optimizer=an.optim.adam(1e-3),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=128,
        epochs=1,
    )
    feed, programs = prepare(experiment)
    state, operand = programs.init(np.uint32(0)), feed.train_operand(0, steps)
    optimizer = optax.adam(1e-3)

    def by_hand(params: Any, opt_state: Any, inputs: jax.Array, labels: jax.Array, num_steps: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            for layer in ("0", "1"):
                kernel, bias = params["layers"][layer]["linear"]["kernel"], params["layers"][layer]["linear"]["bias"]
                x = nnx.relu(x @ kernel + bias)
            logits = x @ params["head"]["kernel"] + params["head"]["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        def body(step: jax.Array, carry: Any) -> Any:
            params, opt_state = carry
            rows = (step % 64) * 128 + jnp.arange(128)
            grads = jax.grad(loss)(params, inputs[rows], labels[rows])
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return jax.lax.fori_loop(0, num_steps, body, (params, opt_state))

    params = jax.tree.map(jnp.array, state.params)
    hand = jax.jit(by_hand, donate_argnums=(0, 1))
    carry = hand(params, optimizer.init(params), jnp.asarray(inputs), jnp.asarray(labels), 2)
    on_device = jnp.asarray(inputs), jnp.asarray(labels)
    state, _ = programs.train(state, operand, np.int32(2), np.bool_(False))
    ratios, ours = [], []
    for turn in range(rounds):
        times = {}
        for who in ("hand", "ours") if turn % 2 else ("ours", "hand"):
            start = time.perf_counter()
            if who == "hand":
                carry = jax.block_until_ready(hand(*carry, *on_device, steps))
            else:
                state, report = programs.train(state, operand, np.int32(steps), np.bool_(True))
                jax.block_until_ready(report)
            times[who] = (time.perf_counter() - start) / steps
        ours.append(times["ours"])
        ratios.append(times["ours"] / times["hand"])
    spread = f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"
    return f"{statistics.median(ratios) - 1:+.1%} ({spread}) at {statistics.median(ours) * 1e3:.2f} ms a step"


def xor_step(rounds: int, steps: int = 200_000) -> str:
    """Time the XOR experiment's steps once compiled."""
    module = importlib.import_module("xor_mlp")
    feed, programs = prepare(module.experiment(module.Config()))
    state, operand = programs.init(np.uint32(0)), feed.train_operand(0, steps)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        state, report = programs.train(state, operand, np.int32(steps), np.bool_(True))
        jax.block_until_ready(report)
        times.append((time.perf_counter() - start) / steps * 1e6)
    return f"{statistics.median(times[1:]):.2f} us ({min(times[1:]):.2f} to {max(times[1:]):.2f})"


def import_time(rounds: int) -> str:
    """Time what importing accelnet, with all that a training needs, adds."""

    def run(code: str) -> float:
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT).stdout)

    clock = "import time; start = time.perf_counter();"
    say = "print(time.perf_counter() - start)"
    used = "import accelnet as an; an.fit, an.main, an.Experiment, an.data, an.models, an.objectives, an.optim;"
    run(f"{clock} {used} {say}")  # compiles the bytecode
    added = [run(f"import jax, flax, flax.linen, flax.nnx; {clock} {used} {say}") for _ in range(rounds)]
    return f"{statistics.median(added):.2f} s ({min(added):.2f} to {max(added):.2f})"


def first_step(rounds: int) -> str:
    """Time from the start of the process to the first step, without and with what an earlier run compiled."""
    code = (
        "import time; start = time.perf_counter();"
        "import sys; sys.path.insert(0, 'experiments'); import accelnet as an, digits_cnn;"
        "stop = an.Event(an.Every(steps=1), lambda moment: True);"
        "made = digits_cnn.experiment(digits_cnn.Config()).replace(epochs=None, steps=1);"
        "seen = [];"
        "event = an.Event(an.Every(steps=1), lambda moment: seen.append(time.perf_counter() - start));"
        "an.fit(made, progress=False, events=[event]); print(seen[0])"
    )
    pairs = []
    for _ in range(max(2, rounds // 2)):
        with tempfile.TemporaryDirectory() as cache:
            share(cache)  # once per machine, not per run
            environment = os.environ | {"XDG_CACHE_HOME": cache}
            runs = [
                subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT, env=environment, text=True
                )
                for _ in range(2)
            ]
            pairs.append([float(run.stdout.split()[-1]) for run in runs])
    first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
    return f"first run {first:.1f} s, second {second:.1f} s: {second / first:.0%}"


def first_prediction(rounds: int) -> str:
    """Time from the start of a process to the first prediction of a CNN in an artifact."""
    module = importlib.import_module("digits_cnn")
    made = module.experiment(module.Config()).replace(epochs=None, steps=1)
    code = (
        "import time; start = time.perf_counter(); import sys, numpy, accelnet as an;"
        "an.load(sys.argv[1]).predict(numpy.zeros((1, 8, 8, 1), numpy.float32)); print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.accelnet")
        an.fit(made, progress=False).save(path)
        command = [sys.executable, "-c", code, path]
        times = [
            float(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout) for _ in range(rounds + 1)
        ]
    # The first one fills the cache of compiled programs.
    return f"{statistics.median(times[1:]):.2f} s ({min(times[1:]):.2f} to {max(times[1:]):.2f})"


def streaming(epochs: float = 1.0) -> str:
    """Train an MLP and then for twice as long on streamed Fashion-MNIST; report input time and memory."""
    data = an.data.fashion_mnist()

    def run(epochs: float) -> Any:
        return an.fit(
            an.Experiment(
                data=data,
                model=lambda rngs: an.models.MLP(784, (512, 512), 10, rngs=rngs),
                optimizer=an.optim.adam(1e-3),
                objective=an.objectives.softmax_cross_entropy(),
                batch_size=128,
                epochs=epochs,
                on_device=False,
            ),
            progress=False,
        ).result["timing"]

    run(epochs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timing = run(3 * epochs)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    share = timing["input_seconds"] / (timing["train_seconds"] + timing["eval_seconds"] + timing["input_seconds"])
    return f"input {share:.1%} of the time; {grown:.0f} MiB more after three times the epochs"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of each measurement")
    rounds = parser.parse_args().rounds
    print(f"jax {jax.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, {jax.devices()[0]}")
    measurements = (
        ("overhead of a step", lambda: overhead(rounds)),
        ("XOR step", lambda: xor_step(rounds)),
        ("importing accelnet", lambda: import_time(rounds)),
        ("first step of digits_cnn", lambda: first_step(rounds)),
        ("first prediction of a file", lambda: first_prediction(rounds)),
        ("streaming Fashion-MNIST", streaming),
    )
    for name, measure in measurements:
        print(f"{name:28}{measure()}", flush=True)


if __name__ == "__main__":
    main()
