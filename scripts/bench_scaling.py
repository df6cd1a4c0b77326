"""How the cost of a training step, and of compiling it, grows with the work.

python scripts/bench_scaling.py [--axes width depth ...] [--turns 5] [--out DIR]      about three minutes on two cores

Each axis doubles one number of an experiment and leaves the others: the width, depth and batch of an MLP, the channels
of a CNN, the steps of an LSTM's sequences, the members of a population, the rows of the data, the devices that a batch
is cut over (simulated: they share the machine's cores). Points take turns in one process; times are medians. Compiling
counts from the experiment to the program, without any cache.

Prints, per axis, milliseconds and the slope between neighbours: the power of the number with which the time grows. A
slope above that of the work is a cliff, and is marked, as is one below zero. Writes scaling.json and scaling.png, to
benchmarks/ for all axes and to runs/scaling/ for some.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.sharding import Mesh

import accelnet as an
from accelnet.parallel.mesh import make_mesh
from accelnet.populations.members import Member, Sweep
from accelnet.populations.programs import programs_of_size
from accelnet.training.program import prepare
from bench_systems.report import machine, replace

DEVICES = (1, 2, 4, 8)
_TURN_SECONDS = 0.3
# A slope is the exponent between two neighbours; noise and caches leave 0.35 above that of the work unmarked.
_CLIFF = 0.35


class Axis(NamedTuple):
    """One number that grows.

    Attributes:
        values: those that it takes.
        experiment: the experiment of a value.
        work: exponent with which the work of a step grows for large values.
        mesh: the mesh of a value, as of `fit`.
    """

    values: Sequence[int]
    experiment: Callable[[int], an.Experiment]
    work: float
    mesh: Callable[[int], Mesh | None] = lambda _: None


def experiment(
    model: Callable[[Any], Any], shape: Sequence[int], *, batch_size: int = 64, rows: int = 1024
) -> an.Experiment:
    """Make an experiment on noise in ten classes."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((rows, *shape), np.float32)
    return an.Experiment(
        data=an.data.from_arrays(
            inputs, np.arange(rows) % 10, num_classes=10, validation=0.0, test=0.0, normalize=False
        ),
        model=model,
        optimizer=an.optim.adam(1e-3),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=batch_size,
        epochs=1,
    )


def mlp(width: int = 256, depth: int = 2, **more: Any) -> an.Experiment:
    """Make the experiment of an MLP."""
    return experiment(lambda rngs: an.models.MLP(64, (width,) * depth, 10, rngs=rngs), (64,), **more)


AXES = {
    "width": Axis((64, 128, 256, 512, 1024, 2048), mlp, 2),
    "depth": Axis((1, 2, 4, 8, 16, 32), lambda depth: mlp(depth=depth), 1),
    "batch": Axis((8, 16, 32, 64, 128, 256, 512), lambda size: mlp(batch_size=size), 1),
    "channels": Axis(
        (8, 16, 32, 64, 128),
        lambda channels: experiment(
            lambda rngs: an.models.CNN((16, 16, 3), (channels, channels), 10, rngs=rngs), (16, 16, 3)
        ),
        2,
    ),
    "steps": Axis(
        (8, 16, 32, 64, 128, 256),
        lambda steps: experiment(lambda rngs: an.models.RNN(32, 128, 10, rngs=rngs), (steps, 32)),
        1,
    ),
    "members": Axis((1, 2, 4, 8, 16, 32), lambda _: mlp(64), 1),
    "rows": Axis((1_024, 8_192, 65_536, 524_288), lambda rows: mlp(64, rows=rows), 0),
    "devices": Axis(
        DEVICES, lambda _: mlp(batch_size=512), 0, lambda count: make_mesh({"data": count}, jax.devices()[:count])
    ),
}


def point(axis: str, value: int) -> tuple[Callable[[int], float], float]:
    """Return the function that trains a number of steps and gives the seconds, and the seconds of compiling it."""
    start = time.perf_counter()
    if axis == "members":
        make = lambda config: mlp(64).replace(optimizer=an.optim.adam(config.learning_rate))  # noqa: E731
        rates = np.geomspace(1e-4, 1e-2, value).tolist()
        sweep = Sweep(make, Config(), [Member(seed, {"learning_rate": rate}) for seed, rate in enumerate(rates)])
        feed, programs = programs_of_size(sweep, "own", jax.devices()[:1], value)
        first = sweep.seeds(), sweep.values()
    else:
        feed, programs = prepare(AXES[axis].experiment(value), AXES[axis].mesh(value))
        first = (np.uint32(0),)
    _ = programs.train.compiled
    seconds = time.perf_counter() - start
    placed = jax.tree.map(lambda array, shape: jax.device_put(array, shape.sharding), first, programs.init.operands)
    state, operand = programs.init(*placed), feed.train_operand(0, 1, 0)

    def run(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        state, report = programs.train(state, operand, np.int32(steps), np.bool_(True))
        jax.block_until_ready(report)
        return time.perf_counter() - start

    return run, seconds


@dataclass(frozen=True)
class Config:
    """What the members of a population vary."""

    learning_rate: float = 1e-3


def measure(axis: str, turns: int) -> dict[str, Any]:
    """Measure all points of an axis.

    Returns:
        Its values, the seconds of a step of each turn, [values][turns], and of each compilation, [values].
    """
    an.runtime.prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    runs, compiling, steps = [], [], []
    for value in AXES[axis].values:
        run, seconds = point(axis, value)
        run(1)
        count = 1
        while (taken := run(count)) < _TURN_SECONDS / 4:
            count *= 4
        runs.append(run)
        compiling.append(seconds)
        steps.append(max(1, round(count * _TURN_SECONDS / taken)))
        print(f"{axis} {value}: compiled in {seconds:.1f} s", file=sys.stderr, flush=True)
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(turns):
        for index in range(len(runs)) if turn % 2 else reversed(range(len(runs))):
            times[index].append(runs[index](steps[index]) / steps[index])
    return {"values": list(AXES[axis].values), "step_seconds": times, "compile_seconds": compiling}


def slopes(values: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """Return the exponents between neighbours.

    Example:
        >>> slopes([1, 2, 8], [1.0, 2.0, 128.0])
        [1.0, 3.0]
    """
    pairs = zip(zip(values, seconds, strict=True), zip(values[1:], seconds[1:], strict=True), strict=False)
    return [math.log(t / s) / math.log(m / n) for (n, s), (m, t) in pairs]


def table(axis: str, found: Mapping[str, Any]) -> str:
    """Return the points of an axis as lines, with the slope from the point before."""
    medians = [statistics.median(turns) for turns in found["step_seconds"]]
    lines = [f"{axis} (the work of a step grows with its power {AXES[axis].work:g})"]
    for index, (value, seconds) in enumerate(zip(found["values"], medians, strict=True)):
        turns, compiling = found["step_seconds"][index], found["compile_seconds"][index]
        slope = slopes(found["values"], medians)[index - 1] if index else None
        mark = ""
        if slope is not None and not -_CLIFF <= slope <= AXES[axis].work + _CLIFF:
            mark = " cliff" if slope > 0 else " less work took longer"
        lines.append(
            f"{value:>9,}  {seconds * 1e3:9.3f} ms ({min(turns) * 1e3:.3f} to {max(turns) * 1e3:.3f})  compiled in "
            f"{compiling:5.1f} s" + ("" if slope is None else f"  slope {slope:+.2f}{mark}")
        )
    return "\n".join(lines)


def plot(axes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the time of a step, and of compiling it, against what grows."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    columns = min(4, len(axes))
    rows = -(-len(axes) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3 * columns, 2.7 * rows), layout="constrained", squeeze=False)
    for panel in grid.flat[len(axes) :]:
        panel.axis("off")
    for panel, (axis, found) in zip(grid.flat, axes.items(), strict=False):
        values, medians = found["values"], [statistics.median(turns) for turns in found["step_seconds"]]
        ideal = [medians[-1] * (value / values[-1]) ** AXES[axis].work for value in values]
        panel.loglog(values, [t * 1e3 for t in ideal], ":", color="grey", label=f"power {AXES[axis].work:g}")
        panel.loglog(values, [t * 1e3 for t in medians], "o-", label="step, ms")
        panel.loglog(values, found["compile_seconds"], "s--", color="tab:orange", label="compiling, s")
        panel.set_xticks(values, [f"{value:,}" for value in values], fontsize="x-small", rotation=30)
        panel.minorticks_off()
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_title(axis, fontsize="medium")
    grid.flat[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="all if left out")
    parser.add_argument("--turns", type=int, default=5, help="turns of each point")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--alone", choices=list(AXES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turns < 1:
        parser.error(f"--turns is {options.turns}, expected at least 1")
    if options.alone:
        jax.config.update("jax_num_cpu_devices", max(DEVICES) if options.alone == "devices" else 1)
        print(json.dumps(measure(options.alone, options.turns)))
        return 0
    axes = {}
    for axis in options.axes:
        # Each in a process of its own: what one leaves in memory and threads is not there for the next.
        command = [sys.executable, __file__, "--alone", axis, "--turns", str(options.turns)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        axes[axis] = json.loads(done.stdout.splitlines()[-1])
        print(table(axis, axes[axis]), flush=True)
    out = options.out or ROOT / ("benchmarks" if len(axes) == len(AXES) else "runs/scaling")
    write(out / "scaling.json", out / "scaling.png", axes)
    print(f"{out / 'scaling.json'}\n{out / 'scaling.png'}")
    return 0


def write(record: Path, picture: Path, axes: Mapping[str, Any]) -> None:
    """Write the record and the picture, each complete or not at all."""
    record.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"axes": axes, "machine": machine()}, indent=2) + "\n"
    replace(record, lambda path: path.write_text(text))
    replace(picture, lambda path: plot(axes, path))


if __name__ == "__main__":
    sys.exit(main())
