"""The answer: which of the measured networks is recommended, why, and what else there is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelnet.compressing.measured import Measured
from accelnet.json_file import plain_value
from accelnet.report.document import piece
from accelnet.report.numbers import duration, number, short
from accelnet.terminal import rendered
from accelnet.wording import size

_EQUAL = 1.03  # costs that differ by less are the same, as measured
_MOST_ROWS = 7  # of a `repr`


@dataclass(frozen=True)
class Wanted:
    """What was asked for.

    Attributes:
        max_drop: Largest drop of the metric. None: any.
        latency: Longest time of an answer, seconds. None: any.
        batch_size: Batch size of that time.
    """

    max_drop: float | None
    latency: float | None
    batch_size: int

    def keeps_drop(self, one: Measured) -> bool:
        """Say whether a network is shown to keep to the drop."""
        return self.max_drop is None or (one.drop is not None and one.drop.is_within(self.max_drop))

    def keeps_latency(self, one: Measured) -> bool:
        """Say whether a network is fast enough."""
        return self.latency is None or one.seconds(self.batch_size) <= self.latency


def choose(measured: Sequence[Measured], wanted: Wanted) -> tuple[Measured | None, Measured | None]:
    """Return the recommended network, None where none keeps to what was asked for, and the nearest one then.

    With a largest drop it is the cheapest of those that keep to it, of equally cheap ones the best. With a latency
    alone it is the best of those that are as fast.

    Args:
        measured: Networks, the original first.
        wanted: What was asked for.
    """
    smaller = [one for one in measured[1:] if math.isfinite(one.value)]
    good = [one for one in smaller if wanted.keeps_drop(one) and wanted.keeps_latency(one)]
    if wanted.max_drop is not None:
        good = [one for one in good if one.share < 1]
        least = min((one.share for one in good), default=0.0)
        good = [one for one in good if one.share <= _EQUAL * least]
    if good:
        return min(good, key=lambda one: (one.lost, one.share)), None
    fast = [one for one in smaller if wanted.keeps_latency(one)]
    if wanted.latency is not None and not fast:
        return None, min(smaller, key=lambda one: one.seconds(wanted.batch_size), default=None)
    return None, min(fast, key=_bound, default=None)


def _bound(one: Measured) -> float:
    bound = math.nan if one.drop is None else one.drop.bound
    return bound if math.isfinite(bound) else math.inf


def front(measured: Sequence[Measured]) -> list[Measured]:
    """Return those that no other beats in both cost and drop, the cheapest first."""
    found, best = [], float("inf")
    for one in sorted(measured, key=lambda one: (one.share, one.lost)):
        if one.lost < best:
            found.append(one)
            best = one.lost
    return found


@dataclass(frozen=True, eq=False)
class Compressions:
    """Smaller networks in the place of one, measured, and the one that is recommended.

    Attributes:
        experiment: Name of the experiment.
        measured: All networks, the original first.
        recommended: The recommended one, `recommended.run` a run like any other; None where none keeps to what was
            asked for.
        nearest: The one that is nearest to it then.
        words: What was found, in sentences.
        wanted: What was asked for.
        metric: Metric that was compared, "name", "lower_is_better" and "is_share".
        split: Split of the compared examples, and their number.
        test: Recommended one on the test split: "value", "original" and "drop"; empty without.
        sensitivity: How the network's parts bear being made smaller.
        notes: What was left alone, and why; trainings that failed.
        seconds: Time of the search.
    """

    experiment: str
    measured: Sequence[Measured]
    recommended: Measured | None
    nearest: Measured | None
    words: str
    wanted: Wanted
    metric: Mapping[str, Any]
    split: tuple[str, int]
    test: Mapping[str, Any] = field(default_factory=dict)
    sensitivity: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def table(self) -> str:
        """All networks as text, the cheapest first."""
        return table_text(self.measured, self.recommended, self.metric)

    def __repr__(self) -> str:
        kept = front(self.measured)[-_MOST_ROWS:]
        rows = table_text(kept, self.recommended, self.metric)
        words = self.words if len(self.words) < 400 else f"{self.words[:399]}…"
        return f"{rows}\n{words}"

    def _repr_html_(self) -> str:
        from accelnet.compressing.page import results_table

        return piece(results_table(self.to_dict()))

    def page(self) -> str:
        """Return all of it as an HTML page that needs nothing else."""
        from accelnet.compressing.page import compression_page

        return compression_page(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, of the schema that the README documents."""
        return plain_value({
            "experiment": self.experiment,
            "metric": self.metric,
            "split": self.split[0],
            "examples": self.split[1],
            "wanted": {"max_drop": self.wanted.max_drop, "latency": self.wanted.latency,
                       "batch_size": self.wanted.batch_size},
            "recommended": None if self.recommended is None else self.recommended.name,
            "nearest": None if self.nearest is None else self.nearest.name,
            "words": self.words,
            "test": self.test,
            "front": [one.name for one in front(self.measured)],
            "candidates": [one.to_dict() for one in self.measured],
            "sensitivity": list(self.sensitivity),
            "notes": self.notes,
            "seconds": self.seconds,
        })  # fmt: skip


def table_text(measured: Sequence[Measured], recommended: Measured | None, metric: Mapping[str, Any]) -> str:
    """Return networks as text, a line for each, the cheapest first.

    Args:
        measured: The networks.
        recommended: The recommended one, which is marked.
        metric: Metric that was compared.
    """
    import rich.table

    table = rich.table.Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    batches = [row["batch_size"] for row in measured[0].latency]
    heads = ["", "bytes", "parameters", "FLOPs", *(f"batch {size}" for size in batches)]
    for place, name in enumerate((*heads, metric["name"], "drop, 95 %", "at most")):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for one in sorted(measured, key=lambda one: one.share):
        mark = "→ " if one is recommended else "  "
        cost, latency = one.candidate.cost, [duration(row["p50"]) for row in one.latency]
        drop, told = one.drop, ("", "")
        if drop is not None:
            told = (drop_words(drop.to_dict(), metric), drop_number(drop.to_dict()["bound"], metric))
        counts = (size(one.bytes), short(cost.parameters), short(cost.flops))
        value = number(one.value) if math.isfinite(one.value) else "undefined"
        table.add_row(
            f"{mark}{one.name}",
            *counts,
            *latency,
            value,
            *told,
        )
    return rendered(table, 160, drop=("parameters", "FLOPs", "at most", *heads[4:]))


def drop_number(value: float | None, metric: Mapping[str, Any]) -> str:
    """Return a drop as people read it: of shares in points of a hundred, of others as a percentage of the original.

    Example:
        >>> drop_number(0.0049, {"is_share": True}), drop_number(None, {"is_share": True})
        ('0.49', 'unknown')
    """
    if value is None:
        return "unknown"
    return f"{100 * value:.2f}" if metric["is_share"] else f"{100 * value:.2f} %"


def drop_words(drop: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Return a drop with its interval."""
    if drop["value"] is None:
        return "undefined"
    told = drop_number(drop["value"], metric)
    if drop["low"] is None:
        return told
    return f"{told} ({drop_number(drop['low'], metric)} to {drop_number(drop['high'], metric)})"
