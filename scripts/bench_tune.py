"""How good the recommendations of `tune` are, against a grid in which every rate is trained in full with every seed.

python scripts/bench_tune.py                                         all cases, hours on two cores
python scripts/bench_tune.py --experiments digits_mlp --optimizers adam sgd
python scripts/bench_tune.py --costs                                 what populations cost beside single trainings

Results go to benchmarks/tune.json after each case; a case that is in there already is not run again. The regret of a
recommendation is how far its rate's mean validation loss over the grid's seeds lies above the best rate's; beside it
stands the standard error of that difference. The aim: a regret of at most 2 % or one standard error, at no more than a
fifth of the grid's cost in steps.
"""

import argparse
import dataclasses
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

import accelnet as an
from accelnet.choosing.members import grid
from accelnet.choosing.population import Population
from accelnet.choosing.tune import tune
from accelnet.data.dataset import Data
from accelnet.training.record import plain_value, write_atomically

POINTS, SEEDS = 16, 4
# By experiment, what makes its Config shorter than the script's own.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "digits_mlp": {"epochs": 20.0},
    "digits_cnn": {"epochs": 10.0},
    "fashion_cnn": {"epochs": 8.0, "channels": (16, 32)},
    "vowels_rnn": {"epochs": 30.0},
    "diamonds_mlp": {"epochs": 4.0},
}
# By optimizer, the range of rates; four decades each.
OPTIMIZERS = {"sgd": (1e-3, 10.0), "momentum": (1e-4, 1.0), "adam": (1e-5, 0.1), "muon": (1e-5, 0.1)}
_FASHION_ROWS = 5_000


def make_function(name: str, optimizer: str) -> tuple[Callable[[Any], an.Experiment], Any]:
    """Return an experiment's function with another optimizer, and its Config."""
    module = importlib.import_module(f"experiments.{name}")
    config_type: Any = module.Config

    def experiment(config: Any) -> an.Experiment:
        made = module.experiment(config)
        num_steps = made.total_steps
        if name == "fashion_cnn":
            made = made.replace(data=_subsampled(made.data))
            num_steps = made.total_steps
        algorithm = an.optim.algorithms[optimizer](  # type: ignore[index]
            config.learning_rate,
            schedule=an.optim.schedules.warmup_cosine(num_steps, warmup_steps=num_steps // 20),
        )
        return made.replace(optimizer=algorithm, name=name)

    return experiment, config_type(**EXPERIMENTS[name])


def _subsampled(data: Data) -> Data:
    """Keep the first rows of the training split; those of the others stay."""
    rows = data.splits["train"]
    return dataclasses.replace(data, splits={**data.splits, "train": range(rows.start, rows.start + _FASHION_ROWS)})


def run_case(name: str, optimizer: str) -> dict[str, Any]:
    """Tune, train the whole grid, and compare."""
    function, config = make_function(name, optimizer)
    low, high = OPTIMIZERS[optimizer]
    tuning = tune(function, config, {"learning_rate": (low, high)}, points=POINTS, num_seeds=SEEDS)
    rates = np.geomspace(low, high, POINTS)
    began = time.perf_counter()
    run = Population(function, config, grid(range(SEEDS), learning_rate=rates.tolist())).train()
    seconds = time.perf_counter() - began
    losses = run.metrics["validation"]["loss"].reshape(POINTS, SEEDS).astype(np.float64)
    losses[(run.failed >= 0).reshape(POINTS, SEEDS)] = np.inf
    means = losses.mean(1)
    best, chosen = int(np.argmin(means)), int(np.argmin(np.abs(np.log(rates / tuning.recommended["learning_rate"]))))
    difference = losses[chosen] - losses[best]
    error = difference.std(ddof=1) / np.sqrt(SEEDS)
    return plain_value(
        {
            "experiment": name,
            "optimizer": optimizer,
            "recommended": rates[chosen],
            "best": rates[best],
            "loss": means[chosen],
            "best_loss": means[best],
            "regret": means[chosen] / means[best] - 1,
            "standard_error": error / means[best],
            "basin": tuning.basin["learning_rate"],
            "edge": tuning.edge["learning_rate"],
            "cost": tuning.cost / (POINTS * SEEDS),
            "tune_seconds": tuning.seconds,
            "grid_seconds": seconds,
            "settings": EXPERIMENTS[name],
            "steps": int(run.steps[-1]),
            "rates": rates,
            "grid": losses,
        }
    )


def table(cases: list[dict[str, Any]]) -> str:
    """Return the regrets as a table."""
    lines = [
        "| experiment | optimizer | recommended | grid's best | regret | standard error | reached | of its steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        reached = case["regret"] <= max(0.02, case["standard_error"])
        lines.append(
            f"| {case['experiment']} | {case['optimizer']} | {case['recommended']:.2g} | {case['best']:.2g} "
            f"| {100 * case['regret']:.1f} % | {100 * case['standard_error']:.1f} % | {'yes' if reached else 'no'} "
            f"| {100 * case['cost']:.0f} % |"
        )
    return "\n".join(lines)


def costs() -> dict[str, float]:
    """Measure populations beside single trainings: digits_mlp as its script has it, and XOR with 1,024 members."""
    digits, xor = (importlib.import_module(f"experiments.{name}") for name in ("digits_mlp", "xor_mlp"))
    an.fit(digits.experiment(digits.Config(epochs=1.0)), progress=False)  # imports and first use of the device
    began = time.perf_counter()
    an.fit(digits.experiment(digits.Config()), progress=False)
    single = time.perf_counter() - began
    measured = {"digits_mlp_training_seconds": single}
    began = time.perf_counter()
    sweep = tune(digits.experiment, digits.Config(), {"learning_rate": None}, points=POINTS, num_seeds=SEEDS)
    measured["digits_mlp_tune_seconds"] = time.perf_counter() - began
    run = sweep.rungs[0].run
    measured["digits_mlp_first_comparison_seconds"] = run.seconds + run.compile_seconds
    rates = np.geomspace(1e-4, 1e-1, POINTS).tolist()
    began = time.perf_counter()
    Population(digits.experiment, digits.Config(), grid(range(SEEDS), learning_rate=rates)).train()
    measured["digits_mlp_whole_grid_seconds"] = time.perf_counter() - began
    run = Population(xor.experiment, xor.Config(), grid(range(1024))).train()
    measured["xor_microseconds_per_member_and_step"] = run.seconds / 1024 / xor.Config().steps * 1e6
    return measured


def main() -> None:
    """Run what is asked for and not recorded yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--costs", action="store_true", help="measure what populations cost, and nothing else")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "tune.json")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"cases": []}
    record["machine"] = {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "jax": jax.__version__}

    def keep() -> None:
        record["date"] = datetime.now(UTC).date().isoformat()
        write_atomically(options.out, json.dumps(record, indent=1) + "\n")

    if options.costs:
        record["costs"] = costs()
        keep()
        print(json.dumps(record["costs"], indent=2))
        return
    for name in options.experiments:
        for optimizer in options.optimizers:
            if not any((case["experiment"], case["optimizer"]) == (name, optimizer) for case in record["cases"]):
                record["cases"].append(run_case(name, optimizer))
                keep()
    print(table(record["cases"]))


if __name__ == "__main__":
    main()
