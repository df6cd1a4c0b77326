"""How good the recommendations of `tune` are, against a grid in which every rate is trained in full with every seed.

python scripts/bench_tune.py                                         all cases, hours on two cores
python scripts/bench_tune.py --experiments digits_mlp --optimizers adam sgd
python scripts/bench_tune.py --again                                 tune once more, against the grids that are recorded
python scripts/bench_tune.py --costs                                 what populations cost beside single trainings

Results go to benchmarks/tune.json after each case; a case that is in there already is not run again. The regret of a
recommendation is how far its rate's mean validation loss lies above that of the grid's best rate, both trained in full
with 16 seeds that neither tune nor the grid had: the lowest of 16 means is so by chance too. Beside it stands the
standard error of that difference over the seeds. The aim: a regret of at most 2 % or one standard error, at no more
than a fifth of the grid's cost in steps.
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
from accelnet.choosing.tune import tune
from accelnet.data.dataset import Data
from accelnet.disk import write_atomically
from accelnet.json_file import plain_value
from accelnet.populations.members import grid
from accelnet.populations.population import Population

POINTS, SEEDS, FRESH_SEEDS = 16, 4, range(100, 116)
# By experiment, what makes its Config shorter than the script's own.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "digits_mlp": {"epochs": 20.0},
    "digits_cnn": {"epochs": 10.0},
    "fashion_cnn": {"epochs": 13.0, "channels": (16, 32)},
    "vowels_rnn": {"epochs": 30.0},
    "diamonds_mlp": {"epochs": 4.0},
}
# By optimizer, the range of rates; four decades each.
OPTIMIZERS = {"sgd": (1e-3, 10.0), "momentum": (1e-4, 1.0), "adam": (1e-5, 0.1), "muon": (1e-5, 0.1)}
# Of fashion_cnn, for training and for validation.
_FASHION_ROWS = 2_000


def make_function(name: str, optimizer: str) -> tuple[Callable[[Any], an.Experiment], Any]:
    """Return an experiment's function with another optimizer, and its Config."""
    module = importlib.import_module(f"experiments.{name}")
    config_type: Any = module.Config

    def experiment(config: Any) -> an.Experiment:
        made = module.experiment(config)
        if name == "fashion_cnn":
            made = made.replace(data=_subsampled(made.data))
        algorithm = an.optim.algorithms[optimizer](config.learning_rate, schedule=an.optim.schedules.warmup_cosine())
        return made.replace(optimizer=algorithm, name=name)

    return experiment, config_type(**EXPERIMENTS[name])


def _subsampled(data: Data) -> Data:
    """Keep the first rows of each split."""
    rows = {
        name: range(split.start, min(split.stop, split.start + _FASHION_ROWS)) for name, split in data.splits.items()
    }
    return dataclasses.replace(data, splits=rows)


def _losses(function: Any, config: Any, rates: list[float], seeds: range) -> np.ndarray:
    """Train every rate with every seed in full; return the validation losses [rates, seeds], infinite if diverged."""
    run = Population(function, config, grid(seeds, learning_rate=rates)).train()
    losses = run.metrics["validation"]["loss"].astype(np.float64)
    return np.where(run.failed >= 0, np.inf, losses).reshape(len(rates), len(seeds))


def run_case(name: str, optimizer: str, recorded: dict[str, Any]) -> dict[str, Any]:
    """Tune, train the whole grid if it is not recorded, and compare."""
    function, config = make_function(name, optimizer)
    low, high = OPTIMIZERS[optimizer]
    tuning = tune(function, config, {"learning_rate": (low, high)}, points=POINTS)
    rates = np.geomspace(low, high, POINTS).tolist()
    began = time.perf_counter()
    if recorded:
        losses, seconds = np.array(recorded["grid"], np.float64), recorded["grid_seconds"]
        losses[np.isnan(losses)] = np.inf
    else:
        losses = _losses(function, config, rates, range(SEEDS))
        seconds = time.perf_counter() - began
    best = rates[int(np.argmin(losses.mean(1)))]
    chosen = min(rates, key=lambda rate: abs(np.log(rate / tuning.recommended["learning_rate"])))
    ours, theirs = _losses(function, config, [chosen, best], FRESH_SEEDS) if chosen != best else np.zeros((2, 1))
    difference, scale = ours - theirs, theirs.mean() or 1.0
    return plain_value(
        {
            "experiment": name,
            "optimizer": optimizer,
            "recommended": chosen,
            "best": best,
            "regret": difference.mean() / scale,
            "standard_error": difference.std(ddof=1) / np.sqrt(len(difference)) / scale if chosen != best else 0.0,
            "basin": tuning.basin["learning_rate"],
            "edge": tuning.edge["learning_rate"],
            "cost": tuning.cost / (POINTS * SEEDS),
            "tune_seconds": tuning.seconds,
            "grid_seconds": seconds,
            "settings": EXPERIMENTS[name],
            "steps": function(config).total_steps,
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
    tune(digits.experiment, digits.Config(), {"learning_rate": None}, points=POINTS)
    measured["digits_mlp_tune_seconds"] = time.perf_counter() - began
    rates = np.geomspace(1e-4, 1e-1, POINTS).tolist()
    began = time.perf_counter()
    short = digits.Config(epochs=digits.Config().epochs / 16)
    Population(digits.experiment, short, grid(range(SEEDS), learning_rate=rates)).train()
    measured["digits_mlp_sixteenth_of_grid_seconds"] = time.perf_counter() - began
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
    parser.add_argument("--again", action="store_true", help="tune recorded cases once more")
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
            known = {(case["experiment"], case["optimizer"]): case for case in record["cases"]}
            recorded = known.get((name, optimizer), {})
            if not recorded or options.again:
                known[name, optimizer] = run_case(name, optimizer, recorded)
                record["cases"] = list(known.values())
                keep()
    print(table(record["cases"]))


if __name__ == "__main__":
    main()
