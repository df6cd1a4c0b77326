"""Runs side by side as one HTML page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accelnet.report.charts import ACROSS, chart, linear_axis, path, value_axis
from accelnet.report.document import NUM_COLORS, document
from accelnet.report.markup import Markup, figure, grid, legend, noted, section, table, tag, verdict
from accelnet.report.numbers import duration, number, short, shown

# Splits, in the order in which they are shown.
SPLITS = ("test", "validation", "train")


def runs_page(values: Mapping[str, Any]) -> str:
    """Return runs side by side as a page to read, in light and dark, on a screen and on a phone.

    The values are those of `compare_runs`; what comes from the runs is escaped.
    """
    runs = values["runs"]
    names = [run["name"] for run in runs]
    whose = ", ".join(dict.fromkeys(run["experiment"] for run in runs))
    told = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {whose}."
    left_out = f" No runs are in {', '.join(values['left_out'])}." if values["left_out"] else ""
    metrics = list(dict.fromkeys(name for run in runs for name in run["curves"]))
    body = [
        tag("h1", "Runs side by side"),
        verdict(_verdict(values), told + left_out),
        section("Curves", *_curves(runs, metrics)),
        section("Results", *(_results(runs, split, values["winners"][split]) for split in SPLITS)),
        section("What differs", _differing(values["differing"], names)),
        section("Best on the way", _best(runs)),
        section("Time", _time(runs)),
    ]
    return document("Runs side by side", body)


def _verdict(values: Mapping[str, Any]) -> str:
    split = next((split for split in SPLITS if any(values["winners"][split].values())), None)
    if split is None:
        return "None of them can be called the best: they differ in data or objective, or have no metric in common."
    found = values["winners"][split].items()
    told = ", ".join(f"{name.replace('_', ' ')} {' and '.join(names)}" for name, names in found if names)
    return f"Best on the split {split}: {told}."


def _name(run: Mapping[str, Any]) -> str:
    return run["name"] if run["finished"] else noted(run["name"], "unfinished")


def _results(runs: Sequence[Mapping[str, Any]], split: str, winners: Mapping[str, Sequence[str]]) -> Markup:
    metrics = list(dict.fromkeys(name for run in runs for name in run["metrics"].get(split, ())))
    if not metrics:
        return Markup()

    def cell(run: Mapping[str, Any], name: str) -> str:
        values = run["metrics"].get(split, {})
        text = shown(values[name]) if name in values else ""
        return tag("span", f"✓ {text}", class_="good") if run["name"] in winners.get(name, ()) else text

    rows = [(_name(run), *(cell(run, name) for name in metrics)) for run in runs]
    caption = (
        f"Of the split {split}, after the last step; ✓ the best of runs with the same data and objective. Without "
        "repetitions, that is no proof."
    )
    return table(caption, ("run", *(name.replace("_", " ") for name in metrics)), rows)


def _differing(differing: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Markup:
    if not differing:
        return tag("p", "Their settings are the same.")

    def cell(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    rows = [(name, *(cell(values.get(name)) for values in differing.values())) for name in names]
    columns = range(1, 1 + len(differing))
    return table("Settings that are not the same everywhere.", ("run", *differing), rows, columns)


def _best(runs: Sequence[Mapping[str, Any]]) -> Markup:
    metrics = list(dict.fromkeys(name for run in runs for name, found in run["best"].items() if found))
    if not metrics:
        return Markup()

    def cell(found: Mapping[str, Any] | None) -> str:
        return "" if found is None else noted(number(found["value"]), f"step {found['step']:,}")

    rows = [(_name(run), *(cell(run["best"].get(name)) for name in metrics)) for run in runs]
    return table(
        "Of the validation split, of metrics that say which is better.",
        ("run", *(name.replace("_", " ") for name in metrics)),
        rows,
    )


def _curves(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Iterable[Markup]:
    for first in range(0, len(runs), NUM_COLORS):
        some = runs[first : first + NUM_COLORS]
        yield legend({f"c{place}": run["name"] for place, run in enumerate(some)})
        pictures = []
        for name in metrics:
            split = next(s for s in ("validation", "train") if any(s in run["curves"].get(name, {}) for run in runs))
            curves = [run["curves"].get(name, {}).get(split, []) for run in some]
            pictures.append(_picture(some, curves, f"{split} {name.replace('_', ' ')}", 0))
            if name == "loss":
                pictures.append(_picture(some, curves, f"{split} loss against time", 1))
        yield grid(picture for picture in pictures if picture)


def _picture(runs: Sequence[Mapping[str, Any]], curves: Sequence[Any], title: str, across: int) -> Markup:
    """Draw value against step (0) or seconds (1)."""
    every = [point for curve in curves for point in curve]
    if not every:
        return Markup()
    x = linear_axis(("step", "time")[across], [point[across] for point in every], (short, duration)[across], ACROSS)
    y = value_axis([point[2] for point in every])
    shapes = [
        path(x, y, [(point[across], point[2]) for point in curve], f"line c{place}")
        for place, curve in enumerate(curves)
        if curve
    ]
    words = "; ".join(
        f"{run['name']}: {number(curve[-1][2])} at the end" for run, curve in zip(runs, curves, strict=True) if curve
    )
    return figure(title[0].upper() + title[1:], chart(title, words, x, y, shapes))


def _time(runs: Sequence[Mapping[str, Any]]) -> Markup:
    rows = [
        (
            _name(run), f"{run['step']:,}", number(run["epochs"]),
            "" if run["parameters"] is None else f"{run['parameters']:,}",
            "" if run["seconds"] is None else duration(run["seconds"]),
            "" if run["examples_per_second"] is None else short(run["examples_per_second"]),
            ", ".join(dict.fromkeys(run["devices"] or ())),
        )
        for run in runs
    ]  # fmt: skip
    head = ("run", "steps", "epochs", "parameters", "time", "examples a second", "devices")
    return table("Of the whole run, compilation included.", head, rows, (6,))
