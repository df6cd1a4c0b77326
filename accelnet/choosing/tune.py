"""Tune: the best numbers for one or two fields of a Config, by short trainings of many and long ones of few."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.choosing.members import ExperimentFunction, Member, check_field
from accelnet.choosing.population import Population
from accelnet.choosing.results import PopulationRun
from accelnet.choosing.statistics import Contest, compete
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.training.events import is_lower_better
from accelnet.training.record import plain_value, write_atomically

_EVALUATIONS = 4
_FINALISTS = 3
_MIN_STEPS = 10
# Of the metric before training: less is rounding.
_LEAST_GAIN = 1e-4
# A training loss has noise, and with dropout it is the higher one.
_WORSE = 0.25
# Of the first range, downwards, where everything in it diverges.
_DECADES_BELOW = 6


@dataclass(frozen=True)
class Rung:
    """One comparison: settings trained for a share of the whole training, with its schedule scaled to that.

    Attributes:
        share: of the steps of a whole training.
        steps: of each member.
        settings: [G] numbers by field.
        losses: float [G, S] at the end, NaN for members that diverged.
        contest: of their logarithms ("log"), of themselves where some are not above 0 ("plain"), or with the sign
            changed where more is better ("negative").
        scale: which of the three.
        diverged: bool [G], those of which more than half of the seeds did.
        run: the population.
    """

    share: float
    steps: int
    settings: tuple[Mapping[str, float], ...]
    losses: np.ndarray
    contest: Contest
    scale: str
    diverged: np.ndarray
    run: PopulationRun

    def level(self, values: np.ndarray) -> np.ndarray:
        """Return means or ends of intervals in the unit of the losses."""
        return np.exp(values) if self.scale == "log" else -values if self.scale == "negative" else values


@dataclass(frozen=True)
class Tuning:
    """What tuning found.

    Attributes:
        experiment: its name.
        metric: that was compared.
        split: on which.
        fields: that were tuned.
        recommended: a number for each.
        basin: by field, the lowest and the highest number of the settings that the second comparison could not tell
            from the best.
        edge: by field, where divergence begins; None if it was not met.
        reason: one paragraph.
        rungs: shortest first.
        seconds: of training and compiling.
    """

    experiment: str
    metric: str
    split: str
    fields: tuple[str, ...]
    recommended: dict[str, float]
    basin: dict[str, tuple[float, float]]
    edge: dict[str, float | None]
    reason: str
    rungs: tuple[Rung, ...]
    seconds: float

    @property
    def cost(self) -> float:
        """Trainings of full length that the members' steps make up."""
        return sum(rung.share * len(rung.run.members) for rung in self.rungs)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values. With one field, basin and edge are that field's."""
        one = self.fields[0] if len(self.fields) == 1 else None
        return plain_value(
            {
                "experiment": self.experiment,
                "metric": self.metric,
                "split": self.split,
                "recommended": self.recommended,
                "basin": self.basin if one is None else list(self.basin[one]),
                "edge": self.edge if one is None else self.edge[one],
                "members": sum(len(rung.run.members) for rung in self.rungs),
                "trainings": self.cost,
                "seconds": self.seconds,
                "reason": self.reason,
                "rungs": [_rung_to_dict(rung) for rung in self.rungs],
            }
        )


def _rung_to_dict(rung: Rung) -> dict[str, Any]:
    rows = [
        {
            **setting,
            "mean": rung.level(rung.contest.means[index]),
            "low": rung.level(rung.contest.low[index]),
            "high": rung.level(rung.contest.high[index]),
            "contender": rung.contest.contenders[index],
            "diverged": rung.diverged[index],
            "seeds": rung.losses[index],
        }
        for index, setting in enumerate(rung.settings)
    ]
    compiles = rung.run.compiles["advance"]
    return {"share": rung.share, "steps": rung.steps, "compiles": compiles, "settings": rows}


def tune(
    function: ExperimentFunction,
    config: Any,
    ranges: Mapping[str, tuple[float, float] | None],
    *,
    points: int | None = None,
    num_seeds: int = 4,
    budget: float = 1 / 16,
    metric: str = "loss",
    workdir: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> Tuning:
    """Recommend numbers for one or two fields of a Config.

    All settings of a logarithmic grid are trained with `num_seeds` seeds for a share `budget` of the training, the best
    half of them with half of the seeds for two thirds of the square root of that share, three of those in full; each is
    one compiled program. The schedule is scaled to each length, through the Config's own field `epochs` or `steps`.
    Settings are told apart by `compete`; the basin is that of the second comparison, and the three are the best of its
    low, its middle and its high numbers, since what is best in a short training need not be so in a long one.

    Args:
        function: an experiment script's function from its Config to an `Experiment`.
        config: what stays.
        ranges: lowest and highest number by field, above 0. None: from a hundredth of the config's to its hundredfold.
        points: per field, at least 2. None: 16 for one field, 8 for two.
        num_seeds: at least 2, from `config.seed` on.
        budget: share of the training in the first comparison, in (0, 1).
        metric: of the validation split ("train", where there is none).
        workdir: where tune.json, tune.png and the populations are kept; what is finished there is not trained again.
        devices: as of `Population.train`.
        progress: show a progress display on standard error.

    Returns:
        The `Tuning`.

    Raises:
        UserError: if a field cannot vary, a range or number is out of range, all members diverge, or the budget is too
            small for anything to be learned.

    Source: original; successive halving: Jamieson and Talwalkar, "Non-stochastic best arm identification and
    hyperparameter optimization", 2016.
    """
    spans = {name: _span(config, name, span) for name, span in ranges.items()}
    points = points or (16 if len(spans) == 1 else 8)
    _check(spans, points, num_seeds, budget)
    folder = None if workdir is None else Path(workdir)
    whole = function(config)
    if metric not in whole.objective.metrics:
        raise UserError(f"the metric is {metric!r}, expected one of {', '.join(whole.objective.metrics)}")
    start = time.perf_counter()
    first_seed = getattr(config, "seed", 0)

    def rung(settings: Sequence[Mapping[str, float]], share: float, num_seeds: int, *, plain: bool = False) -> Rung:
        make, shorter = at_share(function, config, whole, share)
        steps = make(shorter).total_steps
        members = [Member(seed, setting) for setting in settings for seed in range(first_seed, first_seed + num_seeds)]
        name = f"{steps} steps of {len(settings)} settings"
        population = Population(make, shorter, members, evaluations=_EVALUATIONS, splits=("train", "validation"))
        run = population.train(
            workdir=None if folder is None else folder / name.replace(" ", "-"), devices=devices, progress=progress
        )
        return make_rung(run, tuple(settings), num_seeds, share, steps, metric, plain=plain)

    grids = [np.geomspace(low, high, points).tolist() for low, high in spans.values()]
    settings = [dict(zip(spans, numbers, strict=True)) for numbers in itertools.product(*grids)]
    make, shorter = at_share(function, config, whole, budget)
    short_steps = make(shorter).total_steps
    if short_steps < _MIN_STEPS:
        raise UserError(
            f"a share of {budget:g} of {whole.total_steps} steps is {short_steps}, too few for any statement: give a "
            f"larger --budget, from {min(1.0, _MIN_STEPS / whole.total_steps):.2g} on"
        )
    first = rung(settings, budget, num_seeds)
    if first.diverged.all():
        lower = [{n: v * 10.0**-_DECADES_BELOW for n, v in setting.items()} for setting in settings]
        raise UserError(_all_diverged(spans, rung(lower, budget, num_seeds)))
    _check_learning(first, metric)
    fewer_seeds = max(2, num_seeds // 2)
    middle = max(budget, 2 / 3 * math.sqrt(budget))
    second = rung(_short_list(first, max(2, len(settings) // 2)), middle, fewer_seeds)
    # The mean loss is what is wanted in the end: that of the logarithm forgives a bad seed for a lucky one.
    last = rung(_finalists(second, _FINALISTS), 1.0, fewer_seeds, plain=True)
    rungs = (first, second, last)
    recommended = dict(last.settings[last.contest.best])
    basin = [setting for setting, kept in zip(second.settings, second.contest.contenders, strict=True) if kept]
    basin.append(recommended)
    tuning = Tuning(
        experiment=whole.name,
        metric=metric,
        split=last.run.split,
        fields=tuple(spans),
        recommended=recommended,
        basin={name: (min(s[name] for s in basin), max(s[name] for s in basin)) for name in spans},
        edge={name: _edge(first, name) for name in spans},
        reason="",
        rungs=rungs,
        seconds=time.perf_counter() - start,
    )
    tuning = dataclasses.replace(tuning, reason=explain(tuning, spans))
    if folder is not None:
        from accelnet.choosing.tune_page import write_page

        write_page(tuning, folder)
        write_atomically(folder / "tune.json", json.dumps(tuning.to_dict(), indent=2) + "\n")
    return tuning


def _span(config: Any, name: str, span: tuple[float, float] | None) -> tuple[float, float]:
    value = check_field(config, name)
    if span is None:
        if value <= 0:
            raise UserError(f"{name} is {value:g}, which suggests no range: give one, as --range 1e-4:1")
        return value / 100, value * 100
    low, high = span
    if not (math.isfinite(low) and math.isfinite(high) and 0 < low < high):
        raise UserError(
            f"the range of {name} is {low:g} to {high:g}, expected two numbers above 0 with the smaller one first: the "
            "axis is logarithmic"
        )
    return low, high


def _check(spans: Mapping[str, Any], points: int, num_seeds: int, budget: float) -> None:
    if len(spans) not in (1, 2):
        raise UserError(f"{len(spans)} fields are to be tuned, expected one or two")
    if points < 2:
        raise UserError(f"points is {points}, expected at least 2")
    if num_seeds < 2:
        raise UserError(f"{num_seeds} seed says nothing about chance, an interval needs at least 2: give --seeds 4")
    if not 0 < budget < 1:
        raise UserError(f"the budget is {budget:g}, expected a share of the training, above 0 and below 1")


def at_share(
    function: ExperimentFunction, config: Any, whole: Experiment, share: float
) -> tuple[ExperimentFunction, Any]:
    """Return the function and the Config of a training of a share of the steps.

    A field `epochs` or `steps` of the Config says how long to train, and whatever the script derives from it, such as a
    schedule, follows. Without such a field the training is cut off, and its schedule stays.

    Args:
        function: from Config to `Experiment`.
        config: of the whole training.
        whole: its experiment.
        share: in (0, 1].
    """
    if share == 1:
        return function, config
    for name in ("steps", "epochs"):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            short = value * share
            return function, dataclasses.replace(config, **{name: max(1, round(short)) if name == "steps" else short})
    steps = max(1, round(whole.total_steps * share))
    return (lambda config: function(config).replace(steps=steps, epochs=None)), config


def make_rung(
    run: PopulationRun,
    settings: tuple[Mapping[str, float], ...],
    num_seeds: int,
    share: float,
    steps: int,
    metric: str,
    *,
    plain: bool = False,
) -> Rung:
    """Say which members diverged, and compare the settings.

    A member has diverged if a loss was not finite, or if its training loss in the last part of the training was well
    above that of the untrained weights.
    """
    shape = (len(settings), num_seeds)
    before = run.curves["loss"][0]
    above = ~(run.train["loss"][-1] <= before + _WORSE * np.abs(before))
    bad = (above | (run.failed >= 0) | ~np.isfinite(run.curves[metric][-1])).reshape(shape)
    losses = np.where(bad, np.nan, run.curves[metric][-1].reshape(shape)).astype(np.float64)
    logs = not plain and bool((losses[~bad] > 0).all())
    scale = "negative" if not is_lower_better(metric) else "log" if logs else "plain"
    values = {"log": np.log, "plain": np.positive, "negative": np.negative}[scale](losses)
    diverged = bad.sum(1) > num_seeds / 2
    nothing = np.full(len(settings), np.inf)
    if np.isfinite(values).all(1).any():
        contest = compete(values)
    else:
        contest = Contest(nothing, nothing, nothing, np.zeros(len(settings), bool), 0, 0.0)
        diverged = np.ones(len(settings), bool)
    return Rung(share, steps, settings, losses, contest, scale, diverged, run)


def _short_list(rung: Rung, number: int) -> list[Mapping[str, float]]:
    """Return the settings with the lowest means, by `_order`."""
    return [rung.settings[index] for index in sorted(_order(rung)[0][:number])]


def _finalists(rung: Rung, number: int) -> list[Mapping[str, float]]:
    """Return the best of the low, of the middle and of the high contenders; fewer contenders are all kept.

    What is best in a short training tends to be too high for a long one: on diamonds with Adam, rates from 0.005 on
    are among the best after 43 steps and far above 0.0007 after 676 (these in benchmarks/tune.json).
    """
    order, places = _order(rung)
    kept = [index for index in order if rung.contest.contenders[index]]
    if len(kept) < number:
        return _short_list(rung, number)
    parts = np.array_split(sorted(kept, key=lambda index: (places[index].sum(), index)), number)
    return [rung.settings[index] for index in sorted(min(part, key=order.index) for part in parts)]


def _order(rung: Rung) -> tuple[list[int], np.ndarray]:
    """Return the settings that did not diverge, best first, and all settings' places on the grid.

    A loss changes little from a setting to the next one, and what two seeds say of one is mostly chance. So contenders
    come first, and among them neighbours on the grid count half.
    """
    means, kept = rung.contest.means, rung.contest.contenders
    numbers = {name: sorted({setting[name] for setting in rung.settings}) for name in rung.settings[0]}
    places = np.array([[numbers[name].index(value) for name, value in setting.items()] for setting in rung.settings])
    distances = np.abs(places[:, None] - places).sum(-1)
    weights = np.where((distances <= 1) & kept[:, None] & kept, 0.5**distances, np.eye(len(means)))
    smooth = np.where(kept, weights @ np.where(kept, means, 0.0) / weights.sum(1), means)
    return [int(index) for index in np.lexsort((smooth, ~kept)) if np.isfinite(means[index])], places


def _all_diverged(spans: Mapping[str, tuple[float, float]], lower: Rung) -> str:
    tried = " and ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in spans.items())
    good = [setting for setting, bad in zip(lower.settings, lower.diverged, strict=True) if not bad]
    if not good:
        return f"all members diverged, for {tried}, and {_DECADES_BELOW} decades below too: look at data and loss"
    found = [f"{n} from {min(s[n] for s in good):.3g} to {max(s[n] for s in good):.3g}" for n in spans]
    return f"all members diverged, for {tried}. They did not for {' and '.join(found)}: give a range around that"


def _check_learning(rung: Rung, metric: str) -> None:
    """Compare the best setting with the weights before training."""
    from scipy import stats

    num_seeds = rung.losses.shape[1]
    before = rung.run.curves[metric][0].reshape(rung.losses.shape)[rung.contest.best]
    after = rung.losses[rung.contest.best]
    if rung.scale == "log" and (before > 0).all():
        # As the settings are compared: one seed of a high loss is no noise.
        gain, whole = np.log(before) - np.log(after), 1.0
    else:
        gain, whole = (before - after if is_lower_better(metric) else after - before), np.abs(before).mean()
    noise = gain.std(ddof=1) / math.sqrt(num_seeds)
    if not gain.mean() > max(noise * stats.t.ppf(0.95, num_seeds - 1), _LEAST_GAIN * whole):
        raise UserError(
            f"after {rung.steps} steps nothing shows that anything was learned ({metric} of the best setting "
            f"{rung.losses[rung.contest.best].mean():.4g}, before training {before.mean():.4g}): give a larger --budget"
        )


def _edge(rung: Rung, name: str) -> float | None:
    """Return the middle between the largest number up to which nothing diverges and the next one, where more does.

    With two fields, a number diverges if it does with all numbers of the other.
    """
    numbers = sorted({setting[name] for setting in rung.settings})
    bad = [
        all(diverged for setting, diverged in zip(rung.settings, rung.diverged, strict=True) if setting[name] == number)
        for number in numbers
    ]
    if True not in bad or bad[0]:
        return None
    first = bad.index(True)
    return math.sqrt(numbers[first - 1] * numbers[first])


def explain(tuning: Tuning, spans: Mapping[str, tuple[float, float]]) -> str:
    """Say in plain words what was found, and why it is recommended."""
    first, second, last = tuning.rungs
    named = " and ".join(f"{name} {value:.3g}" for name, value in tuning.recommended.items())
    tried = " and ".join(f"{name} from {low:.3g} to {high:.3g}" for name, (low, high) in spans.items())
    sentences = [
        f"Take {named}. {len(first.settings)} settings were tried, {tried}, each with {first.losses.shape[1]} seeds."
    ]
    if first.diverged.any():
        edges = [f"{name} {edge:.3g}" for name, edge in tuning.edge.items() if edge is not None]
        sentences.append(
            f"{first.diverged.sum()} of them diverged" + (f", from about {' and '.join(edges)} on." if edges else ".")
        )
    inside = " and ".join(f"{name} from {low:.3g} to {high:.3g}" for name, (low, high) in tuning.basin.items())
    sentences.append(
        f"After {second.steps} steps, the {tuning.split} {tuning.metric} of {inside} could not be told from the best "
        "(Hsu's comparisons with the best, 95 %)."
    )
    levels, best = last.level(last.contest.means), last.contest.best
    others = [index for index in range(len(levels)) if index != best and np.isfinite(levels[index])]
    if others:
        rows = [" and ".join(f"{name} {value:.3g}" for name, value in last.settings[index].items()) for index in others]
        seeds = last.losses.shape[1]
        came = ", ".join(f"{row} to {levels[index]:.4g}" for row, index in zip(rows, others, strict=True))
        alike = [row for row, index in zip(rows, others, strict=True) if last.contest.contenders[index]]
        shown = f"no difference shown between it and {', '.join(alike)}" if alike else "a difference that is not chance"
        sentences.append(
            f"Trained in full with {seeds} seeds each, {named} came to {levels[best]:.4g}, {came}: {shown}."
        )
    at_end = [
        f"{name} {'lowest' if value == min(s[name] for s in first.settings) else 'highest'}"
        for name, value in tuning.recommended.items()
        if value in (min(s[name] for s in first.settings), max(s[name] for s in first.settings))
    ]
    if at_end:
        sentences.append(f"That is the end of the range ({', '.join(at_end)}): a wider one may hold a better number.")
    return " ".join(sentences)
