"""A search for smaller networks as one HTML page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accelnet.report.charts import ACROSS, chart, dots, linear_axis, lines, log_axis, path, ranges
from accelnet.report.document import NUM_COLORS, document
from accelnet.report.markup import Markup, figure, grid, legend, noted, section, sentences, table, tag, verdict
from accelnet.report.numbers import amount, duration, number, percent, short
from accelnet.wording import size

# Ways by which a network came to be, the last that applies: a class of colour and words.
_KINDS = {
    "original": ("c7", "the original"),
    "widths": ("c0", "fewer units"),
    "ranks": ("c2", "layers of low rank"),
    "teacher": ("c4", "taught by the original"),
    "scratch": ("c1", "from new weights"),
    "bits": ("c5", "fewer bits"),
}
_MOST_LINES = 7


def compression_page(values: Mapping[str, Any]) -> str:
    """Return a search as a page to read, in light and dark, on a screen and on a phone.

    The values are those of compress.json; what comes from names is escaped.
    """
    named = values["recommended"] or "nothing smaller"
    wanted, metric = values["wanted"], values["metric"]["name"].replace("_", " ")
    asked = [] if wanted["max_drop"] is None else [f"at most {_amount(wanted['max_drop'], values)} lost"]
    if wanted["latency"] is not None:
        asked.append(f"an answer within {duration(wanted['latency'])} at batch {wanted['batch_size']}")
    told = (
        f"{len(values['candidates']) - 1} networks were compared with the original by their {metric} on the same "
        f"{values['examples']:,} {values['split']} examples. Asked for: {' and '.join(asked)}."
    )
    kinds = list(dict.fromkeys(_kind(one) for one in values["candidates"]))
    names = legend({_KINDS[kind][0]: _KINDS[kind][1] for kind in _KINDS if kind in kinds})
    body = [
        tag("h1", f"{values['experiment']}: {named}"),
        verdict(*sentences(values["words"]), " ", told),
        section("What it costs, and what it loses", names, grid(_fronts(values)), _explained(values)),
        section("All networks", results_table(values)),
        section("Trainings", _trainings(values)),
        section("Elsewhere", _targets(values)),
        section("How layers bear it", grid(_sensitivities(values))),
        section("Left alone", *[tag("p", note) for note in values["notes"]]),
    ]
    return document(f"Smaller networks for {values['experiment']}", body)


def results_table(values: Mapping[str, Any]) -> Markup:
    """Return all networks as a table, the cheapest first.

    Args:
        values: JSON values, as of compress.json.
    """
    first = values["candidates"][0]
    batches = [row["batch_size"] for row in first["latency"]]
    metric = values["metric"]["name"].replace("_", " ")
    rows = []
    for one in sorted(values["candidates"], key=lambda one: one["share"]):
        mark = {values["recommended"]: ("recommended", "good"), values["nearest"]: ("the nearest", "soft")}
        name = noted(one["name"], *mark[one["name"]][:1]) if one["name"] in mark else one["name"]
        times = [noted(duration(row["p50"]), percent(row["ratio"])) for row in one["latency"]]
        drop = one["drop"]
        rows.append((
            name,
            noted(size(one["bytes"]), percent(one["bytes"] / first["bytes"])),
            f"{one['parameters']:,}",
            f"{amount(one['flops'])}FLOP",
            size(one["memory_bytes"]),
            *times,
            number(one["value"]) or "undefined",
            "" if drop is None else _interval(drop, values),
            "" if drop is None else _limit(drop, values),
        ))  # fmt: skip
    head = ("network", "bytes", "parameters", "an example", "memory", *(f"batch {size}" for size in batches), metric)
    caption = (
        f"The cheapest first. Latencies are medians of calls in turns with the original, on this machine; memory is "
        f"that of a batch of {batches[-1]}. A drop is the difference on the same {values['examples']:,} "
        f"{values['split']} examples with its 95 % interval{_unit(values)}; the bounds under “at most” hold for all "
        "networks at once, with 95 %."
    )
    return table(caption, (*head, "drop", "at most"), rows)


def _unit(values: Mapping[str, Any]) -> str:
    return ", in points of a hundred" if values["metric"]["is_share"] else ", as a share of the original's value"


def _amount(value: float | None, values: Mapping[str, Any]) -> str:
    if value is None:
        return "unknown"
    return f"{100 * value:.2f}{' points' if values['metric']['is_share'] else ' %'}"


def _interval(drop: Mapping[str, Any], values: Mapping[str, Any]) -> Markup | str:
    if drop["value"] is None:
        return "undefined"
    if drop["low"] is None:
        return noted(_amount(drop["value"], values), "too few examples")
    return noted(_amount(drop["value"], values), f"{100 * drop['low']:.2f} to {100 * drop['high']:.2f}")


def _limit(drop: Mapping[str, Any], values: Mapping[str, Any]) -> Markup | str:
    most, told = values["wanted"]["max_drop"], _amount(drop["bound"], values)
    keeps = most is not None and drop["bound"] is not None and drop["bound"] <= most
    return tag("span", told, class_="good") if keeps else told


def _kind(one: Mapping[str, Any]) -> str:
    found = [kind for kind in _KINDS if kind in one["how"]]
    return found[-1] if found else "original"


def _fronts(values: Mapping[str, Any]) -> Iterable[Markup]:
    """Draw the drop against each cost, with the front on which none is both cheaper and better."""
    candidates = [one for one in values["candidates"] if one["drop"] is None or one["drop"]["value"] is not None]
    yield _front("Bytes of the weights", "bytes", candidates, lambda one: one["bytes"], size, values, base=2)
    for place, row in enumerate(candidates[0]["latency"]):
        name = f"latency at batch {row['batch_size']}"

        def seconds(one: Mapping[str, Any], place: int = place) -> float:
            return one["latency"][place]["p50"]

        yield _front(name[0].upper() + name[1:], name, candidates, seconds, duration, values)


def _front(
    title: str,
    name: str,
    candidates: Sequence[Mapping[str, Any]],
    cost: Callable[[Mapping[str, Any]], float],
    text: Callable[[float], str],
    values: Mapping[str, Any],
    base: int = 10,
) -> Markup:
    drops = {one["name"]: one["drop"] or {"value": 0.0, "low": None, "high": None} for one in candidates}
    ends = [drop[end] for drop in drops.values() for end in ("value", "low", "high") if drop[end] is not None]
    # A network that lost nearly everything would press all others together.
    least = max((drop["high"] or drop["value"] for drop in drops.values() if drop["value"] < 0.1), default=0.1)
    x = log_axis(name, [cost(one) for one in candidates], text, ACROSS, base)
    most = values["wanted"]["max_drop"]
    shown = [min(end, 1.5 * max(least, most or 0.0)) for end in ends]
    y = linear_axis(f"drop{_unit(values)}", [*shown, 0.0, *([] if most is None else [most])], _hundredths)
    front, best = [], float("inf")
    for one in sorted(candidates, key=lambda one: (cost(one), drops[one["name"]]["value"])):
        if drops[one["name"]]["value"] < best:
            best = drops[one["name"]]["value"]
            front.append(one)
    shapes = [path(x, y, [(cost(one), drops[one["name"]]["value"]) for one in front], "ideal")]
    if most is not None:
        shapes.append(path(x, y, [(x.low, most), (x.high, most)], "roof"))
    for one in candidates:
        kind, drop = _KINDS[_kind(one)][0], drops[one["name"]]
        if drop["low"] is not None:
            shapes += ranges(x, y, [(cost(one), drop["low"], drop["high"])], kind)
        chosen = one["name"] in (values["recommended"], values["nearest"])
        shapes += dots(x, y, [(cost(one), drop["value"])], kind, 6.0 if chosen else 4.0)
    words = "; ".join(
        f"{one['name']}: {text(cost(one))}, drop {_amount(drops[one['name']]['value'], values)}" for one in candidates
    )
    caption = f"On the dashed line, none is both cheaper and better: {', '.join(one['name'] for one in front)}."
    return figure(title, chart(title, words, x, y, shapes), caption=caption)


def _hundredths(value: float) -> str:
    return short(100 * value)


def _explained(values: Mapping[str, Any]) -> Markup:
    marks = "The larger dot is the recommended network." if values["recommended"] else ""
    marks = "The larger dot is the nearest network." if not values["recommended"] and values["nearest"] else marks
    line = "" if values["wanted"]["max_drop"] is None else "The thick line is the largest drop that was asked for. "
    return tag("p", f"{line}{marks} Vertical lines are 95 % intervals.", class_="caption")


def _trainings(values: Mapping[str, Any]) -> Markup:
    rows = []
    for one in values["candidates"]:
        made = one["training"]
        if made is None or "bits" in one["how"]:
            continue
        tried = ", ".join(f"{row['factor']:g}: {number(row['loss']) or 'diverged'}" for row in made["rate"]["tried"])
        rows.append((one["name"], number(made["epochs"]), number(made["total_epochs"]),
                     noted(f"{made['rate']['factor']:g}", tried) if tried else f"{made['rate']['factor']:g}",
                     duration(made["seconds"])))  # fmt: skip
    if not rows:
        return Markup()
    caption = (
        "By the run's own recipe. Epochs in all count those of the original, where its weights were the start. The "
        "learning rate is a multiple of the run's own, found by short trainings; beside it their validation losses."
    )
    return table(caption, ("network", "epochs", "epochs in all", "learning rate", "time"), rows)


def _targets(values: Mapping[str, Any]) -> Markup:
    first = values["candidates"][0]["targets"]
    if not first:
        return Markup()
    names = [row["name"] for row in first]

    def cell(row: Mapping[str, Any]) -> str:
        return row["reason"] if row["eval_batch_seconds"] is None else duration(row["eval_batch_seconds"])

    rows = [(one["name"], *map(cell, one["targets"])) for one in values["candidates"]]
    caption = (
        "Expected time of one evaluation batch, modelled from shapes and facts of the hardware: nothing ran there."
    )
    return table(caption, ("network", *names), rows)


def _sensitivities(values: Mapping[str, Any]) -> Iterable[Markup]:
    for one in values["sensitivity"]:
        layers = one["layers"]
        worst = sorted(layers, key=lambda layer: -max(error for _, error in layer["points"]))[:_MOST_LINES]
        points = [point for layer in worst for point in layer["points"]]
        x = log_axis(one["axis"], [at for at, _ in points], short, ACROSS, 2)
        y = linear_axis(one["error"], [error for _, error in points], short)
        drawn = [(f"c{place % NUM_COLORS}", layer["name"], layer["points"]) for place, layer in enumerate(worst)]
        names = legend({f"c{place % NUM_COLORS}": layer["name"] for place, layer in enumerate(worst)})
        hardest = worst[0]["name"] if worst else "none"
        left = f" The {len(worst)} that bear it least of {len(layers)} are drawn." if len(layers) > len(worst) else ""
        caption = f"{hardest} bears it least.{left}"
        yield figure("", names, lines(one["title"], x, y, drawn), caption=caption)
