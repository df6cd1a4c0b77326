"""Compare verdicts around the limit: the TPU compiler's, its count against the limit, and what shapes alone say.

    python scripts/bench_fits.py

Needs the extra plan-tpu. For three models on three targets the batch that just fills a device is found from two
compilations; then the program is compiled for batches around it. `plan` gives the compiler's own verdict; the other two
are what it would have to go by on GPUs, and without a compiler. Takes two to three minutes on two cores.
"""

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np

import accelnet as an
from accelnet.planning.compile import missing_compiler
from accelnet.planning.planner import Case, Planner
from accelnet.planning.targets import find_target

_FACTORS = (0.90, 0.94, 0.97, 0.99, 0.995, 1.005, 1.01, 1.03, 1.06, 1.10)
_ROWS = 1 << 19


def _data(*shape: int) -> an.data.Data:
    # One row seen again and again: only shapes matter, and the arrays need not take memory.
    inputs = np.broadcast_to(np.zeros(shape, np.float32), (_ROWS, *shape))
    return an.data.from_arrays(inputs, np.arange(_ROWS) % 8, num_classes=8)


MODELS = {
    "mlp": (_data(64), lambda rngs: an.models.MLP(64, (8192,) * 3, 8, rngs=rngs), "v5e"),
    "cnn": (_data(16, 16, 3), lambda rngs: an.models.CNN((16, 16, 3), (128, 128), 8, norm="batch", rngs=rngs), "v6e"),
    "rnn": (_data(16, 32), lambda rngs: an.models.RNN(32, 1024, 8, cell="lstm", rngs=rngs), "v4:2x2x1"),
}


def experiment(name: str, batch_size: int) -> an.Experiment:
    """Make a model's experiment with a batch."""
    data, model, _ = MODELS[name]
    return an.Experiment(
        data=data,
        model=model,
        optimizer=an.optim.adam(1e-3),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=batch_size,
        eval_batch_size=256,
        steps=1,
        on_device=False,
        name=name,
    )


def cases(name: str, batches: list[int]) -> list[Case]:
    """Compile a model for batches, side by side."""
    target = find_target(MODELS[name][2])
    planner = Planner(experiment(name, batches[0]), None)
    made = [planner.case(target, experiment(name, batch)) for batch in batches]
    planner.compile(made)
    return made


def main() -> int:
    """Print a line per point and the sums."""
    if missing := missing_compiler("tpu"):
        print(missing, file=sys.stderr)
        return 2
    agree: dict[str, int] = {"count": 0, "shapes": 0}
    points = 0
    for name in MODELS:
        devices = find_target(MODELS[name][2]).num_devices
        small = [1024 * devices, 4096 * devices]
        totals = [case.memory().total for case in cases(name, small)]
        limit = find_target(MODELS[name][2]).accelerator.memory_bytes
        slope = (totals[1] - totals[0]) / (small[1] - small[0])
        edge = small[0] + (limit - totals[0]) / slope
        batches = [int(edge * factor) // (8 * devices) * 8 * devices for factor in _FACTORS]
        for batch, case in zip(batches, cases(name, batches), strict=True):
            memory: Any = case.memory()
            verdict = all(compiled.status == "ok" for compiled in case.compiled.values())
            told = {"count": memory.total <= memory.limit, "shapes": case.step.total_bytes <= memory.limit}
            points += 1
            for way, says in told.items():
                agree[way] += says == verdict
            print(
                f"{name:<4} {MODELS[name][2]:<9} batch {batch:>7,}: compiler {'fits' if verdict else 'refuses':<8} "
                f"count {memory.total / 2**30:6.2f} of {memory.limit / 2**30:.2f} GiB, shapes "
                f"{case.step.total_bytes / 2**30:6.2f} GiB",
                flush=True,
            )
    print(f"same verdict as the compiler: count {agree['count']}, shapes alone {agree['shapes']} of {points}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
