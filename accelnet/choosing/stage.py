"""One comparison within `tune`: settings trained for a share of the whole training, and those that may be the best."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from accelnet.choosing.statistics import Contest, compete
from accelnet.json_file import plain_value
from accelnet.populations.results import PopulationRun

# A training loss has noise, and with dropout it is the higher one.
_WORSE = 0.25


@dataclass(frozen=True)
class Stage:
    """Settings trained for a share of the whole training, with its schedule scaled to that.

    Attributes:
        share: Share of the steps of a whole training.
        metric: Metric that is compared.
        lower_is_better: Direction of that metric.
        settings: Numbers by field of each setting, [G], in the grid's order.
        losses: Metric of each setting at the end, float [S] by seed, NaN for members that diverged.
        before: Metric of each setting before training, float [S].
        runs: Populations that were trained.
    """

    share: float
    metric: str
    lower_is_better: bool
    settings: tuple[Mapping[str, float], ...]
    losses: tuple[np.ndarray, ...]
    before: tuple[np.ndarray, ...]
    runs: tuple[PopulationRun, ...]

    @property
    def steps(self) -> int:
        """Steps of each member."""
        return int(self.runs[0].steps[-1])

    @property
    def num_members(self) -> int:
        """Trainings, all together."""
        return sum(len(losses) for losses in self.losses)

    @property
    def diverged(self) -> np.ndarray:
        """Whether more than half of the seeds of a setting diverged, bool [G]."""
        return np.array([np.isnan(losses).mean() > 0.5 for losses in self.losses])

    @property
    def means(self) -> np.ndarray:
        """Mean losses, float [G]; NaN for a setting with a seed that diverged."""
        return np.array([losses.mean() for losses in self.losses])

    def leading(self) -> list[int]:
        """Return the settings without a seed that diverged, that with the best mean loss first."""
        sign = 1 if self.lower_is_better else -1
        return [int(index) for index in np.argsort(sign * self.means) if np.isfinite(self.means[index])]

    @property
    def scale(self) -> str:
        """What a contest compares: logarithms ("log"), losses where some are not above 0 ("plain"), or "negative"."""
        if not self.lower_is_better:
            return "negative"
        return "plain" if any((losses <= 0).any() for losses in self.losses) else "log"

    @cached_property
    def contest(self) -> Contest:
        """The comparison with the best. In logarithms one bad seed of several is no more than that."""
        if not self.leading():
            nothing = np.full(len(self.settings), np.inf)
            return Contest(nothing, nothing, nothing, np.zeros(len(nothing), bool), 0)
        function = {"log": np.log, "plain": np.positive, "negative": np.negative}[self.scale]
        return compete([function(losses) for losses in self.losses])

    def level(self, values: np.ndarray) -> np.ndarray:
        """Return a contest's means or ends of intervals in the unit of the losses."""
        return np.exp(values) if self.scale == "log" else -values if self.scale == "negative" else values

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Of a setting, "center" is the mean of what was compared, in the unit of the metric: the geometric mean where
        "scale" is "log". "low" and "high" are the ends of its 95 % interval, null where there is none.
        """
        center, low, high = (self.level(v) for v in (self.contest.means, self.contest.low, self.contest.high))
        rows = [
            {
                **setting,
                "mean": self.means[index],
                "center": center[index],
                "low": low[index],
                "high": high[index],
                "contender": self.contest.contenders[index],
                "diverged": self.diverged[index],
                "seeds": self.losses[index],
            }
            for index, setting in enumerate(self.settings)
        ]
        compiles = [run.compiles["train"] for run in self.runs]
        return plain_value(
            {"share": self.share, "steps": self.steps, "scale": self.scale, "compiles": compiles, "settings": rows}
        )


def make_stage(runs: Sequence[PopulationRun], share: float, metric: str, lower_is_better: bool) -> Stage:
    """Put the members of populations together by their settings, and say which diverged.

    A member has diverged if a loss was not finite, or if its training loss in the last part of the training was well
    above that of the untrained weights.
    """

    def join(part: Callable[[PopulationRun], np.ndarray]) -> np.ndarray:
        return np.concatenate([part(run) for run in runs]).astype(np.float64)

    first, last, end = (join(lambda r: r.curves["loss"][0]), join(lambda r: r.train["loss"][-1]),
                        join(lambda r: r.curves[metric][-1]))  # fmt: skip
    sound = (last <= first + _WORSE * np.abs(first)) & (join(lambda r: r.failed) < 0) & np.isfinite(end)
    losses, before = np.where(sound, end, np.nan), join(lambda r: r.curves[metric][0])
    places: dict[tuple[float, ...], list[int]] = {}
    members = [member for run in runs for member in run.members]
    for place, member in enumerate(members):
        places.setdefault(tuple(member.fields.values()), []).append(place)
    found = [places[numbers] for numbers in sorted(places)]
    return Stage(
        share=share,
        metric=metric,
        lower_is_better=lower_is_better,
        settings=tuple(members[own[0]].fields for own in found),
        losses=tuple(losses[own] for own in found),
        before=tuple(before[own] for own in found),
        runs=tuple(runs),
    )
