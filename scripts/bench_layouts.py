"""What the machinery of layouts costs: a mesh of one device, compilation for many, the save of a checkpoint.

python scripts/bench_layouts.py      about two minutes on two cores

Systems take turns within one process; medians, and the smallest and largest of the turns.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

import accelnet as an
from accelnet.parallel.mesh import make_mesh, parse_mesh
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.program import prepare
from accelnet.training.saving import Saver
from experiments.digits_cnn import Config, experiment

TURNS = 7


def programs_on(made: an.Experiment, mesh: str | None) -> tuple[Any, Any]:
    """Return feed and programs on as many devices as the mesh has."""
    if mesh is None:
        return prepare(made)
    axes = parse_mesh(mesh)
    return prepare(made, make_mesh(axes, jax.devices()[: math.prod(axes.values())]))


def shown(values: list[float]) -> str:
    """Return median, smallest and largest as text."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def chunks(made: an.Experiment, mesh: str | None, num_steps: int) -> Callable[[], float]:
    """Return a function that trains a chunk and gives seconds per step."""
    feed, programs = programs_on(made, mesh)
    state, operand = programs.init(np.uint32(0)), feed.train_operand(0, num_steps)

    def chunk() -> float:
        nonlocal state
        start = time.perf_counter()
        state, report = programs.train(state, operand, np.int32(num_steps), np.bool_(True))
        jax.block_until_ready(report)
        return (time.perf_counter() - start) / num_steps

    chunk()
    return chunk


def layouts() -> None:
    """Time a mesh of one device, and compilation for many."""
    jax.config.update("jax_num_cpu_devices", 64)
    jax.config.update("jax_enable_compilation_cache", False)
    made = experiment(Config(batch_size=64))

    none, one = chunks(made, None, 200), chunks(made, "data=1", 200)
    pairs = [(none(), one()) for _ in range(TURNS)]
    print(f"step on a mesh of one device / without a mesh: {shown([b / a for a, b in pairs])}", flush=True)

    def compile_seconds(mesh: str) -> float:
        _, programs = programs_on(made, mesh)
        lowered = programs.train.lowered
        start = time.perf_counter()
        lowered.compile()
        return time.perf_counter() - start

    ratios = [compile_seconds("data=64") / compile_seconds("data=8") for _ in range(3)]
    print(f"compilation for 64 devices / for 8: {shown(ratios)}", flush=True)


def saves() -> None:
    """Time the saves of a state on one device."""
    made = experiment(Config()).replace(model=lambda rngs: an.models.MLP(64, (2048, 2048, 2048), 10, rngs=rngs))
    _, programs = programs_on(made, None)
    state = programs.init(np.uint32(0))
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    shares = []
    with tempfile.TemporaryDirectory() as directory:
        saver = Saver(Checkpoints(directory))
        for turn in range(2 * TURNS):
            start = time.perf_counter()
            saver.save(state.replace(step=jnp.int32(turn)), {})
            blocked = time.perf_counter() - start
            saver.wait()
            if turn:  # the first one starts Orbax
                shares.append(blocked / (time.perf_counter() - start))
        saver.close()
    print(f"share of a checkpoint of {megabytes:.0f} MB that training waits for: {shown(shares)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["saves"]:
        saves()
    else:
        layouts()
        # On one device, as a run has it: 64 simulated ones have threads of their own.
        subprocess.run([sys.executable, __file__, "saves"], check=True)
