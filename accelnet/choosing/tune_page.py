"""What tuning shows: tune.png and report.html, the losses over each field."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from accelnet.choosing.rung import Rung
from accelnet.choosing.tune import Tuning
from accelnet.report.charts import ACROSS, chart, dots, log_axis, path, ranges
from accelnet.report.document import document
from accelnet.report.markup import Markup, figure, grid, legend, section, table, tag
from accelnet.report.numbers import duration, number, short
from accelnet.terminal import visible
from accelnet.training.curves import to_png
from accelnet.training.record import write_atomically


def write_page(tuning: Tuning, folder: Path) -> None:
    """Write report.html and tune.png.

    Raises:
        UserError: if they cannot be written.
    """
    write_atomically(folder / "report.html", page(tuning))
    write_atomically(folder / "tune.png", picture(tuning))


def curve(rung: Rung, name: str) -> list[tuple[float, float, float, float]]:
    """Return (number, mean, low, high) of one field; with two fields, of the best setting that has this number."""
    means, low, high = (rung.level(values) for values in (rung.contest.means, rung.contest.low, rung.contest.high))
    best: dict[float, int] = {}
    for index in sorted(range(len(means)), key=lambda index: -rung.contest.means[index]):
        if np.isfinite(means[index]):
            best[rung.settings[index][name]] = index
    # Where no setting has two seeds that did not diverge, an interval has no ends.
    low, high = (np.where(np.isfinite(rung.contest.high), ends, means) for ends in (low, high))
    return [(value, float(means[i]), float(low[i]), float(high[i])) for value, i in sorted(best.items())]


def _title(rung: Rung) -> str:
    counts = sorted({len(losses) for losses in rung.losses})
    return f"{rung.steps} steps, {' to '.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} seeds"


def page(tuning: Tuning) -> str:
    """Return the report as a page of its own."""
    names = {f"c{n}": _title(rung) for n, rung in enumerate(tuning.rungs)}
    charts = [
        figure(
            name,
            _chart(tuning, name),
            legend(names),
            caption="Means over the seeds, geometric ones of losses above 0, with their 95 % intervals. Strong "
            "lines: the basin's ends; dashed: the edge of divergence; the thick mark: what is recommended.",
        )
        for name in tuning.fields
    ]
    return document(
        f"Tuning {tuning.experiment}",
        [
            tag("h1", f"Tuning {tuning.experiment}"),
            tag("p", tuning.reason),
            grid(charts),
            *(section(names[f"c{n}"], _table(tuning, rung)) for n, rung in enumerate(tuning.rungs)),
            tag(
                "p",
                f"{sum(rung.num_members for rung in tuning.rungs)} members, whose steps make up "
                f"{tuning.cost:.3g} trainings of full length, in {duration(tuning.seconds)}.",
            ),
        ],
    )


def _chart(tuning: Tuning, name: str) -> Markup:
    curves = [curve(rung, name) for rung in tuning.rungs]
    numbers = [setting[name] for setting in tuning.rungs[0].settings]
    x = log_axis(name, numbers, short, ACROSS)
    y = log_axis(f"{tuning.split} {tuning.metric}", [mean for points in curves for _, mean, _, _ in points], number)
    shapes: list[Markup] = []
    for n, points in enumerate(curves):
        shapes += ranges(x, y, [(value, low, high) for value, _, low, high in points], f"c{n}")
        shapes.append(path(x, y, [(value, mean) for value, mean, _, _ in points], f"line c{n}"))
        shapes += dots(x, y, [(value, mean) for value, mean, _, _ in points], f"c{n}", 3.5)
    for value, kind in _marks(tuning, name):
        shapes.append(path(x, y, [(value, y.low), (value, y.high)], kind))
    words = f"{name} {tuning.recommended[name]:.3g} is recommended"
    return chart(f"{tuning.metric} over {name}", words, x, y, shapes)


def _marks(tuning: Tuning, name: str) -> Iterator[tuple[float, str]]:
    for end in tuning.basin[name]:
        yield end, "roof"
    edge = tuning.edge[name]
    if edge is not None:
        yield edge, "ideal"
    yield tuning.recommended[name], "mark"


def _table(tuning: Tuning, rung: Rung) -> Markup:
    low, high = (rung.level(v) for v in (rung.contest.low, rung.contest.high))
    rows = []
    for index, setting in enumerate(rung.settings):
        said = "diverged" if rung.diverged[index] else "may be the best" if rung.contest.contenders[index] else ""
        shown = [number(float(v[index])) if math.isfinite(v[index]) else "" for v in (rung.means, low, high)]
        rows.append([*(f"{setting[name]:.3g}" for name in tuning.fields), *shown, len(rung.losses[index]), said])
    head = [*tuning.fields, tuning.metric, "from", "to", "seeds", ""]
    of = " of the geometric mean" if rung.scale == "log" else ""
    return table(f"{tuning.split} {tuning.metric}: mean, and 95 % interval{of}", head, rows, words=(len(head) - 1,))


def picture(tuning: Tuning) -> bytes:
    """Return the plot as a PNG file."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4 * len(tuning.fields), 4.2), dpi=110, layout="constrained")
    for axes, name in zip(np.ravel(drawn.subplots(1, len(tuning.fields))), tuning.fields, strict=True):
        for rung, color in zip(tuning.rungs, ("#0072B2", "#E69F00"), strict=True):
            values, means, low, high = np.array(curve(rung, name)).T
            axes.plot(values, means, "o-", color=color, label=_title(rung))
            axes.fill_between(values, low, high, color=color, alpha=0.2, linewidth=0)
        axes.axvspan(*tuning.basin[name], color="#333333", alpha=0.08, label="basin")
        edge = tuning.edge[name]
        if edge is not None:
            axes.axvline(edge, color="#B00020", linestyle="--", label="edge of divergence")
        axes.axvline(tuning.recommended[name], color="#333333", label="recommended")
        axes.set_xscale("log")
        axes.set_yscale("log" if all(rung.scale == "log" for rung in tuning.rungs) else "linear")
        axes.set_xlabel(name, parse_math=False)
        axes.set_ylabel(visible(f"{tuning.split} {tuning.metric}"), parse_math=False)
        axes.legend(frameon=False, fontsize=8)
    drawn.suptitle(visible(tuning.experiment), parse_math=False)
    return to_png(drawn)
