"""Compare candidates: each is tuned with the same budget, then trained with the same seeds, and judged with doubt."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from accelnet.choosing.candidates import Candidate, without_test
from accelnet.choosing.compare_page import comparison_page
from accelnet.choosing.paired import ALPHA, Comparison, compare_paired, least_seeds, mean_interval, median_interval
from accelnet.choosing.stage import make_stage
from accelnet.choosing.target import common_target, finite_curve, steps_to
from accelnet.errors import UserError
from accelnet.evaluating.latency import measure_latency, measure_step
from accelnet.experiment import Experiment
from accelnet.objectives.metric import lower_is_better
from accelnet.ops.flops import count_jaxpr_flops
from accelnet.populations.members import check_field, grid
from accelnet.populations.population import Population
from accelnet.populations.results import PopulationRun
from accelnet.terminal import StatusLine
from accelnet.training.flops import trace_step
from accelnet.training.record import plain_value, write_report

RATES = tuple(np.geomspace(1e-4, 3.0, 16).round(7).tolist())
TUNING_SEEDS = 2
_SEEDS = 12
_FIRST_TUNING_SEED = 1_000_000  # those of the comparison are others: what won by luck does not count twice
_EVALUATIONS = 40


def compare(
    candidates: Sequence[Candidate],
    *,
    seeds: int | None = None,
    metric: str | None = None,
    target: float | None = None,
    rates: Sequence[float] = RATES,
    tuning_seeds: int = TUNING_SEEDS,
    alpha: float = ALPHA,
    workdir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare candidates on the validation split, and test the winner.

    Each candidate's learning rate is chosen among the same rates, by the mean over the same tuning seeds after full
    trainings; then each is trained with the same seeds. No test data is in the experiments until the winner is fixed.

    Args:
        candidates: at least two, of different names.
        seeds: of each candidate's trainings. None: as many as can show a difference, at least 12.
        metric: that decides, of the validation split (of the training split where there is none). None: the
            experiment's `best_metric`.
        target: of the metric, for the time to it. None: what every candidate reaches in half of its trainings.
        rates: above 0, tried for each candidate.
        tuning_seeds: trainings of each rate.
        alpha: chance of claiming a difference where there is none, over all comparisons.
        workdir: where compare.json, report.html and the populations are kept; what is finished there is not trained
            again. None: nowhere.
        progress: show what is done on standard error.

    Returns:
        JSON values, of the schema that the README documents.

    Raises:
        UserError: if candidates or seeds are too few, a rate is not above 0, the metric is unknown, or all trainings of
            a candidate diverge.
    """
    seeds = _check(candidates, seeds, rates, tuning_seeds, alpha)
    examples = {one.name: without_test(one.function)(one.config) for one in candidates}
    first = examples[candidates[0].name]
    metric = first.best_metric if metric is None else metric
    lower, say = _direction(examples, metric), StatusLine(progress)
    split = "validation" if first.data.num_examples("validation") else "train"
    runs, tuned = {}, {}
    for one in candidates:
        say(f"{one.name}: {len(rates)} learning rates, {tuning_seeds} seeds each")
        folder = _folder(workdir, one, "tuning")
        tuned[one.name] = _tune(one, rates, tuning_seeds, metric, lower, folder, progress)
        say(f"{one.name}: {seeds} seeds at a learning rate of {tuned[one.name]['learning_rate']:g}")
        runs[one.name] = _train(one, tuned, range(seeds), _folder(workdir, one, "seeds"), progress)
    finals = _finals(runs, metric, split, lower)
    comparisons = compare_paired(finals, lower_is_better=lower, alpha=alpha)
    winner = (min if lower else max)(finals, key=lambda name: finals[name].mean())
    goal = common_target(runs, metric, lower) if target is None else target
    described = [
        _describe(one, runs[one.name], tuned[one.name], finals[one.name], metric, lower, goal, say)
        for one in candidates
    ]
    say(f"{winner}: the test split")
    test = _test(next(one for one in candidates if one.name == winner), tuned, seeds, workdir, progress)
    say.close()
    values = plain_value({
        "experiment": first.name, "metric": metric, "split": split, "lower_is_better": lower, "seeds": seeds,
        "alpha": alpha, "target": goal, "tuning": {"rates": list(rates), "seeds": tuning_seeds},
        "candidates": described, "comparisons": [one.to_dict() for one in comparisons],
        "winner": winner, "words": _words(winner, comparisons), "test": test,
        "pareto": {name: _pareto(described, name, lower) for name in ("parameters", "flops", "latency_seconds")},
    })  # fmt: skip
    if workdir is not None:
        write_comparison(values, workdir)
    return values


def _direction(examples: Mapping[str, Experiment], metric: str) -> bool:
    """Return whether less of the metric is better, as the metrics of all candidates say."""
    said = {}
    for name, example in examples.items():
        if metric not in example.objective.metrics:
            raise UserError(f"{name} has no metric {metric!r}, only: {', '.join(example.objective.metrics)}")
        said[name] = lower_is_better(example.objective.metrics, metric)
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{name}: {'lower' if lower else 'higher'}" for name, lower in said.items())
        raise UserError(f"the candidates' metrics {metric!r} disagree on which is better ({listed}): compare another")
    return next(iter(said.values()))


def _check(
    candidates: Sequence[Candidate], seeds: int | None, rates: Sequence[float], tuning_seeds: int, alpha: float
) -> int:
    """Return the number of seeds, or say what is wrong."""
    names = [one.name for one in candidates]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"candidates are {', '.join(names) or 'none'}: expected at least two, of different names")
    if not 0 < alpha < 1:
        raise UserError(f"alpha is {alpha}, expected a probability above 0 and below 1")
    seeds = max(_SEEDS, least_seeds(len(names), alpha)) if seeds is None else seeds
    if seeds < least_seeds(len(names), alpha):
        raise UserError(
            f"{seeds} seeds cannot show any difference between {len(names)} candidates: give at least "
            f"{least_seeds(len(names), alpha)}"
        )
    if tuning_seeds < 1:
        raise UserError(f"tuning seeds are {tuning_seeds}, expected at least 1")
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UserError(f"rates are {list(rates)}, expected at least one, all above 0")
    for one in candidates:
        check_field(one.config, "learning_rate")
    return seeds


def _folder(workdir: str | Path | None, one: Candidate, part: str) -> Path | None:
    # A name may be a path, or settings.
    return None if workdir is None else Path(workdir) / quote(one.name, safe="=,+ ") / part


def _tune(
    one: Candidate,
    rates: Sequence[float],
    num_seeds: int,
    metric: str,
    lower: bool,
    folder: Path | None,
    progress: bool,
) -> dict[str, Any]:
    """Choose the learning rate with the best mean after full trainings."""
    members = grid(range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + num_seeds), learning_rate=rates)
    population = Population(without_test(one.function), one.config, members, splits=())
    run = population.train(workdir=folder, progress=progress)
    stage = make_stage([run], 1.0, metric, lower)
    if not stage.leading():
        raise UserError(
            f"{one.name}: all learning rates from {min(rates):g} to {max(rates):g} diverged: give lower ones"
        )
    tried = [
        {"learning_rate": setting["learning_rate"], "value": mean}
        for setting, mean in zip(stage.settings, stage.means, strict=True)
    ]
    best = stage.leading()[0]
    at_the_end = len(tried) > 1 and best in (0, len(tried) - 1)
    return {
        "learning_rate": tried[best]["learning_rate"], "at_the_end": at_the_end, "tried": tried, "seconds": run.seconds
    }  # fmt: skip


def _good(run: PopulationRun, metric: str, split: str) -> np.ndarray:
    return (run.failed < 0) & np.isfinite(run.metrics[split][metric])


def _train(
    one: Candidate, tuned: Any, seeds: range, folder: Path | None, progress: bool, splits: Sequence[str] = ()
) -> PopulationRun:
    config = dataclasses.replace(one.config, learning_rate=tuned[one.name]["learning_rate"])
    function = one.function if "test" in splits else without_test(one.function)
    population = Population(
        function, config, grid(seeds), evaluations=_EVALUATIONS, splits=splits or ("train", "validation")
    )
    return population.train(workdir=folder, progress=progress)


def _finals(runs: dict[str, PopulationRun], metric: str, split: str, lower: bool) -> dict[str, np.ndarray]:
    """Return the final values by seed; a training that diverged counts as the worst of all that did not."""
    good = {name: _good(run, metric, split) for name, run in runs.items()}
    known = np.concatenate([run.metrics[split][metric][good[name]] for name, run in runs.items()])
    if not len(known):
        raise UserError("all trainings diverged: give lower learning rates")
    worst = known.max() if lower else known.min()
    return {
        name: np.where(good[name], run.metrics[split][metric], worst).astype(np.float64) for name, run in runs.items()
    }


def _describe(
    one: Candidate,
    run: PopulationRun,
    tuned: Any,
    final: np.ndarray,
    metric: str,
    lower: bool,
    goal: float,
    say: StatusLine,
) -> dict[str, Any]:
    config = dataclasses.replace(one.config, learning_rate=tuned["learning_rate"])
    example = without_test(one.function)(config)
    say(f"{one.name}: parameters, FLOPs, latency and time of a step")
    trained, step_seconds = measure_step(example)
    batch = max(1, example.order.microbatch_size)
    flops = count_jaxpr_flops(trace_step(example).forward).total / batch
    latency = measure_latency(trained, (1,))[0]
    curve = finite_curve(run, metric, lower)
    reached = steps_to(run.steps, curve, goal, lower)
    low, high = mean_interval(final)
    median = float(np.median(reached))
    return {
        "name": one.name,
        "learning_rate": tuned["learning_rate"],
        "tuning": tuned,
        "final": {"mean": final.mean(), "low": low, "high": high, "values": final},
        "failed": int((run.failed >= 0).sum()),
        "steps_to_target": {
            "median": median, **dict(zip(("low", "high"), median_interval(reached), strict=True)),
            "reached": int(np.isfinite(reached).sum()),
        },
        "seconds_to_target": median * step_seconds,
        "step_seconds": step_seconds,
        "parameters": run.num_parameters,
        "flops": flops,
        "latency_seconds": latency["p50"],
        "population_seconds": run.seconds,
        "curve": {"steps": run.steps, "median": np.median(curve, axis=1),
                  "low": np.quantile(curve, 0.25, axis=1, method="nearest"),
                  "high": np.quantile(curve, 0.75, axis=1, method="nearest")},
    }  # fmt: skip


def _test(
    one: Candidate, tuned: Any, seeds: int, workdir: str | Path | None, progress: bool
) -> dict[str, dict[str, Any]]:
    """Train the winner again, the same to the bit, with the test split in its data."""
    if not one.function(one.config).data.num_examples("test"):
        return {}
    run = _train(one, tuned, range(seeds), _folder(workdir, one, "test"), progress, splits=("test",))
    found = {}
    for name, values in run.metrics["test"].items():
        known = values[np.isfinite(values)].astype(np.float64)
        if len(known):
            low, high = mean_interval(known)
            found[name] = {"mean": known.mean(), "low": low, "high": high}
    return found


def _words(winner: str, comparisons: Sequence[Comparison]) -> str:
    own = [one for one in comparisons if winner in (one.first, one.second)]
    beaten = [one.second for one in own if one.shown]
    equal = [one.second if one.first == winner else one.first for one in own if not one.shown]
    told = [f"better than {', '.join(beaten)}"] if beaten else []
    told += [f"no difference shown to {', '.join(equal)}"] if equal else []
    return f"{winner} has the best mean: {'; '.join(told)}"


def _pareto(described: Sequence[dict[str, Any]], cost: str, lower: bool) -> list[str]:
    """Return the names of those that no other beats in both cost and value, cheapest first."""
    front, best = [], math.inf
    for one in sorted(described, key=lambda one: (one[cost], one["final"]["mean"] * (1 if lower else -1))):
        value = float(one["final"]["mean"]) * (1 if lower else -1)
        if value < best:
            front.append(one["name"])
            best = value
    return front


def write_comparison(values: dict[str, Any], workdir: str | Path) -> Path:
    """Write compare.json and report.html, each whole or not at all; return the page's path.

    Raises:
        UserError: if they cannot be written.
    """
    return write_report(workdir, "compare", values, comparison_page(values))
