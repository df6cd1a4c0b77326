"""The search of `tune`: trainings in full, around the leader of short ones."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from accelnet.choosing.stage import Stage, make_stage
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.populations.members import ExperimentFunction
from accelnet.populations.results import PopulationRun

# Trainings in full, for each field; the last ones give the two leading settings further seeds.
FULL_TRAININGS = 10
_FURTHER_SEEDS = 4
# Decades below what is best in a short training, where a long one is begun too.
_BELOW = (0.5, 1.0)


def at_share(
    function: ExperimentFunction, config: Any, whole: Experiment, share: float
) -> tuple[ExperimentFunction, Any]:
    """Return the function and the Config of a training of a share of the steps.

    A field `epochs` or `steps` of the Config says how long to train, and whatever the script derives from it, such as a
    schedule, follows. Without such a field the training is cut off, and its schedule stays.

    Args:
        function: Function from a Config to an `Experiment`.
        config: Config of the whole training.
        whole: Experiment of the whole training.
        share: Share of its steps, in (0, 1].
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


def leader(stage: Stage) -> Mapping[str, float]:
    """Return the best contender.

    A loss changes little from a setting to the next one, and what few seeds say of one is mostly chance: among
    contenders, neighbours on the grid count half.
    """
    means, kept = stage.contest.means, stage.contest.contenders
    numbers = {name: sorted({setting[name] for setting in stage.settings}) for name in stage.settings[0]}
    places = np.array([[numbers[name].index(value) for name, value in setting.items()] for setting in stage.settings])
    distances = np.abs(places[:, None] - places).sum(-1)
    weights = np.where((distances <= 1) & kept, 0.5**distances, 0.0)
    smooth = weights @ np.where(kept, means, 0.0) / np.maximum(weights.sum(1), 0.5)
    return stage.settings[int(np.argmin(np.where(kept, smooth, np.inf)))]


def search(
    short: Stage,
    grids: Mapping[str, Sequence[float]],
    train: Callable[[Sequence[tuple[Mapping[str, float], int]], int], PopulationRun],
) -> Stage:
    """Train settings in full, around the leader of a short training.

    `scripts/bench_tune_draws.py` repeats it on trainings with 8 seeds of every rate: 91 % of draws name a rate within
    2 % or a standard error of the best, as often as the whole grid with 3 seeds. With `_BELOW` empty it says 82 %, with
    `_FURTHER_SEEDS` of 6 and of 2 71 and 90 %.

    Args:
        short: Short trainings of all settings of the grid.
        grids: Numbers of the grid by field.
        train: Function from pairs of a setting and the number of its seed, and the number of the call, to a population.

    Returns:
        The stage of what was trained, ten members for each field.

    Raises:
        UserError: if the leader and all below it diverge.
    """
    total, further = FULL_TRAININGS * len(grids), _FURTHER_SEEDS * len(grids)
    wanted = [(setting, 0) for setting in below(leader(short), grids)]
    runs: list[PopulationRun] = []
    while True:
        runs.append(train(wanted, len(runs) + 1))
        full = make_stage(runs, 1.0, short.metric, short.lower_is_better)
        order, left = full.leading(), total - full.num_members
        if order and left <= 0 and max(map(len, full.losses)) > 1:  # without a second seed nothing could be told
            return full
        near = _neighbours(full.settings[order[0]], grids) if order else below(full.settings[0], grids)
        near = [setting for setting in near if setting not in full.settings]
        if not order and not near:
            tried = ", ".join(named(setting) for setting in full.settings)
            raise UserError(
                f"what led after {short.steps} steps, and what is below, diverged within {full.steps} ({tried}): give "
                "a lower range"
            )
        wanted = [(setting, 0) for setting in (near[: max(0, left - further)] if order else near)]
        wanted = wanted or [(full.settings[index], len(full.losses[index])) for index in order[: max(1, min(2, left))]]


def below(setting: Mapping[str, float], grids: Mapping[str, Sequence[float]]) -> list[Mapping[str, float]]:
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


def named(setting: Mapping[str, float]) -> str:
    """Return a setting in words.

    Example:
        >>> named({"learning_rate": 0.00123456, "momentum": 0.9})
        'learning_rate 0.00123 and momentum 0.9'
    """
    return " and ".join(f"{name} {value:.3g}" for name, value in setting.items())
