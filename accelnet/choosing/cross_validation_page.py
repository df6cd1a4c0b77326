"""A cross-validation as one HTML page."""

from collections.abc import Mapping
from typing import Any

from accelnet.report.charts import ACROSS, chart, dots, linear_axis, path, ranges
from accelnet.report.document import document
from accelnet.report.markup import Markup, figure, grid, section, table, tag, verdict
from accelnet.report.numbers import duration, number, short, shown

Values = Mapping[str, Any]  # of JSON


def cross_validation_page(values: Values) -> str:
    """Return a cross-validation as a page to read, in light and dark, on a screen and on a phone.

    Args:
        values: JSON values, as of `CrossValidation.to_dict`.

    Returns:
        A whole HTML document; what comes from names is escaped.
    """
    folds, metrics = values["folds"], values["metrics"]
    names = [name for name in metrics if name != "loss"] or list(metrics)
    first = metrics[names[0]]
    told = (
        f"Each of {len(folds)} trainings left a fold of the rows out, and was evaluated on it. Intervals are those of "
        "Nadeau and Bengio, since folds share most of their training rows."
    )
    mean = f"{_words(names[0])} {shown(first['mean'])}{_within(first)} on rows that training did not see."
    body = [
        tag("h1", f"Cross-validation of {values['experiment']}"),
        verdict(mean[0].upper() + mean[1:], told),
        section("Folds", grid(_picture(values, name) for name in metrics), _table(values)),
    ]
    return document(f"Cross-validation of {values['experiment']}", body)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _within(found: Values) -> str:
    return "" if found["low"] is None else f" ({number(found['low'])} to {number(found['high'])})"


def _picture(values: Values, name: str) -> Markup:
    """Draw each fold's value, and the mean with its interval behind them."""
    found = [fold["metrics"]["validation"][name] for fold in values["folds"]]
    points = [(float(place), value) for place, value in enumerate(found, 1) if value is not None]
    if not points:
        return Markup()
    one, behind = values["metrics"][name], len(found) + 1.0
    ends = [value for value in (one["low"], one["high"]) if value is not None]
    x = linear_axis("fold, and the mean", [0.5, behind + 0.5], lambda at: _fold(at, len(found)), ACROSS)
    y = linear_axis("", [value for _, value in points] + ends, short)
    shapes = dots(x, y, points, "c0", 4.0)
    if ends:
        shapes += [path(x, y, [(x.low, one["mean"]), (x.high, one["mean"])], "ideal")]
        shapes += ranges(x, y, [(behind, *ends)], "c1") + dots(x, y, [(behind, one["mean"])], "c1", 5.0)
    words = "; ".join(f"fold {place:.0f}: {number(value)}" for place, value in points)
    caption = "The mean has its 95 % interval."
    title = _words(name)
    return figure(title[0].upper() + title[1:], chart(title, words, x, y, shapes), caption=caption)


def _fold(at: float, count: int) -> str:
    whole = abs(at - round(at)) < 1e-9
    return f"{at:.0f}" if whole and 1 <= at <= count else "mean" if whole and at == count + 1 else ""


def _table(values: Values) -> Markup:
    metrics = values["metrics"]
    rows = [
        (
            str(place), f"{fold['train_rows']:,}", f"{fold['validation_rows']:,}", duration(fold["seconds"]),
            *(shown(fold["metrics"]["validation"][name]) for name in metrics),
        )
        for place, fold in enumerate(values["folds"], 1)
    ]  # fmt: skip
    rows.append(("mean", "", "", "", *(shown(one["mean"]) for one in metrics.values())))
    rows.append(("standard error", "", "", "", *(shown(one["error"]) for one in metrics.values())))
    rows.append(("95 %", "", "", "", *(_within(one).strip(" ()") for one in metrics.values())))
    head = ("fold", "training rows", "left out", "time", *map(_words, metrics))
    return table("Metrics of the rows that were left out.", head, rows)
