"""Tune: the best numbers for one or two fields of a Config, by short trainings of many and long ones of few."""

import dataclasses
import itertools
import math
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.choosing.members import ExperimentFunction, Member, check_field
from accelnet.choosing.population import Population
from accelnet.choosing.results import PopulationRun
from accelnet.choosing.rung import Rung, make_rung
from accelnet.choosing.tune_page import page, picture
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.training.record import plain_value, write_atomically, write_report

EVALUATIONS = 4
BUDGET = 1 / 20
_MIN_STEPS = 10
# Trainings in full, for each field; the last ones give the two leading settings further seeds.
_FULL_TRAININGS = 10
_FURTHER_SEEDS = 4
# Decades below what is best in a short training, where a long one is begun too.
_BELOW = (0.5, 1.0)
# Of the metric before training: less is rounding.
_LEAST_GAIN = 1e-4
# Of the first range, downwards, where everything in it diverges.
_DECADES_BELOW = 6


@dataclass(frozen=True)
class Tuning:
    """What tuning found.

    Attributes:
        experiment: its name.
        metric: that was compared.
        split: on which.
        fields: that were tuned.
        recommended: a number for each.
        basin: by field, the lowest and the highest number of the settings that full trainings could not tell from the
            best.
        edge: by field, where divergence begins; None if it was not met.
        reason: one paragraph.
        short: all settings, trained for a share of the steps.
        full: some, trained in full.
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
    short: Rung
    full: Rung
    seconds: float

    @property
    def rungs(self) -> tuple[Rung, Rung]:
        """Both lengths, the shorter first."""
        return self.short, self.full

    @property
    def cost(self) -> float:
        """Trainings of full length that the members' steps make up."""
        return sum(rung.share * rung.num_members for rung in self.rungs)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values. With one field, basin and edge are that field's."""
        one = self.fields[0] if len(self.fields) == 1 else None
        return plain_value(
            {
                "experiment": self.experiment,
                "metric": self.metric,
                "lower_is_better": self.short.lower_is_better,
                "split": self.split,
                "fields": self.fields,
                "recommended": self.recommended,
                "basin": self.basin if one is None else list(self.basin[one]),
                "edge": self.edge if one is None else self.edge[one],
                "members": sum(rung.num_members for rung in self.rungs),
                "trainings": self.cost,
                "seconds": self.seconds,
                "reason": self.reason,
                "rungs": [rung.to_dict() for rung in self.rungs],
            }
        )


def tune(
    function: ExperimentFunction,
    config: Any,
    ranges: Mapping[str, tuple[float, float] | None],
    *,
    points: int | None = None,
    num_seeds: int = 3,
    budget: float | None = None,
    metric: str = "loss",
    workdir: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> Tuning:
    """Recommend numbers for one or two fields of a Config.

    All settings of a logarithmic grid are trained with `num_seeds` seeds for a share `budget` of the training, its
    schedule scaled to that through the Config's own field `epochs` or `steps`. Around the best of them some are trained
    in full, ten for each field: the best itself and what lies half a decade and a decade below, since long trainings
    want lower rates than short ones; then neighbours on the grid of whichever leads; last, further seeds of the two
    that lead. The lowest mean loss of a full training is recommended. Each of these is one compiled program.

    Args:
        function: an experiment script's function from its Config to an `Experiment`.
        config: what stays.
        ranges: lowest and highest number by field, above 0. None: from a hundredth of the config's to its hundredfold.
        points: per field, at least 2. None: 16 for one field, 8 for two.
        num_seeds: at least 2, from `config.seed` on.
        budget: share of the training that all settings get, in (0, 1). None: a twentieth, or ten steps if that is more.
        metric: of the validation split ("train", where there is none).
        workdir: where tune.json, tune.png and the populations are kept; what is finished there is not trained again.
        devices: as of `Population.train`.
        progress: show a progress display on standard error.

    Returns:
        The `Tuning`.

    Raises:
        UserError: if a field cannot vary, a range or number is out of range, all members diverge, or the budget is too
            small for anything to be learned.

    Source: further seeds for the two that lead: Russo, "Simple Bayesian algorithms for best-arm
    identification", 2020.
    """
    spans = {name: _span(config, name, span) for name, span in ranges.items()}
    points = (16 if len(spans) == 1 else 8) if points is None else points
    whole = function(config)
    if budget is None:
        budget = min(max(BUDGET, (_MIN_STEPS + 0.5) / whole.total_steps), 0.5)  # half a step for rounding
    _check(spans, points, num_seeds, budget)
    folder = None if workdir is None else Path(workdir)
    is_lower = whole.objective.lower_is_better(metric)
    start = time.perf_counter()
    first_seed = getattr(config, "seed", 0)

    def train(members: Sequence[Member], share: float, name: str) -> PopulationRun:
        make, shorter = at_share(function, config, whole, share)
        population = Population(make, shorter, members, evaluations=EVALUATIONS, splits=("train", "validation"))
        return population.train(workdir=None if folder is None else folder / name, devices=devices, progress=progress)

    def train_all(settings: Sequence[Mapping[str, float]], name: str) -> Rung:
        seeds = range(first_seed, first_seed + num_seeds)
        run = train([Member(seed, setting) for setting in settings for seed in seeds], budget, name)
        return make_rung([run], budget, metric, is_lower)

    def train_in_full(wanted: Sequence[tuple[Mapping[str, float], int]], number: int) -> PopulationRun:
        return train([Member(first_seed + nth, setting) for setting, nth in wanted], 1.0, f"full-{number}")

    grids = {name: np.geomspace(low, high, points).tolist() for name, (low, high) in spans.items()}
    settings = [dict(zip(grids, numbers, strict=True)) for numbers in itertools.product(*grids.values())]
    make, shorter = at_share(function, config, whole, budget)
    short_steps = make(shorter).total_steps
    if short_steps < _MIN_STEPS:
        raise UserError(
            f"a share of {budget:g} of {whole.total_steps} steps is {short_steps}, too few for any statement: give a "
            f"larger --budget, from {min(1.0, _MIN_STEPS / whole.total_steps):.2g} on"
        )
    short = train_all(settings, "short")
    if short.diverged.all():
        lower = [{n: v * 10.0**-_DECADES_BELOW for n, v in setting.items()} for setting in settings]
        raise UserError(_all_diverged(spans, train_all(lower, "lower")))
    _check_learning(short)
    full = search(short, grids, train_in_full)
    recommended = dict(full.settings[full.leading()[0]])
    basin = [setting for setting, kept in zip(full.settings, full.contest.contenders, strict=True) if kept]
    basin.append(recommended)
    tuning = Tuning(
        experiment=whole.name,
        metric=metric,
        split=full.runs[0].split,
        fields=tuple(spans),
        recommended=recommended,
        basin={name: (min(s[name] for s in basin), max(s[name] for s in basin)) for name in spans},
        edge={name: _edge(short, name) for name in spans},
        reason="",
        short=short,
        full=full,
        seconds=time.perf_counter() - start,
    )
    tuning = dataclasses.replace(tuning, reason=explain(tuning, spans))
    if folder is not None:
        values = tuning.to_dict()
        write_report(folder, "tune", values, page(values))
        write_atomically(folder / "tune.png", picture(values))
    return tuning


def _span(config: Any, name: str, span: tuple[float, float] | None) -> tuple[float, float]:
    value = check_field(config, name)
    if typing.get_type_hints(type(config)).get(name) is int:
        raise UserError(
            f"{name} is a whole number, and tune tries numbers such as {value / 100:g} in its place: compare --set "
            f"{name}={value} --set {name}={2 * value} compares whole numbers"
        )
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


def _leader(rung: Rung) -> Mapping[str, float]:
    """Return the best contender.

    A loss changes little from a setting to the next one, and what few seeds say of one is mostly chance: among
    contenders, neighbours on the grid count half.
    """
    means, kept = rung.contest.means, rung.contest.contenders
    numbers = {name: sorted({setting[name] for setting in rung.settings}) for name in rung.settings[0]}
    places = np.array([[numbers[name].index(value) for name, value in setting.items()] for setting in rung.settings])
    distances = np.abs(places[:, None] - places).sum(-1)
    weights = np.where((distances <= 1) & kept, 0.5**distances, 0.0)
    smooth = weights @ np.where(kept, means, 0.0) / np.maximum(weights.sum(1), 0.5)
    return rung.settings[int(np.argmin(np.where(kept, smooth, np.inf)))]


def search(
    short: Rung,
    grids: Mapping[str, Sequence[float]],
    train: Callable[[Sequence[tuple[Mapping[str, float], int]], int], PopulationRun],
) -> Rung:
    """Train settings in full, around the leader of a short training.

    `scripts/bench_tune_draws.py` repeats it on trainings with 8 seeds of every rate: 91 % of draws name a rate within
    2 % or a standard error of the best, as often as the whole grid with 3 seeds. With `_BELOW` empty it says 82 %, with
    `_FURTHER_SEEDS` of 6 and of 2 71 and 90 %.

    Args:
        short: all settings of the grid.
        grids: numbers by field.
        train: from settings, which seed of each, and the number of the call, to their population.

    Returns:
        What was trained, ten members for each field.

    Raises:
        UserError: if the leader and all below it diverge.
    """
    total, further = _FULL_TRAININGS * len(grids), _FURTHER_SEEDS * len(grids)
    wanted = [(setting, 0) for setting in _below(_leader(short), grids)]
    runs: list[PopulationRun] = []
    while True:
        runs.append(train(wanted, len(runs) + 1))
        full = make_rung(runs, 1.0, short.metric, short.lower_is_better)
        order, left = full.leading(), total - full.num_members
        if order and left <= 0 and max(map(len, full.losses)) > 1:  # without a second seed nothing could be told
            return full
        near = _neighbours(full.settings[order[0]], grids) if order else _below(full.settings[0], grids)
        near = [setting for setting in near if setting not in full.settings]
        if not order and not near:
            tried = ", ".join(_named(setting) for setting in full.settings)
            raise UserError(
                f"what led after {short.steps} steps, and what is below, diverged within {full.steps} ({tried}): give "
                "a lower range"
            )
        wanted = [(setting, 0) for setting in (near[: max(0, left - further)] if order else near)]
        wanted = wanted or [(full.settings[index], len(full.losses[index])) for index in order[: max(1, min(2, left))]]


def _below(setting: Mapping[str, float], grids: Mapping[str, Sequence[float]]) -> list[Mapping[str, float]]:
    """Return a setting and those that lie below it by `_BELOW` in one field, on the grid."""
    found = [setting]
    for name, numbers in grids.items():
        for decades in _BELOW:
            wanted = setting[name] / 10**decades
            lower = {**setting, name: min(numbers, key=lambda number: abs(math.log(number / wanted)))}
            if lower not in found:
                found.append(lower)
    return found


def _neighbours(setting: Mapping[str, float], grids: Mapping[str, Sequence[float]]) -> list[Mapping[str, float]]:
    """Return the settings next to one on the grid."""
    found = []
    for name, numbers in grids.items():
        at = numbers.index(setting[name])
        found += [{**setting, name: numbers[near]} for near in (at - 1, at + 1) if 0 <= near < len(numbers)]
    return found


def _all_diverged(spans: Mapping[str, tuple[float, float]], lower: Rung) -> str:
    tried = " and ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in spans.items())
    good = [setting for setting, bad in zip(lower.settings, lower.diverged, strict=True) if not bad]
    if not good:
        return f"all members diverged, for {tried}, and {_DECADES_BELOW} decades below too: look at data and loss"
    found = [f"{n} from {min(s[n] for s in good):.3g} to {max(s[n] for s in good):.3g}" for n in spans]
    return f"all members diverged, for {tried}. They did not for {' and '.join(found)}: give a range around that"


def _check_learning(rung: Rung) -> None:
    """Compare the best setting with the weights before training."""
    from scipy import stats

    before, after = rung.before[rung.contest.best], rung.losses[rung.contest.best]
    if rung.scale == "log" and (before > 0).all():
        # As the settings are compared: one seed of a high loss is no noise.
        gain, whole = np.log(before) - np.log(after), 1.0
    else:
        gain, whole = (before - after if rung.lower_is_better else after - before), np.abs(before).mean()
    noise = gain.std(ddof=1) / math.sqrt(len(gain))
    if not gain.mean() > max(noise * stats.t.ppf(0.95, len(gain) - 1), _LEAST_GAIN * whole):
        raise UserError(
            f"after {rung.steps} steps nothing shows that anything was learned ({rung.metric} of the best setting "
            f"{after.mean():.4g}, before training {before.mean():.4g}): give a larger --budget"
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
    short, full = tuning.rungs
    tried = " and ".join(f"{name} from {low:.3g} to {high:.3g}" for name, (low, high) in spans.items())
    sentences = [f"Take {_named(tuning.recommended)}."]
    sentences.append(
        f"{len(short.settings)} settings were tried for {short.steps} steps, {tried}, each with "
        f"{len(short.losses[0])} seeds."
    )
    if short.diverged.any():
        edges = [f"{name} {edge:.3g}" for name, edge in tuning.edge.items() if edge is not None]
        sentences.append(
            f"{short.diverged.sum()} of them diverged" + (f", from about {' and '.join(edges)} on." if edges else ".")
        )
    rows = [
        f"{full.means[index]:.4g} at {_named(full.settings[index])} ({_count(len(full.losses[index]), 'seed')})"
        for index in full.leading()[:4]
    ]
    sentences.append(
        f"{len(full.settings)} were trained in full, {full.steps} steps, leading ones with more seeds. The best means "
        f"of the {tuning.split} {tuning.metric} were {', '.join(rows)}."
    )
    inside = " and ".join(f"{name} from {low:.3g} to {high:.3g}" for name, (low, high) in tuning.basin.items())
    sentences.append(f"No difference was shown between the best and {inside} (Hsu's comparisons with the best, 95 %).")
    at_end = [
        f"{name} {'lowest' if value == min(s[name] for s in short.settings) else 'highest'}"
        for name, value in tuning.recommended.items()
        if value in (min(s[name] for s in short.settings), max(s[name] for s in short.settings))
    ]
    if at_end:
        sentences.append(f"That is the end of the range ({', '.join(at_end)}): a wider one may hold a better number.")
    return " ".join(sentences)


def _named(setting: Mapping[str, float]) -> str:
    return " and ".join(f"{name} {value:.3g}" for name, value in setting.items())


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
