"""An assessment as one HTML page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accelnet.report.charts import ACROSS, UP, Axis, chart, dots, histogram, linear_axis, lines, matrix, path, ranges
from accelnet.report.document import document
from accelnet.report.examples import shown_example, value_words
from accelnet.report.markup import Markup, figure, grid, noted, section, table, tag, verdict
from accelnet.report.numbers import duration, interval, number, percent, short, shown

Values = Mapping[str, Any]  # of JSON

_KINDS = {
    "classes": "one class of several", "labels": "answers yes or no", "tokens": "the next of many symbols",
    "numbers": "numbers", "other": "outputs of the experiment's own form",
}  # fmt: skip


def assessment_page(values: Values) -> str:
    """Return an assessment as a page to read, in light and dark, on a screen and on a phone.

    Args:
        values: JSON values, as in evaluate.json.

    Returns:
        A whole HTML document; what comes from data and settings is escaped.
    """
    parts: dict[str, Callable[[Values], Iterable[Markup]]] = {
        "Confusion": _confusion, "Residuals": _residuals, "Text": _text, "Metrics": _metrics,
        "Calibration": _calibration, "Thresholds": _curves, "Classes": _classes, "Slices": _slices,
        "Largest losses": _worst, "Latency": _latency,
    }  # fmt: skip
    told = (
        f"Step {values['step']:,}, {values['examples']:,} examples of the split {values['split']}; the model predicts "
        f"{_KINDS[values['kind']]}. 95 % intervals hold the value for other examples of the same kind in 95 of 100 "
        "cases (shares by Wilson's formula, other metrics by a bootstrap over the examples). "
        + ("Examples count by their weights." if values["weighted"] else "Each example counts once.")
    )
    if not values["described"]:
        told += " Outputs and targets have a form of their own, so there are metrics alone."
    body = [section(title, *part(values)) for title, part in parts.items()]
    whose = f"{values['experiment']}, step {values['step']:,}"
    return document(f"Evaluation of {whose}", [tag("h1", values["experiment"]), verdict(_verdict(values), told), *body])


def _verdict(values: Values) -> str:
    name = next((name for name in values["metrics"] if name != "loss"), "loss")
    found, pairs = values["metrics"][name], values.get("confused")
    within = f" ({interval(found)})" if interval(found) else ""
    told = (
        f"{_words(name)[0].upper()}{_words(name)[1:]} {shown(found['value'])}{within} on the split {values['split']}."
    )
    if pairs:
        first = pairs[0]
        told += (
            f" The commonest mistake: {percent(first['share'])} of {first['true']} are taken for {first['predicted']}."
        )
    return told


def _words(name: str) -> str:
    return {"r2": "R²", "roc_auc": "area under the ROC curve"}.get(name, name.replace("_", " "))


def _estimates(
    caption: str, head: Sequence[str], rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]]
) -> Iterable[Markup]:
    """Make a table whose rows end with metrics and their intervals; nothing without rows."""
    if rows:
        names = list(rows[0][1])
        cells = [(*first, *(_with_interval(metrics[name]) for name in names)) for first, metrics in rows]
        yield table(caption, (*head, *map(_words, names)), cells)


def _with_interval(found: Values) -> Markup:
    return noted(shown(found["value"]), interval(found).replace(" to ", "–"))


def _metrics(values: Values) -> Iterable[Markup]:
    metrics, splits = values["metrics"], {name: found for name, found in values["exact"].items() if found}
    rows = [(_words(name), shown(found["value"]), interval(found)) for name, found in metrics.items()]
    lacking = any(found["low"] is None and found["value"] is not None for found in metrics.values())
    note = " There are too few examples for intervals." if lacking else ""
    yield table(f"Metrics of this split.{note}", ("metric", "value", "95 % interval"), rows)
    names = dict.fromkeys(name for found in splits.values() for name in found)
    rows = [
        (_words(name), *(shown(found[name]) if name in found else "" for found in splits.values())) for name in names
    ]
    yield table("Metrics of every split, as training reports them.", ("metric", *splits), rows)


def _classes(values: Values) -> Iterable[Markup]:
    rows = []
    for one in values.get("classes", ()):
        metrics = {key: value for key, value in one.items() if key not in ("name", "support")}
        rows.append(((one["name"], f"{one['support']:,.7g}"), metrics))
    yield from _estimates("Values with their 95 % intervals.", ("class", "examples"), rows)


def _confusion(values: Values) -> Iterable[Markup]:
    counts, pairs = values.get("confusion"), values.get("confused")
    if counts is not None:
        names = [one["name"] for one in values["classes"]]
        right, whole = sum(row[place] for place, row in enumerate(counts)), sum(map(sum, counts))
        words = f"{right:,.7g} of {whole:,.7g} on the diagonal"
        caption = (
            "Examples of a row's class that were predicted as a column's. Shades are square roots of shares of the row."
        )
        yield figure("Confusion matrix", matrix("Confusion matrix", words, counts, names), caption=caption)
    if pairs:
        rows = [(p["true"], p["predicted"], f"{p['count']:,.7g}", percent(p["share"])) for p in pairs[:12]]
        yield table("The commonest mistakes.", ("true", "predicted", "examples", "share of the class"), rows, (1,))


def _share(name: str, side: tuple[float, float]) -> Axis:
    return Axis(name, 0.0, 1.0, lambda value: f"{value:.1f}", 0, *side)


def _diagonal(x: Axis, y: Axis) -> Markup:
    return path(x, y, [(0.0, 0.0), (1.0, 1.0)], "ideal")


def _calibration(values: Values) -> Iterable[Markup]:
    bins = values.get("calibration")
    if not bins:
        return
    x, y = _share("confidence", ACROSS), _share("right", UP)
    found = [(one["confidence"], one["accuracy"]) for one in bins]
    places = [(at, accuracy["value"]) for at, accuracy in found]
    spans = [(at, accuracy["low"], accuracy["high"]) for at, accuracy in found if accuracy["low"] is not None]
    shapes = [_diagonal(x, y), *ranges(x, y, spans, "c0"), *dots(x, y, places, "c0", 4.0)]
    words = "; ".join(f"at {a:.2f}, {b:.2f} are right" for a, b in places)
    error = values["metrics"]["calibration_error"]
    within = f", {interval(error)} when corrected for the upward bias of the bins" if error["low"] is not None else ""
    caption = (
        "The share of right predictions against their confidence; on the dashed line both are equal. Expected "
        f"calibration error {number(error['value'])}{within}."
    )
    shares = [(one["confidence"], one["share"]) for one in bins]
    z = Axis("", 0.0, max(share for _, share in shares), lambda value: f"{100 * value:.0f} %", 0, *UP)
    spread = lines("Share of the predictions", x, z, [("c1", "share", shares)])
    yield grid([
        figure("Reliability", chart("Reliability", words, x, y, shapes), caption=caption),
        figure("", spread, caption="The share of the predictions that have this confidence."),
    ])  # fmt: skip


def _curves(values: Values) -> Iterable[Markup]:
    made = []
    for key, title, across, up in (
        ("roc", "ROC curve", "false positive rate", "recall"),
        ("precision_recall", "Precision and recall", "recall", "precision"),
    ):
        if "curves" in values:
            x, y = _share(across, ACROSS), _share(up, UP)
            curve = path(x, y, values["curves"][key], "line c0")
            shapes = [_diagonal(x, y), curve] if key == "roc" else [curve]
            made.append(figure(title, chart(title, f"{up} against {across} for every threshold", x, y, shapes)))
    yield grid(made)


def _residuals(values: Values) -> Iterable[Markup]:
    residuals = values.get("residuals", ())
    for place, one in enumerate(residuals):
        title = f"Output {place}" if len(residuals) > 1 else ""
        x = linear_axis("predicted", [a for a, _ in one["points"]], short, ACROSS)
        y = linear_axis("target minus predicted", [b for _, b in one["points"]], short)
        shapes = [*dots(x, y, one["points"], "c0"), path(x, y, [(x.low, 0.0), (x.high, 0.0)], "ideal")]
        words = f"{len(one['points']):,} examples"
        quantiles = "; ".join(f"{q} %: {short(value)}" for q, value in one["quantiles"].items())
        pictures = [
            tag("div", tag("h4", "Some examples"), chart("Residuals against predictions", words, x, y, shapes)),
            histogram("All examples", "target minus predicted", **one["histogram"]),
        ]
        yield figure(title, grid(pictures), caption=f"Quantiles of the residuals: {quantiles}.")
    outputs = [((str(place),), one) for place, one in enumerate(values.get("outputs", ()))]
    yield from _estimates("Metrics of each output, with 95 % intervals.", ("output",), outputs)


def _text(values: Values) -> Iterable[Markup]:
    bits = values.get("bits_by_position")
    if bits:
        points = [(float(position), value) for position, value in enumerate(bits, 1) if value is not None]
        x = linear_axis("position in the window", [a for a, _ in points], lambda value: f"{value:.0f}", ACROSS)
        y = linear_axis("", [b for _, b in points], short)
        caption = "The mean loss of a symbol, by how many symbols of the window the model has seen."
        yield figure("", lines("Bits per symbol", x, y, [("c0", "bits", points)]), caption=caption)
    for sample in values.get("samples", ()):
        text = tag("pre", sample["beginning"], tag("mark", "▮" + sample["text"]))
        yield figure(f"Drawn at temperature {sample['temperature']:g}", text, caption="Behind the mark by the model.")


def _slices(values: Values) -> Iterable[Markup]:
    for name, parts in values["slices"].items():
        rows = [((part["value"], f"{part['examples']:,}"), part["metrics"]) for part in parts]
        yield from _estimates(f"By {name}, with 95 % intervals.", (name, "examples"), rows)


def _worst(values: Values) -> Iterable[Markup]:
    worst = values["worst"]
    pictured = [one for one in worst if "picture" in one]
    drawn = [one for one in worst if "text" in one or "series" in one]
    if pictured:
        cards = (
            tag(
                "figure", shown_example(one),
                tag("b", one.get("target", "")), tag("div", f"as {one.get('predicted', '')}"),
                tag("small", f"loss {number(one['loss'])}, row {one['row']:,}"),
            )
            for one in pictured
        )  # fmt: skip
        yield tag("p", "In bold the target and its predicted probability; below, the prediction.")
        yield tag("div", *cards, class_="pictures")
    elif drawn:
        for one in drawn[:5]:
            answers = f"{one['target']} as {one['predicted']}" if "predicted" in one else ""
            yield figure(f"Row {one['row']:,}, loss {number(one['loss'])}", shown_example(one), caption=answers)
    else:
        inputs = list(worst[0].get("inputs", ())) if worst else []
        answers = [name for name in ("target", "predicted") if worst and name in worst[0]]
        rows = [
            (f"{one['row']:,}", number(one["loss"]), *(one[name] for name in answers),
             *(value_words(one["inputs"][name]) for name in inputs))
            for one in worst
        ]  # fmt: skip
        yield table("The largest losses.", ("row", "loss", *answers, *inputs), rows)


def _latency(values: Values) -> Iterable[Markup]:
    rows = [
        (f"{one['batch_size']:,}", *(duration(one[p]) for p in ("p50", "p90", "p99")),
         short(one["examples_per_second"]), f"{one['calls']:,}")
        for one in values.get("latency", ())
    ]  # fmt: skip
    if rows:
        caption = "Measured on this machine, one call after the other, from arrays on the host to outputs on the host."
        yield table(caption, ("batch", "median", "90 %", "99 %", "examples a second", "calls"), rows)
