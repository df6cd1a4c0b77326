"""Compare what `plan` predicts for this machine with what is measured: time of a step, and memory.

    python scripts/bench_plan.py [--cases fashion_mlp char_lstm] [--out benchmarks/plan.json] [--platform cuda]

The training cases are those of bench.py. For each, a fresh process measures the parts of its step (products of its
shapes, memory, arithmetic, starting a kernel), predicts the step from the compiled program and these parts alone, and
then measures the step. Another measures how far running a chunk raises the process's memory, or the peak of an
accelerator's. Nothing else should compute meanwhile. Takes about a minute a case.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_systems.cases import CASES

_TIME_TOLERANCE, _MEMORY_TOLERANCE = 0.25, 0.10
# Below this, what the process itself does outweighs the program's own memory.
_SMALLEST_BYTES = 4 << 20


def measure_time(name: str) -> dict[str, Any]:
    """Return measured and predicted seconds of a case's step; run in a process of its own."""
    from accelnet.planning.measure import measure
    from accelnet.planning.targets.target import this_machine
    from bench_systems.accelnet_chunks import make_experiment

    return measure(make_experiment(CASES[name]), this_machine(), keep=False).to_dict()


def measure_memory(name: str) -> dict[str, Any]:
    """Return measured and predicted bytes of a chunk; run in a process of its own."""
    import jax
    import numpy as np

    from accelnet.planning.planner import Planner
    from accelnet.planning.targets.target import this_machine
    from accelnet.training.program import prepare
    from bench_systems.accelnet_chunks import make_experiment

    experiment = make_experiment(CASES[name])
    planner = Planner(experiment, None)
    case = planner.case(this_machine())
    planner.compile([case])
    predicted = case.compiled["train"].total_bytes
    feed, programs = prepare(experiment)
    state, operand = programs.init(np.uint32(0)), feed.train_operand(0, 1)
    jax.block_until_ready((state, operand))
    state, report = programs.train(state, operand, np.int32(0), np.bool_(True))  # what a first call alone touches
    jax.block_until_ready((state, report))
    if device_stats := jax.devices()[0].memory_stats():
        return {"measured": device_stats["peak_bytes_in_use"], "predicted": predicted}
    arguments = sum(leaf.nbytes for leaf in jax.tree.leaves((state, operand)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    _, report = programs.train(state, operand, np.int32(2), np.bool_(True))
    jax.block_until_ready(report)
    growth = max(0, _status("VmHWM") - before)
    return {"measured": arguments + growth, "predicted": predicted}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def in_process(what: str, name: str, platform: str) -> dict[str, Any]:
    """Run `measure_time` or `measure_memory` in a fresh process."""
    # Memory that the compiler freed would serve the program, and hide what it takes.
    settings = {"JAX_PLATFORMS": platform} | ({"ACCELNET_RUNTIME": "plain"} if what == "memory" else {})
    with tempfile.TemporaryDirectory() as cache:
        from accelnet.ops.kernels import share

        if platform == "cpu":
            share(cache)
        finished = subprocess.run(
            [sys.executable, __file__, "--measure", what, name],
            env=os.environ | settings | {"XDG_CACHE_HOME": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(finished.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    training = [name for name, case in CASES.items() if case.kind == "train"]
    parser.add_argument("--cases", nargs="+", choices=training, default=training)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--platform", default="cpu", help="of JAX_PLATFORMS: cpu (default), cuda or tpu")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        what, name = options.measure
        print(json.dumps({"time": measure_time, "memory": measure_memory}[what](name)))
        return 0
    print(
        f"{'case':<16}{'measured':>12}{'predicted':>12}{'':>8}{'from facts':>12}{'memory':>14}{'predicted':>14}{'':>8}"
    )
    rows = []
    for name in options.cases:
        taken, memory = (in_process(what, name, options.platform) for what in ("time", "memory"))
        error = taken["predicted_seconds"] / taken["step_seconds"] - 1
        memory_error = memory["predicted"] / memory["measured"] - 1
        rows.append({"case": name, **taken, "error": error, "memory": memory, "memory_error": memory_error})
        print(
            f"{name:<16}{taken['step_seconds'] * 1e3:>9.3f} ms{taken['predicted_seconds'] * 1e3:>9.3f} ms{error:>+8.0%}"
            f"{taken['facts_seconds'] * 1e3:>9.3f} ms{memory['measured']:>14,}{memory['predicted']:>14,}"
            f"{memory_error:>+8.0%}",
            flush=True,
        )
    near = sum(abs(row["error"]) <= _TIME_TOLERANCE for row in rows)
    large = [row for row in rows if row["memory"]["predicted"] >= _SMALLEST_BYTES]
    memory_near = sum(abs(row["memory_error"]) <= _MEMORY_TOLERANCE for row in large)
    print(f"time within {_TIME_TOLERANCE:.0%}: {near} of {len(rows)}")
    print(f"memory within {_MEMORY_TOLERANCE:.0%}: {memory_near} of {len(large)} that take at least 4 MiB")
    if options.out is not None:
        options.out.write_text(json.dumps({"cases": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
