"""An assessment as one HTML page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accelnet.report.charts import ACROSS, UP, Axis, chart, dots, histogram, linear_axis, lines, matrix, path, ranges
from accelnet.report.document import document
from accelnet.report.markup import Markup, figure, grid, joined, section, table, tag
from accelnet.report.numbers import duration, number, percent, short, shown

_KINDS = {
    "classes": "one class of several", "labels": "answers yes or no", "tokens": "the next of many symbols",
    "numbers": "numbers", "other": "outputs of the experiment's own form",
}  # fmt: skip


def assessment_page(values: Mapping[str, Any]) -> str:
    """Return an assessment as a page to read, in light and dark, on a screen and on a phone.

    Args:
        values: what `Assessment.values` has, and evaluate.json holds.

    Returns:
        A whole HTML document; what comes from data and settings is escaped.
    """
    whose = f"{values['experiment']}, step {values['step']:,}"
    told = (
        f"{values['examples']:,} examples of the split {values['split']}; the model predicts {_KINDS[values['kind']]}. "
        "Intervals hold the value for other examples of the same kind in 95 of 100 cases (Wilson's of shares, a "
        "bootstrap over the examples of the rest). "
        + ("Examples count by their weights." if values["weighted"] else "Each example counts once.")
    )
    if not values["described"]:
        told += " Its outputs and targets have a form of their own, so that there are metrics alone."
    body = [
        tag("h1", values["experiment"]),
        tag("p", f"Step {values['step']:,}: how good it is, and how sure that is. {told}"),
        section("Metrics", _metrics(values["metrics"]), _exact(values["exact"])),
        section("Classes", *_classes(values)),
        section("Which for which", *_confusion(values)),
        section("Calibration", *_calibration(values)),
        section("Thresholds", *_curves(values.get("curves"))),
        section("Residuals", *_residuals(values.get("residuals", ()), values.get("outputs", ()))),
        section("Text", *_text(values)),
        section("Slices", *(_slices(name, parts) for name, parts in values["slices"].items())),
        section("Predicted worst", *_worst(values["worst"])),
        section("Latency", *_latency(values.get("latency", ()))),
    ]
    return document(f"Evaluation of {whose}", body)


def interval(found: Mapping[str, Any]) -> str:
    """Return an interval in words, empty where there is none."""
    if found["low"] is None or found["high"] is None:
        return ""
    return f"{number(found['low'])} to {number(found['high'])}"


def _words(name: str) -> str:
    return {"r2": "R²", "roc_auc": "area under the ROC curve"}.get(name, name.replace("_", " "))


def _metrics(metrics: Mapping[str, Any]) -> Markup:
    rows = [(_words(name), shown(found["value"]), interval(found)) for name, found in metrics.items()]
    lacking = any(found["low"] is None and found["value"] is not None for found in metrics.values())
    note = " Of so few examples there are no intervals." if lacking else ""
    return table(f"Of this split.{note}", ("metric", "value", "95 % interval"), rows)


def _exact(splits: Mapping[str, Mapping[str, float]]) -> Markup:
    names = [name for name in splits if splits[name]]
    metrics = dict.fromkeys(metric for name in names for metric in splits[name])
    rows = [(_words(metric), *(_of_split(splits[name], metric) for name in names)) for metric in metrics]
    return table("Of every split, as training reports them.", ("metric", *names), rows)


def _of_split(metrics: Mapping[str, float | None], name: str) -> str:
    return shown(metrics[name]) if name in metrics else ""


def _classes(values: Mapping[str, Any]) -> Iterable[Markup]:
    classes = values.get("classes")
    if not classes:
        return
    metrics = [name for name in classes[0] if name not in ("name", "support")]
    rows = []
    for place, one in enumerate(classes):
        cells = (
            joined(shown(one[metric]["value"]), tag("small", interval(one[metric]).replace(" to ", "–")))
            for metric in metrics
        )
        name = one["name"] if one["name"] == str(place) else f"{place} {one['name']}"
        rows.append((name, f"{one['support']:,.7g}", *cells))
    yield table("Values with their 95 % intervals.", ("class", "examples", *map(_words, metrics)), rows)


def _confusion(values: Mapping[str, Any]) -> Iterable[Markup]:
    if not values.get("classes") or "confused" not in values:
        return
    counts, pairs = values["confusion"], values["confused"]
    if counts is not None:
        names = [one["name"] for one in values["classes"]]
        names = names if max(map(len, names)) <= 3 else [str(place) for place in range(len(names))]
        right, whole = sum(row[place] for place, row in enumerate(counts)), sum(map(sum, counts))
        words = f"{right:,.7g} of {whole:,.7g} on the diagonal"
        caption = (
            "Examples of a row's class that were predicted as a column's. Shades are square roots of shares of the row."
        )
        yield figure("Confusion matrix", matrix("Confusion matrix", words, counts, names), caption=caption)
    if pairs:
        rows = [(p["true"], p["predicted"], f"{p['count']:,.7g}", percent(p["share"])) for p in pairs[:12]]
        yield table("The commonest mistakes.", ("true", "predicted", "examples", "of that class"), rows, (1,))


def _share(name: str, side: tuple[float, float]) -> Axis:
    return Axis(name, 0.0, 1.0, lambda value: f"{value:.1f}", 0, *side)


def _calibration(values: Mapping[str, Any]) -> Iterable[Markup]:
    bins = values.get("calibration")
    if not bins:
        return
    x, y = _share("confidence", ACROSS), _share("right", UP)
    places = [(one["confidence"], one["accuracy"]["value"]) for one in bins]
    spans = [
        (one["confidence"], one["accuracy"]["low"], one["accuracy"]["high"])
        for one in bins
        if one["accuracy"]["low"] is not None
    ]
    shapes = [
        path(x, y, [(0.0, 0.0), (1.0, 1.0)], "ideal"), *ranges(x, y, spans, "c0"), *dots(x, y, places, "c0", 4.0)
    ]  # fmt: skip
    words = "; ".join(f"at {a:.2f}, {b:.2f} are right" for a, b in places)
    error = values["metrics"]["calibration_error"]
    within = f", {interval(error)} when corrected for the upward bias of the bins" if error["low"] is not None else ""
    caption = (
        f"Of predictions that sure, so many are right; the dashed line is perfect. Expected calibration error "
        f"{number(error['value'])}{within}."
    )
    shares = [(one["confidence"], one["share"]) for one in bins]
    z = Axis("", 0.0, max(share for _, share in shares), lambda value: f"{100 * value:.0f} %", 0, *UP)
    yield grid([
        figure("Reliability", chart("Reliability", words, x, y, shapes), caption=caption),
        figure("", lines("Share of the predictions", x, z, [("c1", "share", shares)]),
               caption="How many predictions are that sure."),
    ])  # fmt: skip


def _curves(curves: Mapping[str, Any] | None) -> Iterable[Markup]:
    if curves is None:
        return
    made = []
    for key, title, across, up in (
        ("roc", "ROC curve", "false alarms", "found"),
        ("precision_recall", "Precision and recall", "recall", "precision"),
    ):
        x, y = _share(across, ACROSS), _share(up, UP)
        ideal = [path(x, y, [(0.0, 0.0), (1.0, 1.0)], "ideal")] if key == "roc" else []
        shapes = [*ideal, path(x, y, curves[key], "line c0")]
        words = f"{up} against {across} for every threshold"
        made.append(figure(title, chart(title, words, x, y, shapes)))
    yield grid(made)


def _residuals(residuals: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> Iterable[Markup]:
    for place, one in enumerate(residuals):
        title = f"Output {place}" if len(residuals) > 1 else ""
        x = linear_axis("predicted", [a for a, _ in one["points"]], short, ACROSS)
        y = linear_axis("target less predicted", [b for _, b in one["points"]], short)
        shapes = [*dots(x, y, one["points"], "c0"), path(x, y, [(x.low, 0.0), (x.high, 0.0)], "ideal")]
        words = f"{len(one['points']):,} examples"
        quantiles = "; ".join(f"{q} %: {short(value)}" for q, value in one["quantiles"].items())
        pictures = [
            tag("div", tag("h4", "Some examples"), chart("Residuals against predictions", words, x, y, shapes)),
            histogram("All examples", "target less predicted", **one["histogram"]),
        ]
        caption = f"Below which so many residuals lie: {quantiles}."
        yield figure(title, tag("div", *pictures, class_="grid"), caption=caption)
    if outputs:
        metrics = list(outputs[0])
        rows = [(str(place), *(shown(one[m]["value"]) for m in metrics)) for place, one in enumerate(outputs)]
        yield table("Of each output.", ("output", *map(_words, metrics)), rows)


def _text(values: Mapping[str, Any]) -> Iterable[Markup]:
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


def _slices(name: str, parts: Sequence[Mapping[str, Any]]) -> Markup:
    metrics = list(parts[0]["metrics"]) if parts else []
    rows = [
        (
            part["value"], f"{part['examples']:,}",
            *(
                joined(shown(found["value"]), tag("small", interval(found).replace(" to ", "–")))
                for found in part["metrics"].values()
            ),
        )
        for part in parts
    ]  # fmt: skip
    return table(f"By {name}, with 95 % intervals.", (name, "examples", *map(_words, metrics)), rows)


def _worst(worst: Sequence[Mapping[str, Any]]) -> Iterable[Markup]:
    pictured = [one for one in worst if "picture" in one]
    if pictured:
        cards = (
            tag(
                "figure", tag("img", src=one["picture"], alt=f"row {one['row']}"),
                tag("b", one.get("target", "")), tag("div", f"as {one.get('predicted', '')}"),
                tag("small", f"loss {number(one['loss'])}, row {one['row']:,}"),
            )
            for one in pictured
        )  # fmt: skip
        yield tag("p", "The largest losses. In bold what it is, and how sure of that the model was; below, its answer.")
        yield tag("div", *cards, class_="pictures")
        return
    texts = [one for one in worst if "text" in one]
    if texts:
        for one in texts[:5]:
            yield figure(f"Row {one['row']:,}, loss {number(one['loss'])}", tag("pre", one["text"]))
        return
    inputs = list(worst[0].get("inputs", ())) if worst else []
    answers = [name for name in ("target", "predicted") if worst and name in worst[0]]
    rows = [
        (f"{one['row']:,}", number(one["loss"]), *(one[name] for name in answers),
         *(number(one["inputs"][name]) for name in inputs))
        for one in worst
    ]  # fmt: skip
    yield table("The largest losses.", ("row", "loss", *answers, *inputs), rows)


def _latency(timed: Sequence[Mapping[str, Any]]) -> Iterable[Markup]:
    if not timed:
        return
    rows = [
        (f"{one['batch_size']:,}", *(duration(one[p]) for p in ("p50", "p90", "p99")),
         short(one["examples_per_second"]), f"{one['calls']:,}")
        for one in timed
    ]  # fmt: skip
    caption = "Measured here, one call after the other, from arrays on the host to outputs on the host."
    yield table(caption, ("batch", "median", "90 %", "99 %", "examples a second", "calls"), rows)
