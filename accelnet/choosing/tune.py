"""Tune: the best numbers for one or two fields of a Config, by short trainings of many and long ones of few."""

import itertools
import math
import time
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.arguments import flags, instance, integer, number, word
from accelnet.arguments import function as function_of
from accelnet.choosing.search import FULL_TRAININGS, at_share, search
from accelnet.choosing.stage import Stage, make_stage
from accelnet.choosing.tune_page import page, picture
from accelnet.choosing.tuning import DECADES_BELOW, Tuning, all_diverged, check_learning
from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.experiment import check_experiment
from accelnet.populations.members import ExperimentFunction, Member, check_field
from accelnet.populations.population import Population
from accelnet.populations.results import PopulationRun
from accelnet.training.progress import PartOfProgress, make_progress
from accelnet.training.record import write_report
from accelnet.training.writable import check_workdir
from accelnet.wording import shown

EVALUATIONS = 4
BUDGET = 1 / 20
_MIN_STEPS = 10


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
        function: Function of an experiment script from its Config to an `Experiment`.
        config: Config whose other fields stay.
        ranges: Lowest and highest number by field, above 0. None: from a hundredth of the config's to its hundredfold.
        points: Numbers of each field, at least 2. None: 16 for one field, 8 for two.
        num_seeds: Number of seeds, at least 2, from `config.seed` on.
        budget: Share of the training that all settings get, in (0, 1). None: a twentieth, or ten steps if that is more.
        metric: Metric of the validation split ("train", where there is none).
        workdir: Directory of tune.json, tune.png and the populations; what is finished there is not trained again.
        devices: Devices as of `Population.train`.
        progress: Show a progress display on standard error.

    Raises:
        UserError: if a field cannot vary, a range or number is out of range, all members diverge, or the budget is too
            small for anything to be learned.

    Source: further seeds for the two that lead: Russo, "Simple Bayesian algorithms for best-arm
    identification", 2020.
    """
    function_of("function", function, "a function from a Config to an Experiment")
    instance("ranges", ranges, Mapping, "a dict of (low, high), or None, by field")
    flags(progress=progress)
    word("metric", metric)
    spans = {name: _span(config, name, span) for name, span in ranges.items()}
    points = (16 if len(spans) == 1 else 8) if points is None else points
    experiment = check_experiment(function(config))
    if budget is None:
        budget = min(max(BUDGET, (_MIN_STEPS + 0.5) / experiment.total_steps), 0.5)  # half a step for rounding
    _check(spans, points, num_seeds, budget)
    lower = experiment.objective.lower_is_better(metric)
    make, shorter = at_share(function, config, experiment, budget)
    if (num_steps := make(shorter).total_steps) < _MIN_STEPS:
        raise UserError(
            f"a share of {budget:g} of {experiment.total_steps} steps is {num_steps}, too few for any statement: give "
            f"a larger --budget, from {min(1.0, _MIN_STEPS / experiment.total_steps):.2g} on"
        )
    folder = check_workdir(workdir)
    first_seed, start = getattr(config, "seed", 0), time.perf_counter()
    steps = {budget: num_steps, 1.0: experiment.total_steps}
    total = points ** len(spans) * num_seeds * num_steps + FULL_TRAININGS * len(spans) * experiment.total_steps
    display, done = make_progress(f"tune {experiment.name}", total, show=progress), 0

    def train(wanted: Sequence[tuple[Mapping[str, float], int]], share: float, name: str) -> PopulationRun:
        members = [Member(first_seed + nth, setting) for setting, nth in wanted]
        population = Population(*at_share(function, config, experiment, share), members, evaluations=EVALUATIONS)
        nonlocal done
        part, done = PartOfProgress(display, done), done + len(members) * steps[share]
        return population.train(workdir=None if folder is None else folder / name, devices=devices, progress=part)

    def train_all(settings: Sequence[Mapping[str, float]], name: str) -> Stage:
        wanted = [(setting, nth) for setting in settings for nth in range(num_seeds)]
        return make_stage([train(wanted, budget, name)], budget, metric, lower)

    grids = {name: np.geomspace(low, high, points).tolist() for name, (low, high) in spans.items()}
    settings = [dict(zip(grids, numbers, strict=True)) for numbers in itertools.product(*grids.values())]
    with display:
        short = train_all(settings, "short")
        if short.diverged.all():
            lowered = [{n: v * 10.0**-DECADES_BELOW for n, v in setting.items()} for setting in settings]
            raise UserError(all_diverged(spans, train_all(lowered, "lower")))
        check_learning(short)
        full = search(short, grids, lambda wanted, number: train(wanted, 1.0, f"full-{number}"))
    tuning = Tuning(experiment.name, spans, short, full, time.perf_counter() - start)
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
    if not isinstance(span, tuple | list) or len(span) != 2:
        raise UserError(f"the range of {name} is {shown(span)}, expected the lowest and the highest number, or None")
    low, high = (number(f"an end of the range of {name}", end) for end in span)
    if not (math.isfinite(low) and math.isfinite(high) and 0 < low < high):
        raise UserError(
            f"the range of {name} is {low:g} to {high:g}, expected two numbers above 0 with the smaller one first: the "
            "axis is logarithmic"
        )
    return low, high


def _check(spans: Mapping[str, Any], points: int, num_seeds: int, budget: float) -> None:
    if len(spans) not in (1, 2):
        raise UserError(f"{len(spans)} fields are to be tuned, expected one or two")
    integer("points", points, 2)
    if integer("num_seeds", num_seeds) < 2:
        raise UserError(f"{num_seeds} seed says nothing about chance, an interval needs at least 2: give --seeds 4")
    if not 0 < number("the budget", budget) < 1:
        raise UserError(f"the budget is {budget:g}, expected a share of the training, above 0 and below 1")
