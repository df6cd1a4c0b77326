"""Tuning: what `tune` found, computed from its two stages, and why it is recommended."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from accelnet.choosing.search import named
from accelnet.choosing.stage import Stage
from accelnet.choosing.tune_page import page
from accelnet.errors import UserError
from accelnet.json_file import plain_value
from accelnet.report.document import embedded
from accelnet.terminal import rendered

# Of the metric before training: less is rounding.
_LEAST_GAIN = 1e-4
# Of the first range, downwards, where everything in it diverges.
DECADES_BELOW = 6

Spans = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, repr=False)
class Tuning:
    """What tuning found.

    Attributes:
        experiment: Name of the experiment.
        spans: Lowest and highest number that was tried, by field.
        short: All settings, trained for a share of the steps.
        full: Some settings, trained in full.
        seconds: Time of training and compiling.
    """

    experiment: str
    spans: Spans
    short: Stage
    full: Stage
    seconds: float

    def __repr__(self) -> str:
        lines = [f"tuning of {self.experiment}: take {named(self.recommended)}"]
        for index in self.full.leading()[:6]:
            count = len(self.full.losses[index])
            place = f"{self.full.means[index]:<11.4g} {named(self.full.settings[index])}"
            lines.append(f"  {self.split} {self.metric} {place}, mean of {count}")
        lines.append(f"no difference was shown within {_spanned(self.basin, '.3g')}; .reason says more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return embedded(page(self.to_dict()))

    def table(self) -> str:
        """Return the settings that were trained in full as text, a line for each, the best first."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for place, name in enumerate(("", *self.spans, f"{self.split} {self.metric}", "seeds", "")):
            table.add_column(name, justify="right" if 0 < place < len(self.spans) + 3 else "left")
        for index in self.full.leading():
            setting, losses = self.full.settings[index], self.full.losses[index]
            told = "" if self.full.contest.contenders[index] else "worse than the best"
            mark = "→" if dict(setting) == self.recommended else " "
            numbers = (f"{value:.3g}" for value in setting.values())
            table.add_row(mark, *numbers, f"{losses.mean():.4g}", str(len(losses)), told)
        return rendered(table)

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """Both lengths, the shorter first."""
        return self.short, self.full

    @property
    def metric(self) -> str:
        """Metric that was compared."""
        return self.full.metric

    @property
    def split(self) -> str:
        """Split on which it was compared."""
        return self.full.runs[0].split

    @cached_property
    def recommended(self) -> dict[str, float]:
        """Number for each field: the best mean of the trainings in full."""
        return dict(self.full.settings[self.full.leading()[0]])

    @cached_property
    def basin(self) -> dict[str, tuple[float, float]]:
        """By field, the lowest and the highest number of the settings that cannot be told from the best."""
        kept = [setting for setting, one in zip(self.full.settings, self.full.contest.contenders, strict=True) if one]
        kept.append(self.recommended)
        return {name: _ends(kept, name) for name in self.spans}

    @cached_property
    def edge(self) -> dict[str, float | None]:
        """By field, where divergence begins; None if it was not met."""
        return {name: _edge(self.short, name) for name in self.spans}

    @property
    def cost(self) -> float:
        """Trainings of full length that the members' steps make up."""
        return sum(stage.share * stage.num_members for stage in self.stages)

    @cached_property
    def reason(self) -> str:
        """What was found, and why it is recommended: one paragraph."""
        short, full = self.stages
        sentences = [f"Take {named(self.recommended)}."]
        sentences.append(
            f"{len(short.settings)} settings were tried for {short.steps} steps, {_spanned(self.spans, '.3g')}, each "
            f"with {len(short.losses[0])} seeds."
        )
        if short.diverged.any():
            edges = " and ".join(f"{name} {edge:.3g}" for name, edge in self.edge.items() if edge is not None)
            sentences.append(f"{short.diverged.sum()} of them diverged{f', from about {edges} on' if edges else ''}.")
        rows = []
        for index in full.leading()[:4]:
            count = len(full.losses[index])
            seeds = f"{count} seed{'' if count == 1 else 's'}"
            rows.append(f"{full.means[index]:.4g} at {named(full.settings[index])} ({seeds})")
        sentences.append(
            f"{len(full.settings)} were trained in full, {full.steps} steps, leading ones with more seeds. The best "
            f"means of the {self.split} {self.metric} were {', '.join(rows)}. No difference was shown between the best "
            f"and {_spanned(self.basin, '.3g')} (Hsu's comparisons with the best, 95 %)."
        )
        ends = {name: _ends(short.settings, name) for name in self.spans}
        at_end = [
            f"{name} {'lowest' if value == ends[name][0] else 'highest'}"
            for name, value in self.recommended.items()
            if value in ends[name]
        ]
        if at_end:
            sentences.append(
                f"That is the end of the range ({', '.join(at_end)}): a wider one may hold a better number."
            )
        return " ".join(sentences)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values. With one field, basin and edge are that field's."""
        one = next(iter(self.spans)) if len(self.spans) == 1 else None
        return plain_value(
            {
                "experiment": self.experiment,
                "metric": self.metric,
                "lower_is_better": self.short.lower_is_better,
                "split": self.split,
                "fields": tuple(self.spans),
                "recommended": self.recommended,
                "basin": self.basin if one is None else list(self.basin[one]),
                "edge": self.edge if one is None else self.edge[one],
                "members": sum(stage.num_members for stage in self.stages),
                "trainings": self.cost,
                "seconds": self.seconds,
                "reason": self.reason,
                "stages": [stage.to_dict() for stage in self.stages],
            }
        )


def _ends(settings: Sequence[Mapping[str, float]], name: str) -> tuple[float, float]:
    return min(setting[name] for setting in settings), max(setting[name] for setting in settings)


def _spanned(spans: Spans, form: str) -> str:
    return " and ".join(f"{name} from {low:{form}} to {high:{form}}" for name, (low, high) in spans.items())


def _edge(stage: Stage, name: str) -> float | None:
    """Return the middle between the largest number up to which nothing diverges and the next one, where more does.

    With two fields, a number diverges if it does with all numbers of the other.
    """
    numbers = sorted({setting[name] for setting in stage.settings})
    at = np.array([numbers.index(setting[name]) for setting in stage.settings])
    bad = [bool(stage.diverged[at == place].all()) for place in range(len(numbers))]
    if True not in bad or bad[0]:
        return None
    first = bad.index(True)
    return math.sqrt(numbers[first - 1] * numbers[first])


def all_diverged(spans: Spans, lower: Stage) -> str:
    """Return what to do where every setting diverged, given a stage of lower numbers."""
    tried = _spanned(spans, "g")
    good = [setting for setting, bad in zip(lower.settings, lower.diverged, strict=True) if not bad]
    if not good:
        return f"all members diverged, for {tried}, and {DECADES_BELOW} decades below too: look at data and loss"
    found = _spanned({name: _ends(good, name) for name in spans}, ".3g")
    return f"all members diverged, for {tried}. They did not for {found}: give a range around that"


def check_learning(stage: Stage) -> None:
    """Compare the best setting of a stage with the weights before training.

    Raises:
        UserError: if nothing shows that it learned.
    """
    from scipy import stats

    before, after = stage.before[stage.contest.best], stage.losses[stage.contest.best]
    if stage.scale == "log" and (before > 0).all():
        # As the settings are compared: one seed of a high loss is no noise.
        gain, whole = np.log(before) - np.log(after), 1.0
    else:
        gain, whole = (before - after if stage.lower_is_better else after - before), np.abs(before).mean()
    noise = gain.std(ddof=1) / math.sqrt(len(gain))
    if not gain.mean() > max(noise * stats.t.ppf(0.95, len(gain) - 1), _LEAST_GAIN * whole):
        raise UserError(
            f"after {stage.steps} steps nothing shows that anything was learned ({stage.metric} of the best setting "
            f"{after.mean():.4g}, before training {before.mean():.4g}): give a larger --budget"
        )
