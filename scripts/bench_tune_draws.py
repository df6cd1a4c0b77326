"""How often `tune` recommends a good learning rate: its search, replayed on trainings that were done once.

    python scripts/bench_tune_draws.py                                     on what benchmarks/tune_draws.json holds
    python scripts/bench_tune_draws.py --record --experiments vowels_rnn   train what it lacks (minutes a case)

For each case of bench_tune.py every rate is trained with 8 seeds for the share of the training that `tune` gives to all
settings, and in full. From these, 100 times, the seeds are shuffled and `tune` searches: it sees the seeds in that
order. A recommendation is good if its mean loss over all 8 seeds is at most 2 % or one standard error above that of the
rate that a whole grid of 4 seeds (the first ones of the same order) names. Beside it: what whole grids of 1, 2 and 3
seeds name, which cost 25, 50 and 75 % of that grid.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import jax
import numpy as np
from bench_tune import EXPERIMENTS, OPTIMIZERS, POINTS, make_function

from accelnet.choosing.search import at_share, search
from accelnet.choosing.stage import Stage, make_stage
from accelnet.choosing.tune import BUDGET, EVALUATIONS
from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import plain_value
from accelnet.populations.members import Member, grid
from accelnet.populations.population import Population

SEEDS, SHORT_SEEDS, GRID_SEEDS, DRAWS = 8, 3, 4, 100


def record(name: str, optimizer: str) -> dict[str, Any]:
    """Train every rate with every seed, short and in full; return the losses [rates, seeds], NaN if diverged."""
    function, config = make_function(name, optimizer)
    rates, whole = np.geomspace(*OPTIMIZERS[optimizer], POINTS).tolist(), function(config)

    def losses(share: float) -> np.ndarray:
        make, shorter = at_share(function, config, whole, share)
        population = Population(make, shorter, grid(range(SEEDS), learning_rate=rates), evaluations=EVALUATIONS)
        return np.stack(make_stage([population.train()], share, "loss", True).losses)

    case = {"experiment": name, "optimizer": optimizer, "rates": rates}
    return plain_value(case | {"short": losses(BUDGET), "full": losses(1.0)})


def replay(case: dict[str, Any], order: np.ndarray) -> int:
    """Return the place of the rate that `tune` recommends if it meets the seeds in this order."""
    rates, full = case["rates"], np.array(case["full"], np.float64)[:, order]
    losses = np.array(case["short"], np.float64)[:, order[:SHORT_SEEDS]]
    settings = tuple({"learning_rate": rate} for rate in rates)
    runs: Any = (SimpleNamespace(steps=np.array([0, 1])),)
    short = Stage(BUDGET, "loss", True, settings, tuple(losses), tuple(losses), runs)

    def train(wanted: Any, _number: int) -> Any:
        ends = np.array([full[rates.index(setting["learning_rate"]), nth] for setting, nth in wanted])
        curves = {"loss": np.stack([np.full(len(ends), np.inf), ends])}
        members = [Member(nth, setting) for setting, nth in wanted]
        return SimpleNamespace(
            members=members, steps=np.array([0, 1]), curves=curves, train=curves, failed=np.full(len(ends), -1)
        )

    try:
        found = search(short, {"learning_rate": rates}, train)
    except UserError:  # all that it tried diverged
        return len(rates) - 1
    return rates.index(found.settings[found.leading()[0]]["learning_rate"])


def draw(case: dict[str, Any], choose: Callable[[dict[str, Any], np.ndarray], int]) -> tuple[float, float]:
    """Return how often the choice is good, and the mean regret, of 1 at most."""
    full = np.array(case["full"], np.float64)
    full[np.isnan(full)] = np.inf
    rng, good, regrets = np.random.default_rng(0), [], []
    for _ in range(DRAWS):
        order = rng.permutation(SEEDS)
        best, chosen = int(np.argmin(full[:, order[:GRID_SEEDS]].mean(1))), choose(case, order)
        if not np.isfinite(full[chosen]).all():
            good.append(False)
            regrets.append(1.0)
            continue
        difference = full[chosen] - full[best]
        error = difference.std(ddof=1) / np.sqrt(SEEDS)
        good.append(difference.mean() <= max(0.02 * full[best].mean(), error))
        regrets.append(min(1.0, difference.mean() / full[best].mean()))
    return float(np.mean(good)), float(np.mean(regrets))


def grid_of(num_seeds: int) -> Callable[[dict[str, Any], np.ndarray], int]:
    """Return the choice of a whole grid of so many seeds."""

    def choose(case: dict[str, Any], order: np.ndarray) -> int:
        losses = np.array(case["full"], np.float64)[:, order[:num_seeds]]
        return int(np.argmin(np.where(np.isnan(losses), np.inf, losses).mean(1)))

    return choose


def main() -> None:
    """Record what is asked for and missing, replay, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--record", action="store_true", help="train the cases that are not recorded")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "tune_draws.json")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    cases = json.loads(options.out.read_text()) if options.out.exists() else []
    for name in options.experiments if options.record else ():
        for optimizer in options.optimizers:
            if not any((case["experiment"], case["optimizer"]) == (name, optimizer) for case in cases):
                cases.append(record(name, optimizer))
                write_atomically(options.out, "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    choices = {"tune": replay} | {f"grid of {num}": grid_of(num) for num in (1, 2, 3)}
    print(f"| experiment | optimizer | {' | '.join(choices)} |\n|{'---|' * (2 + len(choices))}")
    totals = []
    for case in cases:
        if case["experiment"] in options.experiments and case["optimizer"] in options.optimizers:
            totals.append([draw(case, choose) for choose in choices.values()])
            print(f"| {case['experiment']} | {case['optimizer']} | {_cells(totals[-1])} |", flush=True)
    print(f"| all | | {_cells(np.mean(totals, axis=0))} |")


def _cells(found: Any) -> str:
    return " | ".join(f"{100 * good:.0f} % good, regret {100 * regret:.0f} %" for good, regret in found)


if __name__ == "__main__":
    main()
