"""A description of a data set as one HTML page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from accelnet.data.glance.outline import field_words
from accelnet.data.look.text import partly_read
from accelnet.report.charts import bar, histogram
from accelnet.report.document import document
from accelnet.report.examples import example_table, shown_example
from accelnet.report.markup import Markup, figure, grid, section, table, tag, verdict
from accelnet.report.numbers import number, percent
from accelnet.wording import size

Values = Mapping[str, Any]  # of JSON
_MOST_BARS = 40
_MOST_FEATURES = 100


def description_page(values: Values) -> str:
    """Return a description as a page to read, in light and dark, on a screen and on a phone.

    Args:
        values: JSON values, as of `Description`.

    Returns:
        A whole HTML document; what comes from data is escaped.
    """
    splits = ", ".join(f"{rows:,} of {split}" for split, rows in values["splits"].items())
    total = sum(field["bytes"] for field in values["fields"])
    told = f"{values['rows']:,} rows ({splits}), {size(total)}."
    if read := partly_read(values):
        told += f" {read} were read for this page; the rest may hold more of what is listed here."
    parts = {
        "Findings": _findings(values), "Examples": _examples(values), "Classes": _classes(values),
        "Symbols": _symbols(values), "Inputs": _numbers(values, "inputs"), "Targets": _numbers(values, "targets"),
        "Arrays": _arrays(values),
    }  # fmt: skip
    body = [section(title, *part) for title, part in parts.items()]
    return document(f"Data {values['name']}", [tag("h1", values["name"]), verdict(_verdict(values), told), *body])


def _verdict(values: Values) -> str:
    found = [f"{one['name']} ({one['count']:,})" for one in values["findings"]]
    return f"To look at: {', '.join(found)}." if found else "Nothing was found that may be wrong."


def _findings(values: Values) -> Iterable[Markup]:
    yield grid(
        figure(f"{one['name']}: {one['count']:,}", tag("p", one["text"]), caption=f"What to do: {one['advice']}.")
        for one in values["findings"]
    )


def _arrays(values: Values) -> Iterable[Markup]:
    rows = [(one["name"], field_words(one)) for one in values["fields"]]
    rows += [("fitted to the training rows", "; ".join(values["fitted"]))] if values["fitted"] else []
    rows += [("augmentation of training rows", values["augment"])] if values["augment"] else []
    yield table("N stands for the rows.", ("", "what it is"), rows, (1,))


def _classes(values: Values) -> Iterable[Markup]:
    if values["classes"] is None:
        return
    names, counts = values["classes"]["names"], values["classes"]["counts"]
    chosen, half = range(len(names)), _MOST_BARS // 2
    note = ""
    if len(names) > _MOST_BARS:
        order = np.argsort(-np.array(next(iter(counts.values()))), kind="stable").tolist()
        chosen = order[:half] + order[-half:]
        note = f"The {half} commonest and the {half} rarest of {len(names):,}."
    yield grid(
        figure(f"{split}, {sum(of_split):,} rows", *_bars([(names[i], of_split[i]) for i in chosen], sum(of_split)),
               caption=note)
        for split, of_split in counts.items()
    )  # fmt: skip


def _symbols(values: Values) -> Iterable[Markup]:
    found = [(one["name"], one["count"]) for one in values["symbols"]]
    if found:
        yield figure("The commonest symbols of train", *_bars(found, None))


def _bars(counts: Sequence[tuple[str, int]], whole: int | None) -> Iterable[Markup]:
    most = max((count for _, count in counts), default=0)
    for name, count in counts:
        words = f"{count:,}" + (f" ({percent(count / whole)})" if whole else "")
        drawn = bar(name, [("c0", f"{name}: {words}", count)], most)
        yield tag("div", tag("b", name), words, drawn, class_="row")


def _numbers(values: Values, key: str) -> Iterable[Markup]:
    pictured = values["histograms"][key]
    figures = [figure("", histogram(one["name"], "", one["counts"], one["edges"])) for one in pictured]
    if key == "inputs":
        pairs = {one["name"]: zip(one["names"], one["counts"], strict=True) for one in values["categories"]}
        figures += [figure(name, *_bars(list(counts), None)) for name, counts in pairs.items()]
    yield grid(figures)
    rows = [
        (one["name"], *(number(one[name]) for name in ("least", "mean", "most", "std")))
        for one in values[key][:_MOST_FEATURES]
    ]
    if rows:
        more = f" The first {_MOST_FEATURES} of {len(values[key]):,}." if len(values[key]) > _MOST_FEATURES else ""
        yield table(
            f"Of training rows, before they are standardized.{more}", ("", "least", "mean", "most", "deviation"), rows
        )


def _examples(values: Values) -> Iterable[Markup]:
    found = values["examples"]
    if found and "inputs" in found[0]:
        yield example_table(found, "Rows of train.")
        return
    cards = [
        tag("figure", shown_example(one), tag("b", one["target"]), tag("small", f"row {one['row']:,}"))
        for one in found
    ]  # fmt: skip
    if found:
        pictures = "picture" in found[0]
        yield tag("p", "Rows of train. In bold the target.")
        yield tag("div", *cards, class_="pictures") if pictures else grid(cards)
