"""Hardware side by side as one HTML page."""

from collections.abc import Mapping
from typing import Any

from accelnet.choosing.accelerator import limits_in_words
from accelnet.report.charts import ACROSS, chart, dots, log_axis, path
from accelnet.report.document import document
from accelnet.report.markup import Markup, figure, legend, noted, section, table, tag
from accelnet.report.numbers import duration, number, short, size


def accelerator_page(values: Mapping[str, Any]) -> str:
    """Return hardware side by side as a page to read, in light and dark, on a screen and on a phone.

    Args:
        values: as of `choose_accelerator`, and accelerator.json.

    Returns:
        A whole HTML document.

    Source: original.
    """
    told = (
        f"{values['steps']:,} steps of {values['batch_size']:,} examples{limits_in_words(values)}. This machine was "
        "measured; all else is predicted, and never checked against a run there."
    )
    reason = tag("p", f"To rent: {values['choice']['reason']}.") if values["choice"] else Markup()
    body = [
        tag("h1", f"{values['experiment']}: on which accelerator"),
        tag("p", told),
        section("Hardware", reason, _table(values)),
        section("Time and cost", _chart(values)),
    ]
    return document(f"Accelerators for {values['experiment']}", body)


def _table(values: Mapping[str, Any]) -> Markup:
    rows = []
    for row in values["rows"]:
        fits = tag("span", "✓ fits", class_="good") if row["fits"] else tag("span", "✗ does not fit", class_="bad")
        within = (
            "" if values["budget_usd"] is None and values["deadline_hours"] is None else "✓" if row["within"] else "no"
        )
        rows.append((
            noted(row["name"], row["title"]),
            fits,
            "" if row["memory_bytes"] is None else size(row["memory_bytes"]),
            "" if row["step_seconds"] is None else noted(duration(row["step_seconds"]), row["how"]),
            "" if row["run_seconds"] is None else noted(duration(row["run_seconds"]), row["how"]),
            "" if row["usd"] is None else noted(number(row["usd"]), "list price"),
            within,
            tag("span", row["assumption"] or row["reason"][:300], class_="long"),
        ))  # fmt: skip
    head = ("hardware", "fits", "memory of a device", "step", "run", "USD", "within the limits", "assumption")
    return table("Fastest first. Times are typical ones; checkpoints are not counted.", head, rows, (1, 6, 7))


def _chart(values: Mapping[str, Any]) -> Markup:
    priced = [row for row in values["rows"] if row["fits"] and row["usd"] and row["run_seconds"]]
    if not priced:
        return Markup()
    x = log_axis("USD", [row["usd"] for row in priced], short, ACROSS)
    y = log_axis("run", [row["run_seconds"] for row in priced], duration)
    shapes = []
    if values["budget_usd"] is not None and x.low < values["budget_usd"] < x.high:
        shapes.append(path(x, y, [(values["budget_usd"], y.low), (values["budget_usd"], y.high)], "ideal"))
    if values["deadline_hours"] is not None and y.low < 3600 * values["deadline_hours"] < y.high:
        shapes.append(path(x, y, [(end, 3600 * values["deadline_hours"]) for end in (x.low, x.high)], "ideal"))
    for row in priced:
        shapes += dots(x, y, [(row["usd"], row["run_seconds"])], "c0" if row["within"] else "c7", 4.0)
        place = {"x": x.at(row["usd"]), "y": y.at(row["run_seconds"]) - 7}
        shapes.append(tag("text", row["name"], text_anchor="middle", class_="name", **place))
    words = "; ".join(f"{row['name']}: {number(row['usd'])} USD, {duration(row['run_seconds'])}" for row in priced)
    names = legend({"c0": "within the limits", "c7": "beyond them"})
    caption = "Left and low is better. Dashed lines are the limits."
    return figure("", names, chart("Time against cost", words, x, y, shapes), caption=caption)
