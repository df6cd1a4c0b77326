"""A comparison of candidates as one HTML page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accelnet.report.charts import ACROSS, UP, Axis, chart, dots, linear_axis, log_axis, path, ranges, value_axis
from accelnet.report.document import NUM_COLORS, document
from accelnet.report.markup import Markup, figure, grid, legend, noted, section, table, tag, verdict
from accelnet.report.numbers import amount, duration, number, short

_COSTS = {"parameters": ("parameters", short), "flops": ("FLOPs of an example, forward", short),
          "latency_seconds": ("latency at batch 1, measured", duration)}  # fmt: skip


def comparison_page(values: Mapping[str, Any]) -> str:
    """Return a comparison as a page to read, in light and dark, on a screen and on a phone.

    The values are those of `compare`, and of compare.json; what comes from settings is escaped.
    """
    candidates = values["candidates"]
    colors = {one["name"]: f"c{place % NUM_COLORS}" for place, one in enumerate(candidates)}
    metric = f"{values['split']} {values['metric'].replace('_', ' ')}"
    tuning = values["tuning"]
    told = (
        f"{len(candidates)} candidates, judged by their {metric}, {'lower' if values['lower_is_better'] else 'higher'} "
        f"is better. Each was tuned over {len(tuning['rates'])} learning rates with {tuning['seeds']} seeds each, then "
        f"trained with the same {values['seeds']} seeds."
    )
    names = legend({colors[one["name"]]: one["name"] for one in candidates})
    body = [
        tag("h1", f"{values['experiment']}: {values['winner']}"),
        verdict(values["words"] + ".", told),
        section(
            "Results",
            names,
            grid([_finals(candidates, metric, colors), _curves(candidates, metric, colors)]),
            _results(candidates, values["target"]),
        ),
        section("Differences", _differences(values)),
        section("Test", _test(values)),
        section("Learning rates", names, _tuning(candidates, metric, colors)),
        section("What it costs", names, *_pareto(values, metric, colors)),
    ]
    return document(f"Comparison for {values['experiment']}", body)


def _finals(candidates: Sequence[Mapping[str, Any]], metric: str, colors: Mapping[str, str]) -> Markup:
    """Draw every seed's value, and the mean with its interval beside them."""
    x = linear_axis("", [-0.5, len(candidates) - 0.5], "".format, ACROSS)
    y = linear_axis("", [value for one in candidates for value in one["final"]["values"]], short)
    shapes, words, room = [], [], (ACROSS[1] - ACROSS[0]) / len(candidates)
    for place, one in enumerate(candidates):
        final, kind = one["final"], colors[one["name"]]
        shapes += dots(x, y, [(place - 0.15, value) for value in final["values"]], kind)
        shapes += ranges(x, y, [(place + 0.15, final["low"], final["high"])], kind)
        shapes += dots(x, y, [(place + 0.15, final["mean"])], kind, 4.0)
        words.append(f"{one['name']}: {number(final['mean'])}, {number(final['low'])} to {number(final['high'])}")
        if len(one["name"]) * 7 < room:
            shapes.append(tag("text", one["name"], x=x.at(place), y=UP[0] + 15, text_anchor="middle"))
    caption = "Each point is a seed; beside them the mean with its 95 % interval (Student's)."
    return figure(metric[0].upper() + metric[1:], chart(metric, "; ".join(words), x, y, shapes), caption=caption)


def _results(candidates: Sequence[Mapping[str, Any]], target: float) -> Markup:
    rows = []
    for one in candidates:
        final, reached = one["final"], one["steps_to_target"]
        median = "" if reached["median"] is None else f"{reached['median']:,.0f} steps"
        ends = [("never" if reached[end] is None else f"{reached[end]:,.0f}") for end in ("low", "high")]
        seeds = f"{reached['reached']} of {len(final['values'])} seeds"
        rate = noted(number(one["learning_rate"]), "at the end of the range") if one["tuning"]["at_the_end"] else None
        rows.append((
            one["name"],
            noted(number(final["mean"]), f"{number(final['low'])} to {number(final['high'])}"),
            noted(median or "not reached", f"{' to '.join(ends)}, {seeds}"),
            "" if one["seconds_to_target"] is None else duration(one["seconds_to_target"]),
            rate or number(one["learning_rate"]),
            str(one["failed"]),
        ))  # fmt: skip
    head = ("candidate", "final value", f"to {number(target)}", "alone, in", "learning rate", "diverged")
    caption = (
        "Means and medians over seeds with 95 % intervals. Time is steps times the time of a step alone, measured."
    )
    return table(caption, head, rows)


def _differences(values: Mapping[str, Any]) -> Markup:
    rows = [
        (
            f"{one['first']} less {one['second']}", number(one["difference"]),
            f"{number(one['low'])} to {number(one['high'])}", number(one["p"]), number(one["corrected"]),
            tag("span", one["words"], class_="good" if one["shown"] else "soft"),
        )
        for one in values["comparisons"]
    ]  # fmt: skip
    count = len(rows)
    level = 100 * (1 - values["alpha"] / count)
    caption = (
        f"Paired over {values['seeds']} seeds. Intervals at {level:.4g} %, so that all hold at once in "
        f"{100 * (1 - values['alpha']):g} of 100 cases; p by flipping signs, corrected by Holm's method; a difference "
        f"is shown where that is at most {values['alpha']:g}."
    )
    return table(caption, ("pair", "difference", "interval", "p", "corrected", "what is shown"), rows, (5,))


def _test(values: Mapping[str, Any]) -> Markup:
    if not values["test"]:
        return Markup()
    rows = [
        (name.replace("_", " "), number(found["mean"]), f"{number(found['low'])} to {number(found['high'])}")
        for name, found in values["test"].items()
    ]
    caption = f"Of {values['winner']}, looked at once the winner was fixed; means over seeds with 95 % intervals."
    return table(caption, ("metric", "mean", "95 % interval"), rows)


Lines = dict[str, list[tuple[float, float]]]


def _curves(candidates: Sequence[Mapping[str, Any]], metric: str, colors: Mapping[str, str]) -> Markup:
    curves = {
        one["name"]: zip(one["curve"]["steps"][1:], one["curve"]["median"][1:], strict=True) for one in candidates
    }
    lines = _known(curves)
    if not any(lines.values()):
        return Markup()
    x = linear_axis("step", [step for line in lines.values() for step, _ in line], short, ACROSS)
    words = "; ".join(f"{name}: {number(line[-1][1])} at the end" for name, line in lines.items() if line)
    drawn = _drawn(metric, words, x, lines, colors, 0.0)
    return figure("Curves", drawn, caption=f"Median {metric} over seeds.")


def _tuning(candidates: Sequence[Mapping[str, Any]], metric: str, colors: Mapping[str, str]) -> Markup:
    tried = {one["name"]: [(at["learning_rate"], at["value"]) for at in one["tuning"]["tried"]] for one in candidates}
    lines = _known(tried)
    x = log_axis("learning rate", [rate for line in lines.values() for rate, _ in line], short, ACROSS)
    words = "; ".join(f"{one['name']}: best at {number(one['learning_rate'])}" for one in candidates)
    caption = f"Mean {metric} by learning rate; where a line ends, trainings diverged."
    return figure("Tuning", _drawn("Tuning", words, x, lines, colors, 3.0), caption=caption)


def _known(lines: Mapping[str, Iterable[tuple[float, float | None]]]) -> Lines:
    return {name: [(at, value) for at, value in line if value is not None] for name, line in lines.items()}


def _drawn(title: str, words: str, x: Axis, lines: Lines, colors: Mapping[str, str], radius: float) -> Markup:
    y = value_axis([value for line in lines.values() for _, value in line])
    shapes = []
    for name, line in lines.items():
        shapes += [path(x, y, line, f"line {colors[name]}")] if line else []
        shapes += dots(x, y, line, colors[name], radius) if radius else []
    return chart(title, words, x, y, shapes)


def _pareto(values: Mapping[str, Any], metric: str, colors: Mapping[str, str]) -> Iterable[Markup]:
    candidates, pictures = values["candidates"], []
    for key, (name, text) in _COSTS.items():
        costs = [one[key] for one in candidates]
        if key != "latency_seconds" and len(set(costs)) == 1:
            continue
        front = [one for one in candidates if one["name"] in values["pareto"][key]]
        front.sort(key=lambda one: one[key])
        x = log_axis(name, costs, text, ACROSS)
        y = linear_axis("", [end for one in candidates for end in (one["final"]["low"], one["final"]["high"])], short)
        shapes = [path(x, y, [(one[key], one["final"]["mean"]) for one in front], "ideal")]
        for one in candidates:
            kind, final = colors[one["name"]], one["final"]
            shapes += ranges(x, y, [(one[key], final["low"], final["high"])], kind)
            shapes += dots(x, y, [(one[key], final["mean"])], kind, 4.0)
        words = "; ".join(f"{one['name']}: {text(one[key])}, {number(one['final']['mean'])}" for one in candidates)
        told = ", ".join(one["name"] for one in front)
        caption = f"{metric[0].upper()}{metric[1:]}; on the dashed line, none is both cheaper and better: {told}."
        pictures.append(figure(name[0].upper() + name[1:], chart(name, words, x, y, shapes), caption=caption))
    yield grid(pictures)
    rows = [
        (one["name"], f"{one['parameters']:,}", f"{amount(one['flops'])}FLOP", duration(one["latency_seconds"]),
         duration(one["step_seconds"]))
        for one in candidates
    ]  # fmt: skip
    head = ("candidate", "parameters", "forward, an example", "latency at batch 1", "a step alone")
    yield table("Counted, and measured here: the median of calls one after the other.", head, rows)
