"""What tuning shows: tune.png and report.html, the losses over each field."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from accelnet.characters import visible
from accelnet.report.charts import ACROSS, chart, dots, log_axis, path, ranges
from accelnet.report.document import document
from accelnet.report.markup import Markup, figure, legend, section, sentences, table, tag, verdict
from accelnet.report.numbers import duration, number, short
from accelnet.training.curves import to_png

Values = Mapping[str, Any]


def curve(tuning: Values, stage: Values, name: str) -> list[tuple[float, float, float, float]]:
    """Return (number, center, low, high) of one field; with two fields, of the best setting that has this number."""
    best: dict[float, Values] = {}
    known = [setting for setting in stage["settings"] if setting["center"] is not None]
    for setting in sorted(known, key=lambda setting: setting["center"], reverse=tuning["lower_is_better"]):
        best[setting[name]] = setting
    return [(value, setting["center"], *_interval(setting)) for value, setting in sorted(best.items())]


def _interval(setting: Values) -> tuple[float, float]:
    """Return the ends of an interval; the center where no setting has two seeds that did not diverge."""
    low, high = setting["low"], setting["high"]
    return (setting["center"],) * 2 if None in (low, high) else (low, high)


def _title(stage: Values) -> str:
    counts = sorted({len(setting["seeds"]) for setting in stage["settings"]})
    return (
        f"{stage['steps']} steps, {' to '.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} seeds"
    )


def _of_field(tuning: Values, what: str, name: str) -> Any:
    """Return the basin or the edge of one field; with one field alone, the values are that field's."""
    return tuning[what] if len(tuning["fields"]) == 1 else tuning[what][name]


def page(tuning: Values) -> str:
    """Return the report as a page of its own, from the values of `Tuning.to_dict`."""
    names = {f"c{n}": _title(stage) for n, stage in enumerate(tuning["stages"])}
    charts = [
        figure(
            name,
            _chart(tuning, name),
            legend(names),
            caption="Means over the seeds, geometric ones of losses above 0, with their 95 % intervals. Strong "
            "lines: the basin's ends; dashed: the edge of divergence; the thick mark: what is recommended.",
        )
        for name in tuning["fields"]
    ]
    return document(
        f"Tuning {tuning['experiment']}",
        [
            tag("h1", f"Tuning {tuning['experiment']}"),
            verdict(*sentences(tuning["reason"])),
            section("What was tried", *charts, *(_table(tuning, stage) for stage in reversed(tuning["stages"]))),
            tag(
                "p",
                f"{tuning['members']} members, whose steps make up {tuning['trainings']:.3g} trainings of full length, "
                f"in {duration(tuning['seconds'])}.",
            ),
        ],
    )


def _chart(tuning: Values, name: str) -> Markup:
    metric, recommended = tuning["metric"], tuning["recommended"][name]
    curves = [curve(tuning, stage, name) for stage in tuning["stages"]]
    x = log_axis(name, [setting[name] for setting in tuning["stages"][0]["settings"]], short, ACROSS)
    y = log_axis(f"{tuning['split']} {metric}", [mean for points in curves for _, mean, _, _ in points], number)
    shapes: list[Markup] = []
    for n, points in enumerate(curves):
        shapes += ranges(x, y, [(value, low, high) for value, _, low, high in points], f"c{n}")
        shapes.append(path(x, y, [(value, mean) for value, mean, _, _ in points], f"line c{n}"))
        shapes += dots(x, y, [(value, mean) for value, mean, _, _ in points], f"c{n}", 3.5)
    for value, kind in _marks(tuning, name):
        shapes.append(path(x, y, [(value, y.low), (value, y.high)], kind))
    return chart(f"{metric} over {name}", f"{name} {recommended:.3g} is recommended", x, y, shapes)


def _marks(tuning: Values, name: str) -> Iterator[tuple[float, str]]:
    for end in _of_field(tuning, "basin", name):
        yield end, "roof"
    edge = _of_field(tuning, "edge", name)
    if edge is not None:
        yield edge, "ideal"
    yield tuning["recommended"][name], "mark"


def _table(tuning: Values, stage: Values) -> Markup:
    rows = []
    for setting in stage["settings"]:
        said = "diverged" if setting["diverged"] else "may be the best" if setting["contender"] else ""
        shown = ["" if setting[part] is None else number(setting[part]) for part in ("mean", "low", "high")]
        rows.append([*(f"{setting[name]:.3g}" for name in tuning["fields"]), *shown, len(setting["seeds"]), said])
    head = [*tuning["fields"], tuning["metric"], "from", "to", "seeds", ""]
    of = " of the geometric mean" if stage["scale"] == "log" else ""
    caption = f"{_title(stage)}: mean {tuning['split']} {tuning['metric']}, and 95 % interval{of}"
    return table(caption, head, rows, words=(len(head) - 1,))


def picture(tuning: Values) -> bytes:
    """Return the plot as a PNG file, from the values of `Tuning.to_dict`."""
    from matplotlib.figure import Figure

    fields, stages = tuning["fields"], tuning["stages"]
    drawn = Figure(figsize=(6.4 * len(fields), 4.2), dpi=110, layout="constrained")
    for axes, name in zip(np.ravel(drawn.subplots(1, len(fields))), fields, strict=True):
        for stage, color in zip(stages, ("#0072B2", "#E69F00"), strict=True):
            values, means, low, high = np.array(curve(tuning, stage, name)).T
            axes.plot(values, means, "o-", color=color, label=_title(stage))
            axes.fill_between(values, low, high, color=color, alpha=0.2, linewidth=0)
        axes.axvspan(*_of_field(tuning, "basin", name), color="#333333", alpha=0.08, label="basin")
        edge = _of_field(tuning, "edge", name)
        if edge is not None:
            axes.axvline(edge, color="#B00020", linestyle="--", label="edge of divergence")
        axes.axvline(tuning["recommended"][name], color="#333333", label="recommended")
        axes.set_xscale("log")
        axes.set_yscale("log" if all(stage["scale"] == "log" for stage in stages) else "linear")
        axes.set_xlabel(name, parse_math=False)
        axes.set_ylabel(visible(f"{tuning['split']} {tuning['metric']}"), parse_math=False)
        axes.legend(frameon=False, fontsize=8)
    drawn.suptitle(visible(tuning["experiment"]), parse_math=False)
    return to_png(drawn)
