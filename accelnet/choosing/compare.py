"""Compare candidates: each is tuned with the same budget, then trained with the same seeds, and judged with doubt."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from accelnet.arguments import flags, instance, integer, number, sequence, word
from accelnet.choosing.candidates import Contender, without_test
from accelnet.choosing.compare_page import comparison_page
from accelnet.choosing.paired import ALPHA, Comparison, check_seeds, compare_paired, mean_interval, median_interval
from accelnet.choosing.stage import make_stage
from accelnet.choosing.target import common_target, finite_curve, steps_to
from accelnet.errors import UserError
from accelnet.evaluating.latency import measure_latency, measure_step
from accelnet.experiment import Experiment
from accelnet.json_file import plain_value
from accelnet.ops.flops import count_jaxpr_flops
from accelnet.populations.members import Member, check_field, grid
from accelnet.populations.population import Population
from accelnet.populations.results import PopulationRun
from accelnet.training.flops import trace_step
from accelnet.training.progress import PartOfProgress, Progress, make_progress
from accelnet.training.record import write_report
from accelnet.training.writable import check_workdir

RATES = tuple(np.geomspace(1e-4, 3.0, 16).round(7).tolist())
_FIRST_TUNING_SEED = 1_000_000  # those of the comparison are others: what won by luck does not count twice
_EVALUATIONS = 40


def compare(
    candidates: Sequence[Contender],
    *,
    seeds: int | None = None,
    metric: str | None = None,
    target: float | None = None,
    rates: Sequence[float] = RATES,
    tuning_seeds: int = 2,
    alpha: float = ALPHA,
    workdir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare candidates on the validation split, and test the winner.

    Each candidate's learning rate is chosen among the same rates, by the mean over the same tuning seeds after full
    trainings; then each is trained with the same seeds. No test data is in the experiments until the winner is fixed.

    Args:
        candidates: At least two candidates of different names.
        seeds: Number of trainings of each candidate. None: as many as can show a difference, at least 12.
        metric: Metric of the validation split (of the training split where there is none) that decides. None: the
            experiment's `best_metric`.
        target: Value of the metric, for the time to it. None: what every candidate reaches in half of its trainings.
        rates: Learning rates above 0 that are tried for each candidate.
        tuning_seeds: Number of trainings of each rate.
        alpha: Chance of claiming a difference where there is none, over all comparisons.
        workdir: Directory of compare.json, report.html and the populations; what is finished there is not trained
            again. None: nowhere.
        progress: Show what is done on standard error.

    Returns:
        JSON values, of the schema that the guide documents.

    Raises:
        UserError: if candidates or seeds are too few, a rate is not above 0, the metric is unknown, or all trainings of
            a candidate diverge.
    """
    flags(progress=progress)
    if target is not None:
        number("target", target)
    seeds = _check(candidates, seeds, rates, tuning_seeds, alpha)
    workdir = check_workdir(workdir)
    examples = {one.name: without_test(one.function)(one.config) for one in candidates}
    first = examples[candidates[0].name]
    metric = first.best_metric if metric is None else metric
    lower = _direction(examples, metric)
    split = "validation" if first.data.num_examples("validation") else "train"
    total = sum(one.total_steps for one in examples.values()) * (len(rates) * tuning_seeds + seeds)
    if candidates[0].function(candidates[0].config).data.num_examples("test"):
        total += first.total_steps * seeds  # of the winner, who is not known yet
    tuned: dict[str, dict[str, Any]] = {}
    runs: dict[str, PopulationRun] = {}
    with make_progress(f"compare {', '.join(examples)}", total, show=progress) as display:
        study = _Study(metric, split, lower, workdir, display, total)
        for one in candidates:
            tuned[one.name] = study.tune(one, rates, tuning_seeds)
            rate = tuned[one.name]["learning_rate"]
            display.note(f"{one.name}: of {len(rates)} learning rates {rate:g} is best; {seeds} seeds with it")
            runs[one.name] = study.train(_at(one, rate), "seeds", grid(range(seeds)))
        finals = study.finals(runs)
        comparisons = compare_paired(finals, lower_is_better=lower, alpha=alpha)
        winner = (min if lower else max)(finals, key=lambda name: finals[name].mean())
        goal = common_target(runs, metric, lower) if target is None else target
        display.note("parameters, FLOPs, latency and time of a step of each")
        described = [study.describe(one, tuned[one.name], runs[one.name], finals[one.name], goal) for one in candidates]
        best = next(one for one in candidates if one.name == winner)
        test = study.test(_at(best, tuned[winner]["learning_rate"]), seeds)
    values = plain_value({
        "experiment": first.name, "metric": metric, "split": split, "lower_is_better": lower, "seeds": seeds,
        "alpha": alpha, "target": goal, "tuning": {"rates": list(rates), "seeds": tuning_seeds},
        "candidates": described, "comparisons": [one.to_dict() for one in comparisons],
        "winner": winner, "words": _words(winner, comparisons), "test": test,
        "pareto": {name: _pareto(described, name, lower) for name in ("parameters", "flops", "latency_seconds")},
    })  # fmt: skip
    if workdir is not None:
        write_report(workdir, "compare", values, comparison_page(values))
    return values


def _check(
    candidates: Sequence[Contender], seeds: int | None, rates: Sequence[float], tuning_seeds: int, alpha: float
) -> int:
    """Return the number of seeds, or say what is wrong."""
    for one in sequence("candidates", candidates):
        instance("a candidate", one, Contender, "a Contender(name, function, config)")
    names = [one.name for one in candidates]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"candidates are {', '.join(names) or 'none'}: expected at least two, of different names")
    if not 0 < number("alpha", alpha) < 1:
        raise UserError(f"alpha is {alpha}, expected a probability above 0 and below 1")
    seeds = check_seeds(seeds, len(names), alpha)
    integer("tuning_seeds", tuning_seeds, 1)
    if not all([number("a rate", rate) > 0 for rate in sequence("rates", rates)] or [False]):
        raise UserError(f"rates are {list(rates)}, expected at least one, all above 0")
    for one in candidates:
        check_field(one.config, "learning_rate")
    return seeds


def _direction(examples: Mapping[str, Experiment], metric: str) -> bool:
    """Return whether less of the metric is better, as the metrics of all candidates say."""
    directions = {}
    word("metric", metric)
    for name, example in examples.items():
        if metric not in example.objective.metrics:
            raise UserError(f"{name} has no metric {metric!r}, only: {', '.join(example.objective.metrics)}")
        directions[name] = example.objective.lower_is_better(metric)
    if len(set(directions.values())) > 1:
        listed = ", ".join(f"{name}: {'lower' if lower else 'higher'}" for name, lower in directions.items())
        raise UserError(f"the candidates' metrics {metric!r} disagree on which is better ({listed}): compare another")
    return next(iter(directions.values()))


def _at(one: Contender, rate: float) -> Contender:
    return dataclasses.replace(one, config=dataclasses.replace(one.config, learning_rate=rate))


@dataclass
class _Study:
    """How candidates are trained and measured; `done` counts the steps that are trained."""

    metric: str
    split: str
    lower: bool
    workdir: str | Path | None
    display: Progress
    total: int
    done: int = 0

    def train(
        self,
        one: Contender,
        part: str,
        members: Sequence[Member],
        splits: Sequence[str] = ("train", "validation"),
        evaluations: int = _EVALUATIONS,
    ) -> PopulationRun:
        """Train a candidate; the test split is in its data only where it is to be evaluated."""
        function = one.function if "test" in splits else without_test(one.function)
        # A name may be a path, or settings. Checkpoints cannot lie in a folder with % in its name.
        name = quote(one.name, safe="=,+ ").replace("%", "@")
        folder = None if self.workdir is None else Path(self.workdir) / name / part
        population = Population(function, one.config, members, splits=splits, evaluations=evaluations)
        run = population.train(workdir=folder, progress=PartOfProgress(self.display, min(self.done, self.total)))
        self.done += len(members) * int(run.steps[-1])
        return run

    def tune(self, one: Contender, rates: Sequence[float], num_seeds: int) -> dict[str, Any]:
        """Choose the learning rate with the best mean after full trainings."""
        seeds = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + num_seeds)
        run = self.train(one, "tuning", grid(seeds, learning_rate=rates), splits=(), evaluations=1)
        stage = make_stage([run], 1.0, self.metric, self.lower)
        if not stage.leading():
            raise UserError(
                f"{one.name}: all learning rates from {min(rates):g} to {max(rates):g} diverged: give lower ones"
            )
        tried = [{**setting, "value": mean} for setting, mean in zip(stage.settings, stage.means, strict=True)]
        best = stage.leading()[0]
        return {
            "learning_rate": tried[best]["learning_rate"],
            "at_the_end": len(tried) > 1 and best in (0, len(tried) - 1),
            "tried": tried,
            "seconds": run.seconds,
        }

    def finals(self, runs: Mapping[str, PopulationRun]) -> dict[str, np.ndarray]:
        """Return the final values by seed; a training that diverged counts as the worst of all that did not."""
        values = {name: run.metrics[self.split][self.metric] for name, run in runs.items()}
        good = {name: (run.failed < 0) & np.isfinite(values[name]) for name, run in runs.items()}
        known = np.concatenate([values[name][good[name]] for name in runs])
        if not len(known):
            raise UserError("all trainings diverged: give lower learning rates")
        worst = known.max() if self.lower else known.min()
        return {name: np.where(good[name], values[name], worst).astype(np.float64) for name in runs}

    def describe(
        self, one: Contender, tuned: Mapping[str, Any], run: PopulationRun, final: np.ndarray, goal: float
    ) -> dict[str, Any]:
        """Return what is known of a candidate, its costs included."""
        example = without_test(one.function)(_at(one, tuned["learning_rate"]).config)
        trained, step_seconds = measure_step(example)
        curve = finite_curve(run, self.metric, self.lower)
        reached = steps_to(run.steps, curve, goal, self.lower)
        median, (soonest, latest) = float(np.median(reached)), median_interval(reached)
        return {
            "name": one.name,
            "learning_rate": tuned["learning_rate"],
            "tuning": tuned,
            "final": {**_mean(final), "values": final},
            "failed": int((run.failed >= 0).sum()),
            "steps_to_target": {
                "median": median, "low": soonest, "high": latest, "reached": int(np.isfinite(reached).sum())
            },
            "seconds_to_target": median * step_seconds,
            "step_seconds": step_seconds,
            "parameters": run.num_parameters,
            "flops": count_jaxpr_flops(trace_step(example).forward).total / max(1, example.order.microbatch_size),
            "latency_seconds": measure_latency(trained, (1,))[0]["p50"],
            "population_seconds": run.seconds,
            "curve": {"steps": run.steps, "median": np.median(curve, axis=1),
                      "low": np.quantile(curve, 0.25, axis=1, method="nearest"),
                      "high": np.quantile(curve, 0.75, axis=1, method="nearest")},
        }  # fmt: skip

    def test(self, one: Contender, seeds: int) -> dict[str, dict[str, float]]:
        """Train the winner again, the same to the bit, with the test split in its data."""
        if not one.function(one.config).data.num_examples("test"):
            return {}
        run = self.train(one, "test", grid(range(seeds)), splits=("test",))
        known = {name: values[np.isfinite(values)].astype(np.float64) for name, values in run.metrics["test"].items()}
        return {name: _mean(values) for name, values in known.items() if len(values)}


def _mean(values: np.ndarray) -> dict[str, float]:
    low, high = mean_interval(values)
    return {"mean": values.mean(), "low": low, "high": high}


def _words(winner: str, comparisons: Sequence[Comparison]) -> str:
    own = [one for one in comparisons if winner in (one.first, one.second)]
    beaten = [one.second for one in own if one.shown]
    equal = [one.second if one.first == winner else one.first for one in own if not one.shown]
    told = [f"better than {', '.join(beaten)}"] if beaten else []
    told += [f"no difference shown to {', '.join(equal)}"] if equal else []
    return f"{winner} has the best mean: {'; '.join(told)}"


def _pareto(described: Sequence[Mapping[str, Any]], cost: str, lower: bool) -> list[str]:
    """Return the names of those that no other beats in both cost and value, cheapest first."""
    front, best, sign = [], math.inf, 1 if lower else -1
    for one in sorted(described, key=lambda one: (one[cost], sign * one["final"]["mean"])):
        if sign * one["final"]["mean"] < best:
            front.append(one["name"])
            best = sign * one["final"]["mean"]
    return front
